package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newDiffCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "diff REF REF", Short: "Tensors added, removed, changed, with how much", Args: args(2, 2),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, ref := range args {
				if err := checkRef(ref); err != nil {
					return err
				}
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				old, err := c.Open(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				defer old.Close()
				new, err := c.Open(cmd.Context(), args[1])
				if err != nil {
					return err
				}
				defer new.Close()
				d, err := a.diff(cmd.Context(), old, new)
				if err != nil {
					return err
				}
				return a.print(d, func(w io.Writer) { printDiff(w, d) })
			})
		},
	}
}

// diffResult is what --json prints.
type diffResult struct {
	Old     string       `json:"old"`
	New     string       `json:"new"`
	Added   []diffTensor `json:"added"`
	Removed []diffTensor `json:"removed"`
	Changed []diffTensor `json:"changed"`
	Same    int          `json:"same"` // tensors
}

// diffTensor is one difference.
type diffTensor struct {
	Name  string        `json:"name"`
	DType catalog.DType `json:"dtype"`
	Shape []int64       `json:"shape"`
	Size  int64         `json:"size"` // bytes
	// Of a change:
	Was     string   `json:"was,omitempty"`           // dtype and shape before, when they are others
	Bytes   int64    `json:"changed_bytes,omitempty"` // bytes that differ
	MaxDiff *float64 `json:"max_abs_diff,omitempty"`  // largest difference of two elements, for numbers
	NotNums int64    `json:"not_comparable,omitempty"`
}

func (a *app) diff(ctx context.Context, old, new *ckpt.Reader) (*diffResult, error) {
	d := &diffResult{Old: old.ID().String(), New: new.ID().String(), Added: []diffTensor{}, Removed: []diffTensor{}, Changed: []diffTensor{}}
	was, err := wholes(old)
	if err != nil {
		return nil, err
	}
	is, err := wholes(new)
	if err != nil {
		return nil, err
	}
	var both []string
	total := int64(0)
	for name, t := range is {
		o, ok := was[name]
		row := diffTensor{Name: name, DType: t.DType, Shape: t.Shape, Size: t.Size}
		switch {
		case !ok:
			d.Added = append(d.Added, row)
		case o.DType != t.DType || !slices.Equal(o.Shape, t.Shape):
			row.Was = fmt.Sprintf("%s %s", o.DType, shapeOf(o.Shape))
			d.Changed = append(d.Changed, row)
		case sameShard(old, new, o, t):
			d.Same++
		default:
			both = append(both, name)
			total += t.Size
		}
	}
	for name, t := range was {
		if _, ok := is[name]; !ok {
			d.Removed = append(d.Removed, diffTensor{Name: name, DType: t.DType, Shape: t.Shape, Size: t.Size})
		}
	}
	p := a.progress("diff", total, "bytes")
	defer p.end()
	slices.Sort(both)
	for _, name := range both {
		row, err := compare(ctx, old, new, was[name], is[name], p)
		if err != nil {
			return nil, err
		}
		if row.Bytes > 0 {
			d.Changed = append(d.Changed, row)
		} else {
			d.Same++
		}
	}
	for _, list := range [][]diffTensor{d.Added, d.Removed, d.Changed} {
		slices.SortFunc(list, func(a, b diffTensor) int { return cmp.Compare(a.Name, b.Name) })
	}
	return d, nil
}

// wholes gives the tensors of a set by name, each as a whole.
func wholes(r *ckpt.Reader) (map[string]ckpt.Tensor, error) {
	out := make(map[string]ckpt.Tensor)
	for _, t := range r.Tensors() {
		if _, ok := out[t.Name]; ok {
			continue
		}
		whole, err := r.Tensor(t.Name)
		if err != nil {
			return nil, err
		}
		out[t.Name] = whole
	}
	return out, nil
}

// sameShard reports whether a tensor lies at one place of two equal files: then
// nobody needs to read it.
func sameShard(old, new *ckpt.Reader, o, t ckpt.Tensor) bool {
	if o.Rank < 0 || t.Rank < 0 || o.Offset != t.Offset {
		return false
	}
	return old.Manifest().Shards[o.Rank].Root == new.Manifest().Shards[t.Rank].Root
}

