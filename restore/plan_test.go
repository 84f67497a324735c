package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// rows cuts an [8, 4] tensor of U8 by rows over four ranks, beside a
// replicated vector and a state that is each rank's own.
func rows() *world {
	w := newWorld(rand.New(rand.NewPCG(1, 1)), 4)
	w.tensor("model/w[0]", "U8", 8, 4)
	bias := w.tensor("model.bias", "F32", 5)
	for r := range 4 {
		w.piece(r, "model/w[0]", []int64{2 * int64(r), 0}, []int64{2, 4}, 0)
		w.put(r, catalog.Tensor{Name: "model.bias", DType: "F32", Shape: []int64{5}}, bias.data, 0)
		w.put(r, catalog.Tensor{Name: "rng", DType: "U8", Shape: []int64{int64(r) + 1}}, make([]byte, r+1), 0)
	}
	return w
}

func TestWantWhat(t *testing.T) {
	w := rows()
	for _, c := range []struct {
		name string
		want Want
		out  string // outputs: name start shape @rank
		from string // ranks read
	}{
		{"Everything", Want{}, "model/w[0] [0 0][8 4] model.bias [0][5] rng [0][1]@0 rng [0][2]@1 rng [0][3]@2 rng [0][4]@3", "[0 1 2 3]"},
		{"EmptyGlobIsAll", Want{Only: []string{""}, Ranks: []int{2}}, "model/w[0] [4 0][2 4] model.bias [0][5] rng [0][3]", "[2]"},
		{"StarCrossesSlashes", Want{Only: []string{"model*"}}, "model/w[0] [0 0][8 4] model.bias [0][5]", "[0 1 2 3]"},
		{"ANameIsItsOwnGlob", Want{Only: []string{"model/w[0]"}}, "model/w[0] [0 0][8 4]", "[0 1 2 3]"},
		{"ReplicatedIsReadOnce", Want{Only: []string{"*.bias"}}, "model.bias [0][5]", "[0]"},
		{"NearFirst", Want{Only: []string{"*.bias"}, Near: []int{3, 99, -1}}, "model.bias [0][5]", "[3]"},
		{"SeveralRanks", Want{Only: []string{"model*"}, Ranks: []int{3, 1, 3}}, "model/w[0] [2 0][2 4] model/w[0] [6 0][2 4] model.bias [0][5]", "[1 3]"},
		{"NoRanks", Want{Only: []string{"*"}, Ranks: []int{}}, "", "[]"},
		{"PieceOverTwoRanks", Want{Pieces: []Piece{{"model/w[0]", []int64{3, 1}, []int64{2, 2}}}}, "model/w[0] [3 1][2 2]", "[1 2]"},
		{"PieceWhole", Want{Pieces: []Piece{{Name: "model.bias"}}}, "model.bias [0][5]", "[0]"},
		{"PieceEmpty", Want{Pieces: []Piece{{"model/w[0]", []int64{8, 0}, []int64{0, 4}}}}, "model/w[0] [8 0][0 4]", "[]"},
		{"PieceOfOwn", Want{Ranks: []int{1}, Pieces: []Piece{{"rng", []int64{1}, []int64{1}}}}, "rng [1][1]", "[1]"},
		{"PiecesAndGlobs", Want{Only: []string{"*bias"}, Pieces: []Piece{{"model/w[0]", []int64{0, 0}, []int64{1, 1}}}}, "model/w[0] [0 0][1 1] model.bias [0][5]", "[0 1]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, dst := w.restore(t, c.want)
			if got := describe(p); got != c.out {
				t.Errorf("outputs %s\nwant    %s", got, c.out)
			}
			if got := fmt.Sprint(p.Ranks()); got != c.from {
				t.Errorf("reads ranks %s, want %s", got, c.from)
			}
			if !strings.Contains(c.out, "rng") {
				w.check(t, p, dst)
			}
		})
	}
}

