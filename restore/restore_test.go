package restore

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// world is a set under test: a manifest, the bytes of its shards, and, by
// name, the whole tensors as they were before they were cut.
type world struct {
	m      *catalog.Manifest
	shards [][]byte
	whole  map[string]whole
	rnd    *rand.Rand
}

type whole struct {
	dtype catalog.DType
	shape []int64
	data  []byte
}

const headerSize = 4096

func newWorld(rnd *rand.Rand, ranks int) *world {
	w := &world{m: &catalog.Manifest{Version: 1, Set: catalog.SetID{Run: "r", Step: 1, Attempt: 1}, World: ranks}, whole: map[string]whole{}, rnd: rnd}
	for r := range ranks {
		w.m.Shards = append(w.m.Shards, catalog.Shard{Rank: r, Header: headerSize})
		w.shards = append(w.shards, make([]byte, headerSize))
	}
	return w
}

// put appends a tensor to a rank's shard, after a gap of up to pad bytes.
func (w *world) put(rank int, t catalog.Tensor, data []byte, pad int) {
	if pad > 0 {
		w.shards[rank] = append(w.shards[rank], make([]byte, w.rnd.IntN(pad))...)
	}
	t.Offset, t.Size = int64(len(w.shards[rank])), int64(len(data))
	w.shards[rank] = append(w.shards[rank], data...)
	s := &w.m.Shards[rank]
	s.Tensors = append(s.Tensors, t)
	s.Size = int64(len(w.shards[rank]))
}

// tensor makes a whole tensor of random bytes.
func (w *world) tensor(name string, dtype catalog.DType, shape ...int64) whole {
	n := dtype.Bits()
	for _, d := range shape {
		n *= d
	}
	t := whole{dtype, shape, make([]byte, n/8)}
	for i := range t.data {
		t.data[i] = byte(w.rnd.Uint32())
	}
	w.whole[name] = t
	return t
}

// cut is the slow reference: it takes a box out of a whole tensor element by
// element. Elements narrower than a byte are moved as halves.
func (t whole) cut(start, shape []int64) []byte {
	width := t.dtype.Bits()
	n := width
	for _, d := range shape {
		n *= d
	}
	out := make([]byte, n/8)
	at := make([]int64, len(shape))
	for i := int64(0); i < n/width; i++ {
		flat := int64(0)
		for d := range shape {
			flat = flat*t.shape[d] + start[d] + at[d]
		}
		if width == 4 {
			half := t.data[flat/2] >> (4 * (flat % 2)) & 15
			out[i/2] |= half << (4 * (i % 2))
		} else {
			b := width / 8
			copy(out[i*b:(i+1)*b], t.data[flat*b:])
		}
		for d := len(shape) - 1; d >= 0; d-- {
			if at[d]++; at[d] < shape[d] {
				break
			}
			at[d] = 0
		}
	}
	return out
}

// piece puts a box of a whole tensor into a rank's shard.
func (w *world) piece(rank int, name string, start, shape []int64, pad int) {
	t := w.whole[name]
	w.put(rank, catalog.Tensor{Name: name, DType: t.dtype, Shape: shape, Global: t.shape, Start: start}, t.cut(start, shape), pad)
}

// memSource serves the shards of a world, and checks how it is asked.
type memSource struct {
	t     testing.TB
	w     *world
	name  string
	bytes atomic.Int64
	hook  func(shard ShardRef, ranges [][2]int64) error // may be nil
}

func (s *memSource) Name() string { return s.name }

func (s *memSource) ReadRanges(ctx context.Context, shard ShardRef, ranges [][2]int64, w io.WriterAt) (Report, error) {
	if s.hook != nil {
		if err := s.hook(shard, ranges); err != nil {
			return Report{}, err
		}
	}
	end, n := int64(-1), int64(0)
	for _, r := range ranges {
		if r[0] <= end || r[1] <= 0 || r[0]+r[1] > shard.Size {
			s.t.Errorf("range %v after %d of a shard of %d bytes", r, end, shard.Size)
		}
		end = r[0] + r[1]
		n += r[1]
		for off := r[0]; off < end; { // in odd parts, as a source may
			k := min(end-off, 70001)
			if _, err := w.WriteAt(s.w.shards[shard.Rank][off:off+k], off); err != nil {
				return Report{}, err
			}
			off += k
		}
	}
	s.bytes.Add(n)
	return Report{Bytes: n}, ctx.Err()
}

