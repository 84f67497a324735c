package posix

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
)

// What lies in the staging folders: bytes on their way, and sidecars, which
// are also the note of what is to be cleared away when their process dies.
type kind string

const (
	kindData kind = "data" // bytes of a column
	kindNew  kind = "new"  // sidecar of a column that is not committed yet
	kindOld  kind = "old"  // sidecar of a column that was replaced, or is being removed
)

// unique names a file as no other process does, and says when it was made.
func (t *Target) unique(k kind) string {
	t.mu.Lock()
	t.mu.seq++
	seq := t.mu.seq
	t.mu.Unlock()
	var r [4]byte
	_, _ = rand.Read(r[:]) // never fails
	return fmt.Sprintf("%016x-%s-%d-%d-%s.%s", time.Now().UnixNano(), hostName, os.Getpid(), seq, hex.EncodeToString(r[:]), k)
}

// hostName is for people who look into the folder; the random part tells
// processes apart.
var hostName = func() string {
	name, _ := os.Hostname()
	name = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	return name[:min(len(name), 64)]
}()

// stage writes a file of that kind, durably, and a note's name too.
func (t *Target) stage(k kind, b []byte) (name string, err error) {
	name = t.path(ownDir, stagingDir, t.unique(k))
	f, err := t.fs.Create(name, vfs.Opt{})
	if err != nil {
		return "", err
	}
	_, err = f.WriteAt(b, 0)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil && k != kindData { // which are renamed, and nothing is lost with
		err = t.fs.SyncDir(filepath.Dir(name))
	}
	if err != nil {
		_ = t.fs.Remove(name) // what stays is swept
		return "", classify(err)
	}
	return name, nil
}

// unstage removes a staged file that has done its work; what stays is swept.
func (t *Target) unstage(name string) {
	if name == "" {
		return
	}
	if err := t.fs.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		t.trace(err)
	}
}

// Limits of one sweep, and the time between two.
const (
	maxSwept   = 1000 // files in each folder
	sweepEvery = time.Hour
)

// sweepNow and then: from Create, so that a target that is opened once and
// used for months is swept too.
func (t *Target) sweepNow(ctx context.Context) {
	t.mu.Lock()
	due := time.Since(t.mu.swept) > sweepEvery
	t.mu.Unlock()
	if due {
		t.sweep(ctx)
	}
}

// sweep clears away what dead processes left. What fails is tried again by a
// later sweep, here or elsewhere.
func (t *Target) sweep(ctx context.Context) {
	t.mu.Lock()
	t.mu.swept = time.Now()
	t.mu.Unlock()
	for _, sub := range []string{stagingDir, stripedDir} {
		dir := t.path(ownDir, sub)
		entries, err := t.fs.ReadDir(dir)
		t.trace(err)
		for _, e := range entries[:min(len(entries), maxSwept)] {
			if ctx.Err() != nil {
				return
			}
			k, dead := t.dead(e)
			if !dead {
				continue
			}
			t.trace(t.sweepFile(filepath.Join(dir, e.Name()), k))
		}
	}
}

// dead says whether a staged file is old enough, by its name and by its last
// change: a slow writer goes on changing its file.
func (t *Target) dead(e fs.DirEntry) (kind, bool) {
	stamp, _, ok := strings.Cut(e.Name(), "-")
	k := kind(strings.TrimPrefix(filepath.Ext(e.Name()), "."))
	ns, err := strconv.ParseInt(stamp, 16, 64)
	if !ok || err != nil || e.IsDir() || k != kindData && k != kindNew && k != kindOld {
		return k, false // nobody knows whose it is
	}
	info, err := e.Info()
	if err != nil {
		return k, false // gone
	}
	limit := time.Now().Add(-t.opt.Stale)
	return k, time.Unix(0, ns).Before(limit) && info.ModTime().Before(limit)
}

func (t *Target) sweepFile(name string, k kind) error {
	if k == kindData {
		t.unstage(name)
		return nil
	}
	// Taking it over by a new name keeps it from others who found it too.
	own := t.path(ownDir, stagingDir, t.unique(k))
	if err := t.fs.Rename(name, own); errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if err := t.resolve(own, k); err != nil {
		return err
	}
	t.unstage(own)
	return nil
}

// resolve finishes what the process that staged a sidecar did not.
func (t *Target) resolve(name string, k kind) error {
	side, err := t.readFile(name, plain.Head)
	if err != nil {
		return err
	}
	key, err := plain.ReadKey(side)
	if err != nil {
		return nil // it never was whole, and so was nothing begun
	}
	return t.resolveOf(key, name, k)
}

// resolveOf is resolve of a note of a known column.
func (t *Target) resolveOf(key remotetier.Key, name string, k kind) error {
	side, err := t.readFile(name, plain.Head)
	if err != nil {
		return err
	}
	s, err := plain.ParseSidecar(key, side)
	if err != nil {
		return nil
	}
	now, err := t.sidecar(key)
	switch {
	case err == nil && now.Data == s.Data:
		return nil // it is the committed one
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err // also when it is damaged: it may be this one
	}
	if _, err := t.clear(s, name, k); err != nil {
		return err
	}
	return t.promote(key.Blob)
}
