package restore

import (
	"cmp"
	"fmt"
	"io/fs"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

// entry is one tensor of one shard: m.Shards[rank].Tensors[at].
type entry struct{ rank, at int32 }

// index finds the tensors of a manifest by name. It costs 12 bytes a tensor
// and the names; a manifest of five million is scanned twice, not copied.
type index struct {
	m       *catalog.Manifest
	names   []string // in the order they first appear
	byName  map[string]int32
	first   []int // by name: where its entries begin in entries; one more at the end
	entries []entry
}

// newIndex indexes the shards of the given ranks, nil for all.
func newIndex(m *catalog.Manifest, ranks []int) (*index, error) {
	x := &index{m: m, byName: map[string]int32{}}
	if ranks == nil {
		ranks = make([]int, len(m.Shards))
		for i := range ranks {
			ranks[i] = i
		}
	}
	ranks = slices.Compact(slices.Sorted(slices.Values(ranks)))
	total := 0
	for _, r := range ranks {
		if r < 0 || r >= len(m.Shards) {
			return nil, fmt.Errorf("rank %d: %w: the set has ranks 0 to %d", r, fs.ErrNotExist, len(m.Shards)-1)
		}
		if m.Shards[r].Rank != r {
			return nil, fmt.Errorf("shard %d is of rank %d: %w", r, m.Shards[r].Rank, catalog.ErrCorrupt)
		}
		total += len(m.Shards[r].Tensors)
	}
	ids := make([]int32, 0, total)
	for _, r := range ranks {
		ids = x.name(m.Shards[r].Tensors, ids)
	}
	x.group(ranks, ids)
	return x, nil
}

// name appends the id of each tensor's name to ids, which ends with those of
// the shard before: ranks mostly hold the same names in the same order, and
// comparing with the expected one costs less than looking it up.
func (x *index) name(tensors []catalog.Tensor, ids []int32) []int32 {
	expected := int32(-1)
	for i := range tensors {
		name := tensors[i].Name
		if expected++; int(expected) >= len(x.names) || x.names[expected] != name {
			id, ok := x.byName[name]
			if !ok {
				id = int32(len(x.names))
				x.names = append(x.names, name)
				x.byName[name] = id
			}
			expected = id
		}
		ids = append(ids, expected)
	}
	return ids
}

// group sorts the tensors by name, and by rank within a name.
func (x *index) group(ranks []int, ids []int32) {
	x.first = make([]int, len(x.names)+2) // shifted by one while filling
	for _, id := range ids {
		x.first[id+2]++
	}
	for i := 2; i < len(x.first); i++ {
		x.first[i] += x.first[i-1]
	}
	x.entries = make([]entry, len(ids))
	i := 0
	for _, r := range ranks {
		for at := range x.m.Shards[r].Tensors {
			at1 := &x.first[ids[i]+1]
			x.entries[*at1] = entry{int32(r), int32(at)}
			*at1++
			i++
		}
	}
	x.first = x.first[:len(x.names)+1]
}

func (x *index) tensor(e entry) *catalog.Tensor { return &x.m.Shards[e.rank].Tensors[e.at] }

// array is one named tensor with every copy of every piece of it.
type array struct {
	name   string
	dtype  catalog.DType
	width  int64 // bits of an element
	global []int64
	cells  []cell // the different pieces, sorted along axis
	axis   int    // the dimension with the most different beginnings
	// own: the ranks hold different things under this name (a random
	// generator's state, say). Then each cell has one rank, and global is nil.
	own bool
}

// cell is one piece, with the ranks that hold it.
type cell struct {
	box
	from []entry
	end  int64 // the farthest end along axis of this cell and those before it
}

// array gathers the tensor with an id; the result is valid until the next
// call with the same a.
func (x *index) array(id int32, a *array) error {
	entries := x.entries[x.first[id]:x.first[id+1]]
	t0 := x.tensor(entries[0])
	*a = array{name: t0.Name, dtype: t0.DType, width: t0.DType.Bits(), global: globalOf(t0), cells: a.cells[:0]}
	if _, ok := sizeOf(a.width, a.global); !ok {
		return corrupt(entries[0], t0, "its type or shape is impossible")
	}
	for i, e := range entries {
		t := x.tensor(e)
		if i > 0 && entries[i-1].rank == e.rank {
			return fmt.Errorf("rank %d has two tensors %q: %w", e.rank, t.Name, catalog.ErrCorrupt)
		}
		alike := t.DType == a.dtype && slices.Equal(globalOf(t), a.global)
		a.own = a.own || !alike
		if err := a.check(e, t, alike); err != nil {
			return err
		}
		a.cells = append(a.cells, cell{box: boxOf(t), from: entries[i : i+1 : i+1]})
	}
	if a.own {
		a.global = nil
		return nil
	}
	a.join(entries)
	return nil
}

// join makes one cell of all copies of the same piece, and sorts them.
func (a *array) join(entries []entry) {
	if len(a.cells) > 1 {
		same := true
		for i := 1; i < len(a.cells) && same; i++ {
			same = a.cells[i].compare(a.cells[0].box) == 0
		}
		if same { // replicated everywhere, by far the most frequent case beside "all different"
			a.cells = a.cells[:1]
			a.cells[0].from = entries
			return
		}
		a.axis = a.widest()
		byAxis := func(p, q cell) int {
			return cmp.Or(cmp.Compare(p.start[a.axis], q.start[a.axis]), p.compare(q.box))
		}
		if !slices.IsSortedFunc(a.cells, byAxis) {
			slices.SortStableFunc(a.cells, byAxis) // stable: ranks stay in order within a piece
		}
		n := 0
		for _, c := range a.cells[1:] {
			if a.cells[n].compare(c.box) == 0 {
				a.cells[n].from = append(a.cells[n].from, c.from...) // capacity was cut: this copies
			} else {
				n++
				a.cells[n] = c
			}
		}
		a.cells = a.cells[:n+1]
	}
	end := int64(0)
	for i := range a.cells {
		if len(a.global) > 0 {
			end = max(end, a.cells[i].start[a.axis]+a.cells[i].shape[a.axis])
		}
		a.cells[i].end = end
	}
}

// widest is the dimension in which the cells change most often from one to the next.
func (a *array) widest() int {
	axis, most := 0, -1
	for d := range a.global {
		n := 0
		for i := 1; i < len(a.cells); i++ {
			if a.cells[i].start[d] != a.cells[i-1].start[d] {
				n++
			}
		}
		if n > most {
			axis, most = d, n
		}
	}
	return axis
}

// overlapping is the run of cells that may meet b; the others cannot.
func (a *array) overlapping(b box) []cell {
	if len(a.global) == 0 || len(a.cells) < 8 {
		return a.cells
	}
	from, to := b.start[a.axis], b.start[a.axis]+b.shape[a.axis]
	lo, _ := slices.BinarySearchFunc(a.cells, from, func(c cell, v int64) int { return cmp.Compare(c.end, v+1) })
	hi, _ := slices.BinarySearchFunc(a.cells, to, func(c cell, v int64) int { return cmp.Compare(c.start[a.axis], v) })
	return a.cells[lo:max(lo, hi)]
}

// check refuses a tensor that contradicts itself or its shard. One that is
// alike has the type and the whole shape of the array, which are checked.
func (a *array) check(e entry, t *catalog.Tensor, alike bool) error {
	width := a.width
	if !alike {
		width = t.DType.Bits()
	}
	size, ok := sizeOf(width, t.Shape)
	if !ok {
		return corrupt(e, t, "its type or shape is impossible")
	}
	if size != t.Size || t.Offset < 0 || t.Offset > catalog.MaxShardSize {
		return corrupt(e, t, "its size does not fit its shape")
	}
	if len(t.Global) == 0 && len(t.Start) == 0 {
		return nil
	}
	if !alike {
		_, ok = sizeOf(width, t.Global)
	}
	if !ok || !boxOf(t).within(t.Global) {
		return corrupt(e, t, "the piece lies outside the whole")
	}
	return nil
}

func corrupt(e entry, t *catalog.Tensor, why string) error {
	return fmt.Errorf("rank %d tensor %q: %w: %s", e.rank, t.Name, catalog.ErrCorrupt, why)
}

// globalOf is the shape of the whole that the tensor is, or is a piece of.
func globalOf(t *catalog.Tensor) []int64 {
	if len(t.Global) == 0 {
		return t.Shape
	}
	return t.Global
}

func boxOf(t *catalog.Tensor) box {
	if len(t.Global) == 0 {
		return box{zeros(len(t.Shape)), t.Shape}
	}
	return box{t.Start, t.Shape}
}

var noughts [maxDims]int64

// zeros is shared: never written.
func zeros(n int) []int64 {
	if n > maxDims {
		return make([]int64, n)
	}
	return noughts[:n:n]
}
