package restore

import (
	"cmp"
	"fmt"
	"io/fs"
	"iter"
	"slices"

	"github.com/ckptd/ckptd/catalog"
)

// Want says what to restore. The zero Want is everything, each tensor whole.
type Want struct {
	// Only holds globs on the names of tensors, as path.Match reads them, except
	// that "*" matches "/" too; a name matches itself, and "" every name.
	// Empty: all tensors, or, when there are Pieces, none beside them.
	Only []string
	// Ranks restricts the reading to the shards of these ranks. Tensors meant
	// by Only then come as those ranks hold them: pieces stay pieces. nil: all.
	Ranks []int
	// Pieces are boxes of tensors, whatever boxes they were saved in.
	Pieces []Piece
	// Near are ranks whose shards are cheap to read from here, if any: where
	// several ranks hold the same bytes, these are asked first.
	Near []int
}

// Piece is a box of a tensor, in elements. Both Start and Shape nil mean the whole.
type Piece struct {
	Name         string
	Start, Shape []int64
}

// Plan is what to read from which shard, and where it goes.
type Plan struct {
	Set     catalog.SetID
	Outputs []Output // those of Want.Pieces in their order, then those of Want.Only in the manifest's
	Reads   []Read   // by rank, then offset

	m *catalog.Manifest
}

// Output is an array to be filled, row-major.
type Output struct {
	Name   string
	DType  catalog.DType
	Global []int64 // shape of the whole tensor
	Start  []int64 // where in it this output begins
	Shape  []int64
	Size   int64 // bytes
	// Rank is -1, or the rank whose own this is, where ranks hold different
	// things under one name.
	Rank int
}

// Read is one strided copy from a shard into an output.
type Read struct {
	Rank     int
	Tensor   string
	Off, Len int64 // the bytes of the shard from its first run to its last
	Out      int   // index of the output
	At       int64 // where in it the first run goes
	Run      int64 // bytes of each run
	Dims     []Dim // how runs repeat, outermost first; empty: there is one
}

// Copy is one run of a read: Len bytes at Src in the shard, Dst in the output.
type Copy struct{ Src, Dst, Len int64 }

// Copies gives the runs of the read, in the order of their place in the shard.
func (r *Read) Copies() iter.Seq[Copy] {
	return func(yield func(Copy) bool) { copies(r.Dims, Copy{r.Off, r.At, r.Run}, yield) }
}

func copies(dims []Dim, c Copy, yield func(Copy) bool) bool {
	if len(dims) == 0 {
		return yield(c)
	}
	for range dims[0].N {
		if !copies(dims[1:], c, yield) {
			return false
		}
		c.Src += dims[0].Src
		c.Dst += dims[0].Dst
	}
	return true
}

// span is the bytes from the first run of dims to the end of the last.
func span(dims []Dim, run int64) int64 {
	for _, d := range dims {
		run += (d.N - 1) * d.Src
	}
	return run
}

// NewPlan plans how to read what is wanted of the set. It does no I/O.
//
// A name, glob or rank that is not in the set, or an element that no shard
// holds, is fs.ErrNotExist; a box outside its tensor is ErrInvalid, and so is
// one of a tensor that is not the same in all ranks, unless Want.Ranks names
// one of them. A manifest that contradicts itself is ErrCorrupt.
func NewPlan(m *catalog.Manifest, want Want) (*Plan, error) {
	p, err := newPlan(m, want)
	if err != nil {
		return nil, fmt.Errorf("plan %v: %w", m.Set, err)
	}
	return p, nil
}

func newPlan(m *catalog.Manifest, want Want) (*Plan, error) {
	x, err := newIndex(m, want.Ranks)
	if err != nil {
		return nil, err
	}
	b := &builder{x: x, plan: &Plan{Set: m.Set, m: m}}
	if err := b.pieces(want.Pieces); err != nil {
		return nil, err
	}
	only := want.Only
	if len(only) == 0 && len(want.Pieces) == 0 {
		only = []string{"*"}
	}
	if err := b.globs(only, want.Ranks != nil); err != nil {
		return nil, err
	}
	b.spread(want.Near)
	if err := b.settle(); err != nil {
		return nil, err
	}
	return b.plan, nil
}