func describe(p *Plan) string {
	var out []string
	for _, o := range p.Outputs {
		s := fmt.Sprintf("%s %v%v", o.Name, o.Start, o.Shape)
		if o.Rank >= 0 {
			s += fmt.Sprint("@", o.Rank)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func TestWantWrong(t *testing.T) {
	hole := rows()
	hole.m.Shards[2].Tensors = hole.m.Shards[2].Tensors[1:]
	four := newWorld(rand.New(rand.NewPCG(1, 1)), 1)
	four.put(0, catalog.Tensor{Name: "q", DType: "F4", Shape: []int64{2, 3}}, make([]byte, 3), 0)
	for _, c := range []struct {
		name  string
		w     *world
		want  Want
		class error
		text  string
	}{
		{"UnknownName", rows(), Want{Pieces: []Piece{{Name: "model.bais"}}}, fs.ErrNotExist, `did you mean "model.bias"?`},
		{"UnknownGlob", rows(), Want{Only: []string{"rng", "model.b1as*"}}, fs.ErrNotExist, `did you mean "model.bias"?`},
		{"NothingNear", rows(), Want{Only: []string{"optimizer.state.exp_avg"}}, fs.ErrNotExist, `there are 3, such as "model/w[0]", "model.bias", "rng"`},
		{"NoTensors", newWorld(nil, 1), Want{Only: []string{"w"}}, fs.ErrNotExist, "there are no tensors"},
		{"BadGlob", rows(), Want{Only: []string{"w["}}, catalog.ErrInvalid, "syntax error"},
		{"UnknownRank", rows(), Want{Ranks: []int{4}}, fs.ErrNotExist, "ranks 0 to 3"},
		{"OutsideTheTensor", rows(), Want{Pieces: []Piece{{"model/w[0]", []int64{7, 0}, []int64{2, 4}}}}, catalog.ErrInvalid, "is not in [8 4]"},
		{"OutsideByOverflow", rows(), Want{Pieces: []Piece{{"model/w[0]", []int64{7, 0}, []int64{math.MaxInt64, 4}}}}, catalog.ErrInvalid, "is not in [8 4]"},
		{"WrongDimensions", rows(), Want{Pieces: []Piece{{"model/w[0]", []int64{0}, []int64{8}}}}, catalog.ErrInvalid, "is not in [8 4]"},
		{"NotTheSameInAllRanks", rows(), Want{Pieces: []Piece{{Name: "rng"}}}, catalog.ErrInvalid, "name one rank"},
		{"AHole", hole, Want{Only: []string{"model*"}}, fs.ErrNotExist, "no shard holds its elements from [4 0] on"},
		{"APieceInOtherRanks", rows(), Want{Ranks: []int{0}, Pieces: []Piece{{Name: "model/w[0]"}}}, fs.ErrNotExist, "no shard holds its elements from [2 0] on"},
		{"WithinAByte", four, Want{Pieces: []Piece{{"q", []int64{0, 1}, []int64{1, 2}}}}, catalog.ErrInvalid, "whole bytes"},
		{"EndsWithinAByte", four, Want{Pieces: []Piece{{"q", []int64{0, 0}, []int64{1, 3}}}}, catalog.ErrInvalid, "whole bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := NewPlan(c.w.m, c.want)
			if !errors.Is(err, c.class) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.class, c.text)
			}
		})
	}
}

// The pieces of a tensor with a hole can still be had, by naming the ranks.
func TestHoleByRanks(t *testing.T) {
	w := rows()
	w.m.Shards[2].Tensors = w.m.Shards[2].Tensors[1:]
	p, dst := w.restore(t, Want{Only: []string{"model*"}, Ranks: []int{0, 1, 2, 3}})
	if got, want := len(p.Outputs), 4; got != want {
		t.Errorf("%d outputs, want %d", got, want)
	}
	w.check(t, p, dst)
}

