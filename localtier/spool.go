package localtier

import (
	"context"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Spool is a file on one of the disks for bytes on their way somewhere else:
// written in order, then read. It is never a blob, and gone when it is closed;
// what a crash leaves of it is swept like any staging file.
type Spool struct {
	in   *Ingest
	most int64
	buf  []byte // of whole blocks, on a page boundary; n bytes of it are filled
	n    int
	off  int64 // bytes written to the file
	blob *Blob // after Finish

	end sync.Once
}

// spoolBuffer is how much is written at a time, in blocks, at most.
const spoolBuffer = 4

// NewSpool makes room for at most most bytes: quota, and allocated blocks on
// one disk. It is a *Shortage when there is not enough. name tells spools and
// ingests apart, as in Reserve.
func (t *Tier) NewSpool(ctx context.Context, name string, most int64) (*Spool, error) {
	in, err := t.Reserve(ctx, name, (most+catalog.BlockSize-1)/catalog.BlockSize*catalog.BlockSize)
	if err != nil {
		return nil, fmt.Errorf("spool: %w", err)
	}
	blocks := min(spoolBuffer, max(1, catalog.Blocks(most)))
	return &Spool{in: in, most: most, buf: vfs.AlignedBuffer(blocks * catalog.BlockSize)}, nil
}

// Write appends p. More than there is room for is ErrNoSpace.
func (s *Spool) Write(p []byte) (int, error) {
	if s.blob != nil {
		return 0, fmt.Errorf("write %s: %w", s.in.name, fs.ErrClosed)
	}
	if s.off+int64(s.n)+int64(len(p)) > s.most {
		return 0, fmt.Errorf("write %s: %w: it has room for %d bytes", s.in.name, catalog.ErrNoSpace, s.most)
	}
	done := 0
	for done < len(p) {
		k := copy(s.buf[s.n:], p[done:])
		s.n, done = s.n+k, done+k
		if s.n == len(s.buf) {
			if err := s.flush(); err != nil {
				return done, err
			}
		}
	}
	return done, nil
}

// flush writes what the buffer holds, filled up with zeros to a whole block.
func (s *Spool) flush() error {
	if s.n == 0 {
		return nil
	}
	padded := (s.n + catalog.BlockSize - 1) / catalog.BlockSize * catalog.BlockSize
	clear(s.buf[s.n:padded])
	if err := s.in.WriteAt(s.buf[:padded], s.off); err != nil {
		return err
	}
	s.off, s.n = s.off+int64(s.n), 0
	return nil
}

// Finish ends the writing; from here on the spool can be read. Its bytes are
// not synced: a power failure takes the spool with it in any case.
func (s *Spool) Finish() error {
	last, short := s.n%catalog.BlockSize, uint32(0)
	if last > 0 {
		short = catalog.Sum32C(s.buf[s.n-last : s.n])
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.buf = nil
	s.in.mu.Lock()
	crcs := slices.Clone(s.in.mu.crcs[:catalog.Blocks(s.off)])
	s.in.mu.Unlock()
	if last > 0 {
		crcs[len(crcs)-1] = short // without the zeros behind it
	}
	seal := &catalog.Seal{Name: s.in.name, Size: s.off, CRCs: crcs}
	s.blob = &Blob{info: Info{Name: s.in.name, Path: s.in.staging, Size: s.off, Root: seal.Root()}, seal: seal, f: s.in.f}
	return nil
}

// Blob is what was written, with its checksums; its Close is the spool's.
// It is there after Finish and until Close.
func (s *Spool) Blob() *Blob { return s.blob }

// Close removes the file and gives its room back.
func (s *Spool) Close() (err error) {
	s.end.Do(func() { err = s.in.Close() })
	return err
}
