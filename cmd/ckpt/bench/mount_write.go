package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	writeFile = 256 << 20 // bytes of a file, at most
	writeStep = 4 << 20   // of one write
)

// writings are the ways to write a file.
var writings = []struct {
	row, text string
	flag      int
}{
	{"mount.write", "buffered", 0},
	{"mount.write.direct", "O_DIRECT", unix.O_DIRECT},
}

// writeLarge writes files of a draft through the mount and in a folder of the
// same disk, in turn.
func (b *bench) writeLarge(ctx context.Context, at string, data []byte, how string) (err error) {
	dirs := [2]string{filepath.Join(at, "checkpoints", mountRun, ".write/2"), filepath.Join(b.dir, "written")}
	for _, dir := range dirs {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Remove(dir)) }()
	}
	for _, w := range writings {
		var rates [2][]float64
		for pair := range b.opt.Pairs + 1 {
			b.logf("%s: pair %d of %d", w.row, pair, b.opt.Pairs)
			var spent [2]time.Duration
			for turn, off := 0, 0; off < len(data); turn, off = turn+1, off+writeFile {
				part := data[off:min(len(data), off+writeFile)]
				for k := range 2 {
					which := (turn + pair + k) % 2 // who begins takes turns too
					took, err := writeOnce(ctx, filepath.Join(dirs[which], "part"), w.flag, part)
					if err != nil {
						return err
					}
					spent[which] += took
				}
			}
			if pair > 0 {
				rates[0], rates[1] = append(rates[0], perSecond(len(data), spent[0])), append(rates[1], perSecond(len(data), spent[1]))
			}
		}
		b.versusAs(w.row, "mount.write", rates[0], rates[1], "new files of %s written %s, 4 MiB at a time, and fsynced: in a draft of a daemon's mount (%s), and in a folder of the same disk; every byte was compared", amount(float64(min(len(data), writeFile)), "B"), w.text, how)
	}
	return nil
}

// writeOnce writes a new file, compares it, and removes it.
func writeOnce(ctx context.Context, path string, flag int, data []byte) (time.Duration, error) {
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	spent, err := took(func() error {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|flag, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		for off := 0; off < len(data); off += writeStep {
			if _, err := f.Write(data[off:min(len(data), off+writeStep)]); err != nil {
				return err
			}
		}
		if err := f.Sync(); err != nil {
			return err
		}
		return f.Close()
	})
	if err == nil {
		err = checkFile(path, 0, data)
	}
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", path, errors.Join(err, os.Remove(path)))
	}
	return spent, os.Remove(path)
}