// builder gathers a plan. Those of its reads that are in choices hold an
// offset within their tensor until a rank is chosen.
type builder struct {
	x       *index
	plan    *Plan
	reads   readList
	choices []choice
	a       array // reused
	rest    [2][]box
	mem     arena
}

// choice is a read whose bytes several ranks hold.
type choice struct {
	read int
	from []entry
}

// readList holds reads in chunks: a plan may have millions, and a slice that
// grows would be copied many times over.
type readList struct {
	chunks [][]Read
	n      int
}

const chunkReads = 1024

func (l *readList) add(r Read) {
	if l.n%chunkReads == 0 {
		l.chunks = append(l.chunks, make([]Read, 0, chunkReads))
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, r)
	l.n++
}

func (l *readList) at(i int) *Read { return &l.chunks[i/chunkReads][i%chunkReads] }

func (b *builder) pieces(pieces []Piece) error {
	last := int32(-1)
	for i, w := range pieces {
		id, ok := b.x.byName[w.Name]
		if !ok {
			return notFound(w.Name, b.x.names)
		}
		if id != last { // callers mostly give the boxes of one tensor together
			if err := b.x.array(id, &b.a); err != nil {
				return err
			}
			last = id
		}
		if b.a.own {
			return fmt.Errorf("piece %d of tensor %q: %w: its type or shape is not the same in all ranks; name one rank", i, w.Name, catalog.ErrInvalid)
		}
		part := box{w.Start, w.Shape}
		if w.Start == nil && w.Shape == nil {
			part = box{zeros(len(b.a.global)), b.a.global}
		}
		if !part.within(b.a.global) {
			return fmt.Errorf("piece %d of tensor %q: %w: start %v shape %v is not in %v", i, w.Name, catalog.ErrInvalid, w.Start, w.Shape, b.a.global)
		}
		if err := b.output(part); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) globs(only []string, stored bool) error {
	match, err := newMatcher(only)
	if err != nil {
		return err
	}
	for id, name := range b.x.names {
		if !match.match(name) {
			continue
		}
		if err := b.x.array(int32(id), &b.a); err != nil {
			return err
		}
		switch {
		case b.a.own:
			if err := b.own(); err != nil {
				return err
			}
		case stored:
			for i := range b.a.cells {
				c := &b.a.cells[i]
				if err := b.read(b.add(c.box, -1), c.box, c); err != nil {
					return err
				}
			}
		default:
			if err := b.output(box{zeros(len(b.a.global)), b.a.global}); err != nil {
				return err
			}
		}
	}
	return match.missing(b.x.names)
}

// own adds an output for each rank of a tensor that is not the same in all.
func (b *builder) own() error {
	for i := range b.a.cells {
		c := &b.a.cells[i]
		t := b.x.tensor(c.from[0])
		b.a.dtype, b.a.width, b.a.global = t.DType, t.DType.Bits(), globalOf(t)
		if err := b.read(b.add(c.box, int(c.from[0].rank)), c.box, c); err != nil {
			return err
		}
	}
	return nil
}

// add appends an output for a box of the array at hand, and gives its index.
func (b *builder) add(part box, rank int) int {
	size, _ := sizeOf(b.a.width, part.shape) // a box that ends within a byte has a read that says so
	b.plan.Outputs = append(b.plan.Outputs, Output{
		Name: b.a.name, DType: b.a.dtype, Global: b.a.global, Size: size, Rank: rank,
		Start: slices.Clone(part.start), Shape: part.shape,
	})
	return len(b.plan.Outputs) - 1
}

// maxRest bounds the boxes that are left of an output while cells cover it.
// Grids leave a handful; only overlaps that no sharding makes leave thousands.
const maxRest = 1 << 12

// output adds an output of the array at hand and the reads that cover it, each
// element once, whatever the cells overlap in.
func (b *builder) output(part box) error {
	if size, ok := sizeOf(b.a.width, part.shape); !ok {
		return fmt.Errorf("tensor %q: %w: shape %v of %s does not fill whole bytes", b.a.name, catalog.ErrInvalid, part.shape, b.a.dtype)
	} else if size == 0 {
		b.add(part, -1)
		return nil
	}
	out := b.add(part, -1)
	b.mem.reset()
	rest, next := append(b.rest[0][:0], part), b.rest[1][:0]
	defer func() { b.rest = [2][]box{rest, next} }()
	cells := b.a.overlapping(part)
	for i := range cells {
		c := &cells[i]
		if !c.meets(part) {
			continue
		}
		next = next[:0]
		for _, r := range rest {
			if !c.meets(r) {
				next = append(next, r)
				continue
			}
			take := r.and(c.box, &b.mem)
			if err := b.read(out, take, c); err != nil {
				return err
			}
			next = r.minus(take, next, &b.mem)
		}
		if len(next) > maxRest {
			return fmt.Errorf("tensor %q: %w: its pieces overlap in too many ways", b.a.name, catalog.ErrCorrupt)
		}
		if rest, next = next, rest; len(rest) == 0 {
			return nil
		}
	}
	return fmt.Errorf("tensor %q: %w: no shard holds its elements from %v on; name the ranks to get the pieces as they are", b.a.name, fs.ErrNotExist, rest[0].start)
}

// read adds the copy of part from a cell to an output.
func (b *builder) read(out int, part box, c *cell) error {
	if part.empty() {
		return nil
	}
	o := &b.plan.Outputs[out]
	from, to, run, dims, ok := stride(b.a.width, part, c.box, box{o.Start, o.Shape})
	if !ok {
		return fmt.Errorf("tensor %q: %w: start %v shape %v of %s does not lie on whole bytes", b.a.name, catalog.ErrInvalid, o.Start, o.Shape, o.DType)
	}
	r := Read{Rank: int(c.from[0].rank), Tensor: b.a.name, Off: from, Len: span(dims, run), Out: out, At: to, Run: run, Dims: dims}
	if len(c.from) > 1 {
		b.choices = append(b.choices, choice{b.reads.n, c.from})
	} else {
		r.Off += b.x.tensor(c.from[0]).Offset
	}
	b.reads.add(r)
	return nil
}

// settle sorts the reads and checks that each lies in its shard.
func (b *builder) settle() error {
	// Reads come by name; names mostly have the order of offsets. Counting
	// the ranks leaves little to sort.
	first := make([]int, len(b.x.m.Shards)+1)
	for i := range b.reads.n {
		r := b.reads.at(i)
		if r.Off+r.Len > b.x.m.Shards[r.Rank].Size { // neither can be large enough to overflow
			return fmt.Errorf("rank %d tensor %q: %w: it lies outside its shard", r.Rank, r.Tensor, catalog.ErrCorrupt)
		}
		first[r.Rank+1]++
	}
	for i := 1; i < len(first); i++ {
		first[i] += first[i-1]
	}
	sorted := make([]Read, b.reads.n)
	for i := range b.reads.n {
		r := b.reads.at(i)
		sorted[first[r.Rank]] = *r
		first[r.Rank]++
	}
	byOffset := func(p, q Read) int {
		return cmp.Or(cmp.Compare(p.Off, q.Off), cmp.Compare(p.Out, q.Out), cmp.Compare(p.At, q.At))
	}
	from := 0
	for _, to := range first[:len(b.x.m.Shards)] { // first now holds where each rank ends
		if part := sorted[from:to]; !slices.IsSortedFunc(part, byOffset) {
			slices.SortFunc(part, byOffset)
		}
		from = to
	}
	b.plan.Reads = sorted
	return nil
}