// restore plans, runs, and gives the outputs.
func (w *world) restore(t testing.TB, want Want) (*Plan, [][]byte) {
	t.Helper()
	p, err := NewPlan(w.m, want)
	if err != nil {
		t.Fatal(err)
	}
	dst := buffers(p)
	src := &memSource{t: t, w: w, name: "local"}
	if _, err := Run(t.Context(), p, dst, func(ShardRef) []Source { return []Source{src} }, RunOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := src.bytes.Load(); got != p.FetchBytes() {
		t.Errorf("fetched %d bytes, planned %d", got, p.FetchBytes())
	}
	return p, dst
}

func buffers(p *Plan) [][]byte {
	dst := make([][]byte, len(p.Outputs))
	for i := range dst {
		dst[i] = make([]byte, p.Outputs[i].Size)
	}
	return dst
}

// check compares outputs with the reference, and the plan with its promises.
func (w *world) check(t testing.TB, p *Plan, dst [][]byte) {
	t.Helper()
	for i, o := range p.Outputs {
		if o.Rank >= 0 {
			continue
		}
		if !bytes.Equal(dst[i], w.whole[o.Name].cut(o.Start, o.Shape)) {
			t.Errorf("output %d: %s %v+%v of %v differs", i, o.Name, o.Start, o.Shape, o.Global)
		}
	}
	covered := make([][]bool, len(p.Outputs))
	for i, o := range p.Outputs {
		covered[i] = make([]bool, o.Size)
	}
	for i := range p.Reads {
		r := &p.Reads[i]
		first, last := int64(-1), int64(0)
		for c := range r.Copies() {
			if first < 0 {
				first = c.Src
			}
			last = max(last, c.Src+c.Len)
			for j := c.Dst; j < c.Dst+c.Len; j++ {
				if covered[r.Out][j] {
					t.Fatalf("output %d: byte %d is read twice", r.Out, j)
				}
				covered[r.Out][j] = true
			}
		}
		if first != r.Off || last != r.Off+r.Len {
			t.Errorf("read %+v: its runs span %d to %d", *r, first, last)
		}
	}
	for i, c := range covered {
		if slices.Contains(c, false) {
			t.Errorf("output %d (%s) is not covered", i, p.Outputs[i].Name)
		}
	}
	for _, rank := range p.Ranks() {
		end := int64(-MergeGap) - 1
		for _, r := range p.Ranges(rank) {
			if r[0]%catalog.BlockSize != 0 || (r[0]+r[1])%catalog.BlockSize != 0 && r[0]+r[1] != p.Shard(rank).Size || r[1] <= 0 || r[0]-end <= MergeGap {
				t.Errorf("rank %d: range %v after %d of %d", rank, r, end, p.Shard(rank).Size)
			}
			end = r[0] + r[1]
		}
	}
}

// split cuts n into at most parts uneven pieces, some perhaps empty.
func split(rnd *rand.Rand, n int64, parts int, step int64) []int64 {
	cuts := []int64{0, n}
	for range rnd.IntN(parts) {
		cuts = append(cuts, rnd.Int64N(n/step+1)*step)
	}
	slices.Sort(cuts)
	return cuts
}

// randomWorld shards tensors as jobs do: whole and replicated, by rows, by
// columns, in grids, with several replicas, overlapping, and own to a rank.
func randomWorld(rnd *rand.Rand) *world {
	ranks := 1 + rnd.IntN(6)
	if rnd.IntN(4) == 0 {
		ranks = 8 + rnd.IntN(16) // enough for cells to be searched rather than tried
	}
	w := newWorld(rnd, ranks)
	dtypes := []catalog.DType{"F32", "BF16", "U8", "F64", "F4"}
	for i := range 1 + rnd.IntN(5) {
		name := fmt.Sprintf("layer.%d/w", i)
		dtype := dtypes[rnd.IntN(len(dtypes))]
		shape := make([]int64, rnd.IntN(4))
		for d := range shape {
			shape[d] = 1 + rnd.Int64N(9)
		}
		step := int64(1)
		if dtype == "F4" { // pieces end on whole bytes
			shape, step = append(shape, 2*(1+rnd.Int64N(4))), 2
		} else if rnd.IntN(12) == 0 && len(shape) > 0 {
			shape[rnd.IntN(len(shape))] = 0
		}
		t := w.tensor(name, dtype, shape...)
		switch {
		case len(shape) == 0 || rnd.IntN(4) == 0: // whole, in some ranks
			for r := range ranks {
				if r == 0 || rnd.IntN(2) == 0 {
					w.put(r, catalog.Tensor{Name: name, DType: dtype, Shape: shape}, t.data, 50)
				}
			}
		case ranks > 2 && rnd.IntN(3) == 0:
			w.overlap(name, t, step)
		default:
			w.grid(name, t, step)
		}
	}
	if ranks > 1 && rnd.IntN(3) == 0 { // a generator's state, of another length in each rank
		for r := range ranks {
			data := bytes.Repeat([]byte{byte(r + 1)}, 3+r)
			w.put(r, catalog.Tensor{Name: "rng", DType: "U8", Shape: []int64{int64(len(data))}}, data, 50)
		}
	}
	return w
}

// grid cuts a tensor along random lines and deals the pieces out; a rank that
// has one already gets none, so what is left over is widened to the whole.
func (w *world) grid(name string, t whole, step int64) {
	var boxes []box
	ranks := len(w.shards)
	cuts := make([][]int64, len(t.shape))
	for d, n := range t.shape {
		s := int64(1)
		if d == len(t.shape)-1 {
			s = step
		}
		cuts[d] = split(w.rnd, n, 3+ranks/4, s)
	}
	var walk func(b box)
	walk = func(b box) {
		d := len(b.start)
		if d == len(t.shape) {
			boxes = append(boxes, box{slices.Clone(b.start), slices.Clone(b.shape)})
			return
		}
		for i := 1; i < len(cuts[d]); i++ {
			walk(box{append(slices.Clone(b.start), cuts[d][i-1]), append(slices.Clone(b.shape), cuts[d][i]-cuts[d][i-1])})
		}
	}
	walk(box{})
	w.rnd.Shuffle(len(boxes), func(i, j int) { boxes[i], boxes[j] = boxes[j], boxes[i] })
	full := box{make([]int64, len(t.shape)), t.shape}
	for r := range ranks {
		switch {
		case r == ranks-1 && len(boxes) > ranks:
			w.piece(r, name, full.start, full.shape, 50) // overlaps all the others
		case r < len(boxes):
			w.piece(r, name, boxes[r].start, boxes[r].shape, 50)
		case w.rnd.IntN(2) == 0:
			b := boxes[w.rnd.IntN(len(boxes))] // a replica
			w.piece(r, name, b.start, b.shape, 50)
		}
	}
}

// overlap cuts a tensor into two halves and adds random boxes over both: no
// job shards so, but a plan must hold for whatever the pieces are.
func (w *world) overlap(name string, t whole, step int64) {
	d := w.rnd.IntN(len(t.shape))
	if d < len(t.shape)-1 {
		step = 1
	}
	at := w.rnd.Int64N(t.shape[d]/step+1) * step
	half := func(from, to int64) (start, shape []int64) {
		start, shape = make([]int64, len(t.shape)), slices.Clone(t.shape)
		start[d], shape[d] = from, to-from
		return start, shape
	}
	a, b := w.rnd.IntN(len(w.shards)), w.rnd.IntN(len(w.shards)-1)
	if b >= a {
		b++
	}
	for r := range w.shards {
		var start, shape []int64
		switch r {
		case a:
			start, shape = half(0, at)
		case b:
			start, shape = half(at, t.shape[d])
		default:
			p := w.randomPiece(name)
			if p.Start == nil {
				continue
			}
			start, shape = p.Start, p.Shape
		}
		w.piece(r, name, start, shape, 50)
	}
}

// randomPiece is any box of a tensor, on whole bytes.
func (w *world) randomPiece(name string) Piece {
	t := w.whole[name]
	if w.rnd.IntN(6) == 0 {
		return Piece{Name: name}
	}
	p := Piece{Name: name, Start: []int64{}, Shape: []int64{}}
	for d, n := range t.shape {
		step := int64(1)
		if t.dtype == "F4" && d == len(t.shape)-1 {
			step = 2
		}
		a, b := w.rnd.Int64N(n/step+1)*step, w.rnd.Int64N(n/step+1)*step
		p.Start, p.Shape = append(p.Start, min(a, b)), append(p.Shape, max(a, b)-min(a, b))
	}
	return p
}

// Promises 1 and 2: any box out of any pieces, against a reference that holds
// every tensor whole.
func TestAnyShapeFromAny(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	n := 2000
	if testing.Short() {
		n = 300
	}
	for i := range n {
		w := randomWorld(rnd)
		want := Want{}
		if i%2 == 0 {
			for name := range w.whole {
				for range rnd.IntN(4) {
					want.Pieces = append(want.Pieces, w.randomPiece(name))
				}
			}
		}
		if i%3 == 0 {
			want.Only = []string{"layer.*"}
		}
		p, dst := w.restore(t, want)
		w.check(t, p, dst)
		for i, o := range p.Outputs {
			if o.Rank >= 0 && !bytes.Equal(dst[i], bytes.Repeat([]byte{byte(o.Rank + 1)}, 3+o.Rank)) {
				t.Errorf("own state of rank %d is %v", o.Rank, dst[i])
			}
		}
		if t.Failed() {
			t.Fatalf("round %d: want %+v of %+v", i, want, w.m)
		}
	}
}

// A rank of the same world gets what it saved, piece by piece.
func TestRanksComeAsStored(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))
	for range 300 {
		w := randomWorld(rnd)
		rank := rnd.IntN(len(w.shards))
		p, dst := w.restore(t, Want{Ranks: []int{rank}})
		s := w.m.Shards[rank]
		if len(p.Outputs) != len(s.Tensors) {
			t.Fatalf("%d outputs for %d tensors", len(p.Outputs), len(s.Tensors))
		}
		for i, tensor := range s.Tensors {
			if o := p.Outputs[i]; o.Name != tensor.Name || !slices.Equal(o.Shape, tensor.Shape) || o.DType != tensor.DType {
				t.Errorf("output %d is %+v, want %+v", i, o, tensor)
			}
			if !bytes.Equal(dst[i], w.shards[rank][tensor.Offset:tensor.Offset+tensor.Size]) {
				t.Errorf("%s differs from what rank %d saved", tensor.Name, rank)
			}
		}
		if ranks := p.Ranks(); len(ranks) > 1 || len(ranks) == 1 && ranks[0] != rank {
			t.Errorf("reads ranks %v, want %d alone", ranks, rank)
		}
	}
}