// Promise 12: a manifest that lies gives ErrCorrupt.
func TestHostileManifest(t *testing.T) {
	for name, spoil := range map[string]func(m *catalog.Manifest, t *catalog.Tensor){
		"UnknownType":     func(m *catalog.Manifest, t *catalog.Tensor) { t.DType = "F33" },
		"NegativeShape":   func(m *catalog.Manifest, t *catalog.Tensor) { t.Shape = []int64{-2, -4} },
		"SizeOfAnother":   func(m *catalog.Manifest, t *catalog.Tensor) { t.Size++ },
		"HugeShape":       func(m *catalog.Manifest, t *catalog.Tensor) { t.Shape = []int64{1 << 62, 4} },
		"ShapeOverflows":  func(m *catalog.Manifest, t *catalog.Tensor) { t.Shape = []int64{1 << 32, 1 << 32} },
		"ZeroTimesHuge":   func(m *catalog.Manifest, t *catalog.Tensor) { t.Global, t.Size = []int64{0, math.MaxInt64, 16}, 0 },
		"GlobalOverflows": func(m *catalog.Manifest, t *catalog.Tensor) { t.Global = []int64{1 << 40, 1 << 40} },
		"OutsideTheWhole": func(m *catalog.Manifest, t *catalog.Tensor) { t.Start = []int64{7, 0} },
		"StartOverflows":  func(m *catalog.Manifest, t *catalog.Tensor) { t.Start = []int64{math.MaxInt64, 0} },
		"StartNegative":   func(m *catalog.Manifest, t *catalog.Tensor) { t.Start = []int64{-1, 0} },
		"StartTooShort":   func(m *catalog.Manifest, t *catalog.Tensor) { t.Start = nil },
		"OffsetBehindEnd": func(m *catalog.Manifest, t *catalog.Tensor) { t.Offset = m.Shards[1].Size },
		"OffsetOverflows": func(m *catalog.Manifest, t *catalog.Tensor) { t.Offset = math.MaxInt64 },
		"OffsetNegative":  func(m *catalog.Manifest, t *catalog.Tensor) { t.Offset = -1 },
		"TwiceInOneShard": func(m *catalog.Manifest, t *catalog.Tensor) { m.Shards[1].Tensors[1] = *t },
		"RanksOutOfOrder": func(m *catalog.Manifest, t *catalog.Tensor) { m.Shards[1].Rank = 2 },
		"ShardTooShort":   func(m *catalog.Manifest, t *catalog.Tensor) { m.Shards[1].Size = t.Offset + 1 },
		"ManyDimensions": func(m *catalog.Manifest, t *catalog.Tensor) {
			t.Shape = make([]int64, 100)
			t.Global = nil
			t.Start = nil
			t.Size = 0
		},
		"NegativeShardEnd": func(m *catalog.Manifest, t *catalog.Tensor) { m.Shards[1].Size = math.MinInt64 },
	} {
		t.Run(name, func(t *testing.T) {
			w := rows()
			spoil(w.m, &w.m.Shards[1].Tensors[0])
			for _, want := range []Want{{}, {Ranks: []int{1}}, {Pieces: []Piece{{Name: "model/w[0]"}}}} {
				if _, err := NewPlan(w.m, want); !errors.Is(err, catalog.ErrCorrupt) {
					t.Errorf("want %+v: %v, want ErrCorrupt", want, err)
				}
			}
		})
	}
	t.Run("AbsurdOverlaps", func(t *testing.T) {
		// Single elements strewn over a cube leave ever more boxes to cover.
		m := &catalog.Manifest{Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}}
		rnd := rand.New(rand.NewPCG(3, 3))
		for r := range 3000 {
			at := func() int64 { return rnd.Int64N(1 << 12) }
			m.Shards = append(m.Shards, catalog.Shard{Rank: r, Size: 1, Tensors: []catalog.Tensor{
				{Name: "w", DType: "U8", Shape: []int64{1, 1, 1}, Size: 1, Global: []int64{1 << 12, 1 << 12, 1 << 12}, Start: []int64{at(), at(), at()}}}})
		}
		if _, err := NewPlan(m, Want{}); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("%v, want ErrCorrupt", err)
		}
	})
}

// Promise 2: ranks that want the same make the same plan.
func TestEqualWantsEqualPlans(t *testing.T) {
	rnd := rand.New(rand.NewPCG(5, 5))
	for range 50 {
		w := randomWorld(rnd)
		a, errA := NewPlan(w.m, Want{})
		b, errB := NewPlan(w.m, Want{})
		if errA != nil || errB != nil || !reflect.DeepEqual(a, b) {
			t.Fatalf("plans of one want differ: %v %v", errA, errB)
		}
	}
}

// What all ranks hold is read from all of them, about equally, and in long
// stretches: reading it costs little more than its bytes.
func TestSpread(t *testing.T) {
	const ranks, tensors, size = 8, 4000, 1 << 20
	m := &catalog.Manifest{Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}}
	for r := range ranks {
		s := catalog.Shard{Rank: r, Size: 4096, Header: 4096}
		for i := range tensors {
			s.Tensors = append(s.Tensors, catalog.Tensor{Name: fmt.Sprint("t", i), DType: "U8", Shape: []int64{size}, Offset: s.Size, Size: size})
			s.Size += size
		}
		m.Shards = append(m.Shards, s)
	}
	p, err := NewPlan(m, Want{})
	if err != nil {
		t.Fatal(err)
	}
	load := map[int]int64{}
	for _, r := range p.Reads {
		load[r.Rank] += r.Len
	}
	for rank, n := range load {
		if mean := p.Bytes() / ranks; n < mean-SpreadBytes || n > mean+SpreadBytes {
			t.Errorf("rank %d reads %d MiB, the mean is %d", rank, n>>20, mean>>20)
		}
	}
	if got, want := p.FetchBytes(), p.Bytes()*101/100; got > want {
		t.Errorf("fetches %d MiB for %d", got>>20, p.Bytes()>>20)
	}
	if len(load) != ranks {
		t.Errorf("reads %d ranks, want %d", len(load), ranks)
	}

	near, err := NewPlan(m, Want{Near: []int{5}})
	if err != nil {
		t.Fatal(err)
	}
	if got := near.Ranks(); !slices.Equal(got, []int{5}) {
		t.Errorf("with rank 5 near, reads ranks %v", got)
	}
}