const diffChunk = 8 << 20 // bytes; a multiple of every element's size

// compare reads both; one in pieces is put together in memory.
func compare(ctx context.Context, old, new *ckpt.Reader, o, t ckpt.Tensor, p *progress) (diffTensor, error) {
	row := diffTensor{Name: t.Name, DType: t.DType, Shape: t.Shape, Size: t.Size}
	a, err := readerOf(ctx, old, o)
	if err != nil {
		return row, err
	}
	b, err := readerOf(ctx, new, t)
	if err != nil {
		return row, err
	}
	x, y := make([]byte, min(diffChunk, t.Size)), make([]byte, min(diffChunk, t.Size))
	for off := int64(0); off < t.Size; off += diffChunk {
		if err := ctx.Err(); err != nil {
			return row, err
		}
		n := min(diffChunk, t.Size-off)
		if err := a(x[:n], off); err != nil {
			return row, err
		}
		if err := b(y[:n], off); err != nil {
			return row, err
		}
		row.add(x[:n], y[:n])
		p.add(n)
	}
	return row, nil
}

func readerOf(ctx context.Context, r *ckpt.Reader, t ckpt.Tensor) (func(p []byte, off int64) error, error) {
	if t.Rank >= 0 {
		return func(p []byte, off int64) error {
			_, err := r.ReadAt(t.Name, p, off)
			if err == io.EOF {
				err = nil
			}
			return err
		}, nil
	}
	whole := make([]byte, t.Size)
	if err := r.ReadTensor(ctx, t.Name, whole); err != nil {
		return nil, err
	}
	return func(p []byte, off int64) error { copy(p, whole[off:]); return nil }, nil
}

// add counts what differs between two stretches of elements.
func (d *diffTensor) add(x, y []byte) {
	width, number := elements(d.DType)
	for i := 0; i+width <= len(x); i += width {
		a, b := x[i:i+width], y[i:i+width]
		if string(a) == string(b) {
			continue
		}
		for j := range a {
			if a[j] != b[j] {
				d.Bytes++
			}
		}
		if number == nil {
			continue
		}
		diff := math.Abs(number(b) - number(a))
		if math.IsNaN(diff) {
			d.NotNums++ // a NaN, or the same infinity
		} else if d.MaxDiff == nil || diff > *d.MaxDiff {
			d.MaxDiff = &diff
		}
	}
	if d.MaxDiff != nil && math.IsInf(*d.MaxDiff, 0) { // JSON has no infinity
		most := math.MaxFloat64
		d.MaxDiff = &most
	}
}

func printDiff(w io.Writer, d *diffResult) {
	table(w, func(row func(...any)) {
		for _, t := range d.Added {
			row("added", t.Name, t.DType, shapeOf(t.Shape), size(t.Size))
		}
		for _, t := range d.Removed {
			row("removed", t.Name, t.DType, shapeOf(t.Shape), size(t.Size))
		}
		for _, t := range d.Changed {
			row("changed", t.Name, t.DType, shapeOf(t.Shape), size(t.Size), t.how())
		}
	})
	fmt.Fprintf(w, "%d added, %d removed, %d changed, %d the same\n", len(d.Added), len(d.Removed), len(d.Changed), d.Same)
}

// how says how much changed.
func (d *diffTensor) how() string {
	if d.Was != "" {
		return "was " + d.Was
	}
	s := fmt.Sprintf("%s of its bytes", percent(d.Bytes, d.Size))
	if d.MaxDiff != nil {
		s += fmt.Sprintf(", by %.3g at most", *d.MaxDiff)
	}
	if d.NotNums > 0 {
		s += fmt.Sprintf(", %d to or from NaN", d.NotNums)
	}
	return s
}

func percent(n, of int64) string {
	if v := 100 * float64(n) / float64(of); v >= 0.01 {
		return fmt.Sprintf("%.2f%%", v)
	}
	return "<0.01%"
}