// The reads of a plan may be fed in any pieces, at the same time.
func TestScatterInAnyPieces(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 200 {
		w := randomWorld(rnd)
		p, err := NewPlan(w.m, Want{})
		if err != nil {
			t.Fatal(err)
		}
		dst := buffers(p)
		for _, rank := range p.Ranks() {
			out, err := p.Scatter(rank, dst)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			shard := w.shards[rank]
			for off := 0; off < len(shard); {
				n := min(1+rnd.IntN(200), len(shard)-off)
				if off == 0 {
					n = headerSize
				}
				part, at := shard[off:off+n], int64(off)
				wg.Go(func() {
					if _, err := out.WriteAt(part, at); err != nil {
						t.Error(err)
					}
				})
				off += n
			}
			wg.Wait()
		}
		w.check(t, p, dst)
		if t.Failed() {
			t.Fatalf("of %+v", w.m)
		}
	}
}

func TestOlder(t *testing.T) {
	rec := func(run catalog.Run, step int64, attempt int, state catalog.State) catalog.SetRecord {
		return catalog.SetRecord{SetID: catalog.SetID{Run: run, Step: step, Attempt: attempt}, State: state}
	}
	sets := []catalog.SetRecord{
		rec("r", 20, 2, catalog.Committed), rec("r", 50, 1, catalog.Committed), rec("r", 40, 1, catalog.Writing),
		rec("q", 30, 1, catalog.Committed), rec("r", 30, 1, catalog.Committed), rec("r", 20, 1, catalog.Committed),
	}
	for _, c := range []struct {
		bad  catalog.SetID
		lost []int64
		want string
	}{
		{sets[0].SetID, nil, "r@50#1"},
		{sets[1].SetID, nil, "r@30#1"},
		{sets[0].SetID, []int64{50, 30}, "r@20#1"},
		{sets[5].SetID, nil, ""},
		{catalog.SetID{Run: "r", Step: 45, Attempt: 1}, nil, "r@30#1"}, // pruned meanwhile
	} {
		got, ok := Older(sets, c.bad, func(s catalog.SetRecord) bool { return !slices.Contains(c.lost, s.Step) })
		if s := got.SetID.String(); ok != (c.want != "") || ok && s != c.want {
			t.Errorf("older than %v without %v = %s %v, want %q", c.bad, c.lost, s, ok, c.want)
		}
	}
}