// Parts of one copy are not fetched from two ranks, however large it is.
func TestSpreadKeepsACopyTogether(t *testing.T) {
	const size = 3 * SpreadBytes
	m := &catalog.Manifest{Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}}
	for r := range 2 {
		m.Shards = append(m.Shards, catalog.Shard{Rank: r, Size: size, Tensors: []catalog.Tensor{{Name: "w", DType: "U8", Shape: []int64{size}, Size: size}}})
	}
	p, err := NewPlan(m, Want{Pieces: []Piece{{"w", []int64{0}, []int64{2 * SpreadBytes}}, {"w", []int64{SpreadBytes}, []int64{2 * SpreadBytes}}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Ranks(), []int{0}; !slices.Equal(got, want) {
		t.Errorf("reads ranks %v, want %v", got, want)
	}
}

// Columns far apart are fetched apart; columns near each other in one go.
func TestRangesOfColumns(t *testing.T) {
	const mib = 1 << 20
	plan := func(rows, cols, from, width int64) *Plan {
		m := &catalog.Manifest{Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}, Shards: []catalog.Shard{{Size: 4096 + rows*cols, Header: 4096,
			Tensors: []catalog.Tensor{{Name: "w", DType: "U8", Shape: []int64{rows, cols}, Offset: 4096, Size: rows * cols}}}}}
		p, err := NewPlan(m, Want{Pieces: []Piece{{"w", []int64{0, from}, []int64{rows, width}}}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		p    *Plan
		want [][2]int64
	}{
		{plan(3, 10*mib, mib, 100), [][2]int64{{1 * mib, mib}, {11 * mib, mib}, {21 * mib, mib}}},
		{plan(3, 2*mib, mib, 100), [][2]int64{{1 * mib, 5 * mib}}},
		{plan(2, 2*mib, 0, 2*mib), [][2]int64{{0, 4*mib + 4096}}},
		{plan(1<<20, 16, 3, 1), [][2]int64{{0, 16*mib + 4096}}},
	} {
		if got := c.p.Ranges(0); !slices.Equal(got, c.want) {
			t.Errorf("ranges %v, want %v", got, c.want)
		}
	}
}

// Columns wanted one by one are fetched in the order of the shard.
func TestRangesOfSeveralColumns(t *testing.T) {
	const mib = 1 << 20
	m := &catalog.Manifest{Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}, Shards: []catalog.Shard{{Size: 24 * mib,
		Tensors: []catalog.Tensor{{Name: "w", DType: "U8", Shape: []int64{2, 12 * mib}, Size: 24 * mib}}}}}
	p, err := NewPlan(m, Want{Pieces: []Piece{{"w", []int64{0, 6 * mib}, []int64{2, 1}}, {"w", []int64{0, 0}, []int64{2, 1}}, {"w", []int64{0, 8 * mib}, []int64{2, 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Ranges(0), [][2]int64{{0, mib}, {6 * mib, 3 * mib}, {12 * mib, mib}, {18 * mib, 3 * mib}}; !slices.Equal(got, want) {
		t.Errorf("ranges %v, want %v", got, want)
	}
	if got, want := p.FetchBytes(), int64(8*mib); got != want {
		t.Errorf("FetchBytes = %d, want %d", got, want)
	}
	if got := p.Ranges(7); got != nil {
		t.Errorf("ranges of a rank that is not read: %v", got)
	}
}

// Whatever a manifest says, a plan of it keeps to its shards.
func FuzzNewPlan(f *testing.F) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for _, w := range []*world{rows(), randomWorld(rnd), randomWorld(rnd), randomWorld(rnd)} {
		b, _, err := w.m.Marshal()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := catalog.ParseManifest(b, catalog.Digest{})
		if err != nil {
			return
		}
		for _, want := range []Want{{}, {Ranks: []int{0}}, {Only: []string{"*w*"}}} {
			p, err := NewPlan(m, want)
			if err != nil {
				if !errors.Is(err, catalog.ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("error without a fitting class: %v", err)
				}
				continue
			}
			for _, r := range p.Reads {
				if r.Off < 0 || r.Len <= 0 || r.Off+r.Len > m.Shards[r.Rank].Size || r.At < 0 || r.At >= p.Outputs[r.Out].Size {
					t.Errorf("read %+v of a shard of %d bytes into %d", r, m.Shards[r.Rank].Size, p.Outputs[r.Out].Size)
				}
			}
			for _, rank := range p.Ranks() {
				for _, r := range p.Ranges(rank) {
					if r[0] < 0 || r[1] <= 0 || r[0]+r[1] > m.Shards[rank].Size {
						t.Errorf("range %v of a shard of %d bytes", r, m.Shards[rank].Size)
					}
				}
			}
		}
	})
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"abc", "", 3}, {"", "ab", 2}, {"kitten", "sitting", 3}, {"bias", "bais", 2}, {"w", "w", 0}} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, got, c.want)
		}
	}
}
