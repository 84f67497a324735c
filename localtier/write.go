package localtier

import (
	"fmt"
	"io/fs"
	"runtime/debug"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// WriteAt writes p to the staging file and sums its blocks meanwhile. off must
// be a multiple of catalog.BlockSize, and so must len(p) except at the blob's
// end. Blocks may come in any order, concurrently, and again after an error;
// writing one block twice at the same time is ErrConflict. p is fastest on a
// page boundary.
func (in *Ingest) WriteAt(p []byte, off int64) error {
	if err := in.writeAt(p, off); err != nil {
		return fmt.Errorf("write %s at %d: %w", in.name, off, err)
	}
	return nil
}

func (in *Ingest) writeAt(p []byte, off int64) error {
	end := off + int64(len(p))
	if off < 0 || off%catalog.BlockSize != 0 || len(p) == 0 || end > in.size || end != in.size && end%catalog.BlockSize != 0 {
		return fmt.Errorf("%w: %d bytes do not fill whole blocks of %d", catalog.ErrInvalid, len(p), in.size)
	}
	first, n := int(off/catalog.BlockSize), catalog.Blocks(int64(len(p)))
	if err := in.begin(first, n); err != nil {
		return err
	}
	// The sum is taken while the device works, so that it costs no time.
	crcs := make([]uint32, n)
	var sum sync.WaitGroup
	var sumErr error
	sum.Go(func() { sumErr = guard(func() { sumBlocks(crcs, p) }) })
	err := in.put(p, off)
	sum.Wait()
	if err != nil {
		in.t.failed(in.d, err)
		err = fmt.Errorf("disk %s: %w", in.d.dir, err)
	} else {
		err = sumErr
	}
	in.end(first, crcs, err)
	return err
}

func (in *Ingest) begin(first, n int) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.done {
		return fs.ErrClosed
	}
	for i := first; i < first+n; i++ {
		if in.mu.state[i] == writing {
			return fmt.Errorf("%w: block %d is being written", catalog.ErrConflict, i)
		}
	}
	for i := first; i < first+n; i++ {
		in.mu.state[i] = writing
	}
	in.mu.writing++
	return nil
}

func (in *Ingest) end(first int, crcs []uint32, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.writing--
	for i, crc := range crcs {
		if err != nil {
			in.mu.state[first+i] = missing
			continue
		}
		in.mu.state[first+i], in.mu.crcs[first+i] = written, crc
	}
}

func sumBlocks(crcs []uint32, p []byte) {
	for i := range crcs {
		crcs[i] = catalog.Sum32C(p[i*catalog.BlockSize : min(len(p), (i+1)*catalog.BlockSize)])
	}
}

// guard runs f, which touches memory that a client shares: one that truncated
// its file away gets an error instead of a dead daemon.
func guard(f func()) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			if fault, ok := r.(interface{ Addr() uintptr }); ok {
				err = fmt.Errorf("%w: shared memory went away at %#x", catalog.ErrInvalid, fault.Addr())
				return
			}
			panic(r)
		}
	}()
	f()
	return nil
}

// put writes p as a direct file wants it: whole pages, the last one padded.
func (in *Ingest) put(p []byte, off int64) error {
	if !in.f.Direct() {
		_, err := in.f.WriteAt(p, off)
		return err
	}
	whole := len(p) &^ (vfs.Align - 1)
	if vfs.Aligned(p[:whole], off) {
		if whole > 0 {
			if _, err := in.f.WriteAt(p[:whole], off); err != nil {
				return err
			}
		}
		p, off = p[whole:], off+int64(whole)
	}
	if len(p) == 0 {
		return nil
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for len(p) > 0 {
		var n int
		if err := guard(func() { n = copy(*buf, p) }); err != nil {
			return err
		}
		padded := (n + vfs.Align - 1) &^ (vfs.Align - 1)
		clear((*buf)[n:padded])
		if _, err := in.f.WriteAt((*buf)[:padded], off); err != nil {
			return err
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// buffers are aligned and hold one block.
var buffers = sync.Pool{New: func() any { b := vfs.AlignedBuffer(catalog.BlockSize); return &b }}

func getBuffer() *[]byte  { return buffers.Get().(*[]byte) }
func putBuffer(b *[]byte) { buffers.Put(b) }
