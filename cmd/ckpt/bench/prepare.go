package bench

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// prepare finds the daemon and makes the folders of the run. clean removes them.
func (b *bench) prepare() (clean func() error, err error) {
	if b.ckptd, err = findDaemon(b.opt.Daemon); err != nil {
		return nil, err
	}
	base := b.opt.Dir
	if base == "" {
		if base, err = os.UserCacheDir(); err != nil {
			return nil, fmt.Errorf("no cache directory; give --dir: %w", err)
		}
	}
	if base, err = filepath.Abs(base); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	if t := fsType(base); t == unix.TMPFS_MAGIC || t == unix.RAMFS_MAGIC {
		return nil, fmt.Errorf("%s is on a %s: %w: a benchmark of memory would say nothing; give --dir on a real disk", base, fsName(base), catalog.ErrInvalid)
	}
	need := b.need()
	var st unix.Statfs_t
	if err := unix.Statfs(base, &st); err != nil {
		return nil, fmt.Errorf("statfs %s: %w", base, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return nil, fmt.Errorf("%s has %d MiB free and the run takes up to %d: %w: give a smaller --size, or --dir on another disk", base, free>>20, need>>20, catalog.ErrNoSpace)
	}
	if b.dir, err = os.MkdirTemp(base, "ckpt-bench-"); err != nil {
		return nil, err
	}
	if b.run, err = os.MkdirTemp("", "ckpt-bench-"); err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.dir))
	}
	b.arenas = filepath.Join("/dev/shm", filepath.Base(b.run))
	clean = func() error {
		return errors.Join(os.RemoveAll(b.dir), os.RemoveAll(b.run), os.RemoveAll(b.arenas))
	}
	if err := checkDirect(b.dir); err != nil {
		return nil, errors.Join(err, clean())
	}
	return clean, nil
}

// need is how much of the disk a run takes at most, in bytes: the sets of one
// suite, their columns, and the yardstick's file.
func (b *bench) need() int64 {
	saves := int64(b.opt.Pairs)*2 + 6
	drains := 5*max(drainSets(b.opt), int64(b.opt.Pairs)+1)/2 + 2 // each set, and its columns of 6/4 of that
	return max(saves, drains)*b.opt.Size + 2<<30
}

func findDaemon(path string) (string, error) {
	if path != "" {
		return path, nil
	}
	if self, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(self), "ckptd")
		if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
			return beside, nil
		}
	}
	path, err := exec.LookPath("ckptd")
	if err != nil {
		return "", wire.WithHint(fmt.Errorf("no ckptd beside this program or in PATH: %w", err), "`make build` puts both programs into bin/")
	}
	return path, nil
}

func checkDirect(dir string) error {
	f, err := openDirect(filepath.Join(dir, "probe"), unix.O_RDWR|unix.O_CREAT)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%s is on %s, which has no O_DIRECT: %w: the yardsticks need it; give --dir on another disk", dir, fsName(dir), catalog.ErrInvalid)
	} else if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func openDirect(path string, flag int) (*os.File, error) {
	return os.OpenFile(path, flag|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
}

// mapMemory gives n bytes of fresh, page-aligned memory, whose pages appear
// when they are touched.
func mapMemory(n int64) ([]byte, error) {
	m, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	return m, nil
}

// randomMemory gives n incompressible bytes that depend on the seed alone.
func randomMemory(n int64, seed uint64) ([]byte, error) {
	m, err := mapMemory(n)
	if err != nil {
		return nil, err
	}
	const part = 4 << 20
	var g errgroup.Group
	g.SetLimit(4)
	for off := int64(0); off < n; off += part {
		g.Go(func() error {
			var key [32]byte
			for i := range 8 {
				key[i], key[8+i] = byte(seed>>(8*i)), byte(off>>(8*i))
			}
			_, err := rand.NewChaCha8(key).Read(m[off:min(off+part, n)])
			return err
		})
	}
	return m, g.Wait()
}
