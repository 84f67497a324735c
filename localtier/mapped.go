package localtier

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// mappedChunk is how much one goroutine checks at a time, in bytes.
const mappedChunk = 4 * catalog.BlockSize

// VerifyCached checks the blocks that touch the given ranges (offset, length)
// through the page cache: the very pages that a client which maps f next will
// see. f is the blob's file, opened without O_DIRECT. It uses all processors,
// because a load waits for it.
func (b *Blob) VerifyCached(ctx context.Context, f *os.File, ranges [][2]int64) error {
	if b.Size() == 0 {
		return nil
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(b.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map %s: %w", b.Name(), err)
	}
	defer unix.Munmap(mem)
	chunks := chunksOf(ranges, b.Size())
	var next atomic.Int64
	var wg sync.WaitGroup
	var first struct {
		sync.Mutex
		err error
	}
	workers := min(runtime.GOMAXPROCS(0), len(chunks))
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(chunks) {
					return
				}
				err := ctx.Err()
				if err == nil {
					err = b.checkMapped(mem, chunks[i])
				}
				if err != nil {
					first.Lock()
					if first.err == nil {
						first.err = err
					}
					first.Unlock()
					next.Store(int64(len(chunks)))
				}
			}
		})
	}
	wg.Wait()
	return first.err
}

// chunksOf cuts ranges into whole blocks, at most mappedChunk at a time, none twice.
func chunksOf(ranges [][2]int64, size int64) [][2]int64 {
	var chunks [][2]int64
	done := int64(0) // everything before is in chunks
	for _, r := range ranges {
		lo := max(done, r[0]/catalog.BlockSize*catalog.BlockSize)
		hi := min(size, (r[0]+r[1]+catalog.BlockSize-1)/catalog.BlockSize*catalog.BlockSize)
		for ; lo < hi; lo = min(hi, lo+mappedChunk) {
			chunks = append(chunks, [2]int64{lo, min(hi, lo+mappedChunk)})
		}
		done = max(done, hi)
	}
	return chunks
}

func (b *Blob) checkMapped(mem []byte, c [2]int64) error {
	// No advice to the kernel: reading ahead by it fills the page cache with
	// single pages, which the client would then map one by one.
	var err error
	// A file that is cut meanwhile, or a disk that fails, is a fault and not an error.
	if fault := guard(func() {
		for off := c[0]; off < c[1] && err == nil; off += catalog.BlockSize {
			i := int(off / catalog.BlockSize)
			err = b.seal.CheckBlock(i, mem[off:min(off+catalog.BlockSize, c[1])])
		}
	}); fault != nil {
		return fmt.Errorf("read %s: %w: %v", b.Name(), catalog.ErrCorrupt, fault)
	}
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	return nil
}
