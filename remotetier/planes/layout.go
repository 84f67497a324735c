package planes

import "github.com/ckptd/ckptd/catalog"

// Run says that raw bytes are elements of one width.
type Run struct {
	Off   int64 // of the first byte
	Size  int64 // bytes
	Width int   // bytes of an element: 1, 2, 4 or 8
}

// Layout says which bytes of a blob are elements of which width: runs in the
// order of their offsets, apart from each other. Bytes in no run are taken as
// they are.
type Layout []Run

const (
	// minRun is the fewest bytes that are worth a run of their own.
	minRun = 1 << 10
	// maxRuns bounds the runs of a frame.
	maxRuns = 1024
)

// Add appends a run, to the last one where it goes on.
func (l *Layout) Add(r Run) {
	if r.Size <= 0 {
		return
	}
	if n := len(*l) - 1; n >= 0 {
		last := &(*l)[n]
		if last.Width == r.Width && last.Off+last.Size == r.Off && last.Size%int64(r.Width) == 0 {
			last.Size += r.Size
			return
		}
	}
	*l = append(*l, r)
}

// cut gives the runs of the n bytes at off, which they cover without a gap,
// with offsets from there. next is where to look in l, and where to look for the
// bytes that follow.
func (l Layout) cut(off, n int64, next int) (runs []Run, _ int) {
	end := off + n
	at := off
	plain := func(to int64) {
		if to <= at {
			return
		}
		if k := len(runs) - 1; k >= 0 && runs[k].Width == 1 {
			runs[k].Size += to - at
		} else {
			runs = append(runs, Run{Off: at - off, Size: to - at, Width: 1})
		}
		at = to
	}
	for next < len(l) && l[next].Off+l[next].Size <= off {
		next++
	}
	for i := next; i < len(l) && l[i].Off < end && len(runs) < maxRuns-2; i++ {
		r := l[i]
		w := int64(r.Width)
		from := max(r.Off, at)
		from += (w - (from-r.Off)%w) % w // an element that the border cuts is taken as it is
		size := (min(r.Off+r.Size, end) - from) / w * w
		if w == 1 || size < minRun {
			continue
		}
		plain(from)
		runs = append(runs, Run{Off: from - off, Size: size, Width: r.Width})
		at = from + size
	}
	plain(end)
	return runs, next
}

// LayoutOf is the layout of a shard with these tensors, which are in the order
// of their data.
func LayoutOf(tensors []catalog.Tensor) Layout {
	var l Layout
	for i := range tensors {
		if w := widthOf(tensors[i].DType); w > 1 {
			l.Add(Run{Off: tensors[i].Offset, Size: tensors[i].Size, Width: w})
		}
	}
	return l
}

// widthOf is the bytes of an element whose bytes differ in significance.
func widthOf(d catalog.DType) int {
	if d == "C64" {
		return 4 // two floats
	}
	return int(d.Bits() / 8)
}
