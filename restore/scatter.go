package restore

import (
	"fmt"
	"io"
	"sort"

	"github.com/ckptd/ckptd/catalog"
)

// Scatter gives the writer that puts the bytes of one rank's shard where the
// plan wants them: what is written at an offset of the shard is copied into
// the outputs dst, one slice of Output.Size bytes each, and dropped where
// nothing wants it. Writes that do not overlap may be made at the same time.
func (p *Plan) Scatter(rank int, dst [][]byte) (io.WriterAt, error) {
	if err := p.checkBuffers(dst); err != nil {
		return nil, fmt.Errorf("scatter %v: %w", p.Set, err)
	}
	s := &scatter{reads: p.Of(rank), dst: dst}
	s.ends = make([]int64, len(s.reads))
	end := int64(0)
	for i := range s.reads {
		r := &s.reads[i]
		end = max(end, r.Off+r.Len)
		s.ends[i] = end
	}
	return s, nil
}

func (p *Plan) checkBuffers(dst [][]byte) error {
	if len(dst) != len(p.Outputs) {
		return fmt.Errorf("%d buffers for %d outputs: %w", len(dst), len(p.Outputs), catalog.ErrInvalid)
	}
	for i := range dst {
		if o := &p.Outputs[i]; int64(len(dst[i])) != o.Size {
			return fmt.Errorf("tensor %q: %w: a buffer of %d bytes for %d", o.Name, catalog.ErrInvalid, len(dst[i]), o.Size)
		}
	}
	return nil
}

type scatter struct {
	reads []Read  // of one rank, by offset
	ends  []int64 // the farthest end of this read and those before it
	dst   [][]byte
}

var _ io.WriterAt = (*scatter)(nil)

func (s *scatter) WriteAt(b []byte, off int64) (int, error) {
	end := off + int64(len(b))
	for i := sort.Search(len(s.ends), func(i int) bool { return s.ends[i] > off }); i < len(s.reads); i++ {
		r := &s.reads[i]
		if r.Off >= end {
			break
		}
		if r.Off+r.Len > off {
			w := window{b: b, off: off, out: s.dst[r.Out], run: r.Run}
			w.copy(r.Dims, r.Off, r.At)
		}
	}
	return len(b), nil
}

// window copies the runs of one read that lie in b, which holds the bytes of
// the shard from off on.
type window struct {
	b   []byte
	off int64
	out []byte
	run int64
}

func (w *window) copy(dims []Dim, src, dst int64) {
	end := w.off + int64(len(w.b))
	if len(dims) == 0 {
		if from, to := max(src, w.off), min(src+w.run, end); from < to {
			copy(w.out[dst+from-src:dst+to-src], w.b[from-w.off:to-w.off])
		}
		return
	}
	d, inner := dims[0], span(dims[1:], w.run)
	first := int64(0) // the first step that reaches into the window
	if before := w.off - src - inner; before >= 0 {
		first = before/d.Src + 1
	}
	for i := first; i < d.N && src+i*d.Src < end; i++ {
		w.copy(dims[1:], src+i*d.Src, dst+i*d.Dst)
	}
}
