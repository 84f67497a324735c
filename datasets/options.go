package datasets

import (
	"fmt"
	"runtime"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/datasets/source"
)

const (
	batchBytes = 1 << 20  // of files that are read together
	batchFiles = 128      // of them
	aheadBytes = 64 << 20 // read, and not yet packed
	aheadBatch = 64       // batches
	maxWorkers = 64
)

// Options change an import.
type Options struct {
	PackSize int64 // bytes an aggregate pack is filled up to; 0: pack.DefaultSize
	RawFrom  int64 // bytes from which on a file is a pack by itself; 0: pack.RawSize
	Rehash   bool  // read every file, whatever its time says
	Force    bool  // make a version even when nothing changed
	Workers  int   // goroutines that read files; 0: twice the processors, at least 4
	// Progress hears what was done since it was last called. It is called from
	// several goroutines.
	Progress func(files, bytes int64)
	// Patience is how long a daemon may be away, and how long a full node may bring
	// nothing to the remote tier, before the import gives up. 0: a minute.
	Patience time.Duration
	// Waiting hears why the import waits, and since when; nil when it goes on. It
	// is called from several goroutines.
	Waiting func(since time.Duration, why error)
}

func (o *Options) settle() error {
	if o.PackSize == 0 {
		o.PackSize = pack.DefaultSize
	}
	if o.RawFrom == 0 {
		o.RawFrom = min(pack.RawSize, o.PackSize/2)
	}
	if o.Workers == 0 {
		o.Workers = max(4, min(maxWorkers, 2*runtime.GOMAXPROCS(0)))
	}
	if o.Progress == nil {
		o.Progress = func(int64, int64) {}
	}
	if o.Patience == 0 {
		o.Patience = time.Minute
	}
	if o.Waiting == nil {
		o.Waiting = func(time.Duration, error) {}
	}
	switch {
	case o.PackSize < pack.MinDefault || o.PackSize > pack.MaxDefault:
		return fmt.Errorf("packs of %d bytes: %w: want %d to %d", o.PackSize, catalog.ErrInvalid, pack.MinDefault, pack.MaxDefault)
	case o.RawFrom < batchBytes || o.RawFrom > o.PackSize/2:
		return fmt.Errorf("files from %d bytes on by themselves: %w: want %d up to half a pack, %d", o.RawFrom, catalog.ErrInvalid, batchBytes, o.PackSize/2)
	case o.Patience < 0:
		return fmt.Errorf("patience of %v: %w: want a time to wait", o.Patience, catalog.ErrInvalid)
	case o.Workers < 1 || o.Workers > maxWorkers:
		return fmt.Errorf("%d readers: %w: want 1 to %d", o.Workers, catalog.ErrInvalid, maxWorkers)
	}
	return nil
}

// Version is what an import made, or found unchanged.
type Version struct {
	Set       catalog.SetID // its step is the number
	Unchanged bool          // the newest version has this content; none was made
	Digest    catalog.Digest
	Format    source.Format

	Files, Bytes, Samples int64 // of the version
	Unread                int64 // files that were not read: path, size and time are the base version's
	Known                 int64 // files that were read, and whose content was there
	NewBytes              int64 // of content that was stored
	NewPacks, OldPacks    int   // of the version's packs, those made now and those that were there
	Skipped               int64 // special files
}
