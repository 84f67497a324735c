package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/sdk/wire"
)

// twin is one file that is open in a draft and in a plain folder.
type twin struct{ draft, plain *os.File }

// twins does the same to a draft and to a plain folder, and holds the answers
// against each other.
type twins struct {
	t            *testing.T
	r            *rand.Rand
	draft, plain string
	open         []twin
	story        []string
}

func (w *twins) say(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

// same compares what the two answered.
func (w *twins) same(draft, plain error) bool {
	w.t.Helper()
	var a, b syscall.Errno
	errors.As(draft, &a)
	errors.As(plain, &b)
	if a != b || (draft == nil) != (plain == nil) {
		w.t.Fatalf("the draft says %v, a plain folder %v, after\n%v", draft, plain, w.story)
	}
	return draft == nil
}

func (w *twins) name() string { return fmt.Sprintf("f%d", w.r.IntN(6)) }

func (w *twins) both(name string) (draft, plain string) {
	return filepath.Join(w.draft, name), filepath.Join(w.plain, name)
}

func (w *twins) step() {
	w.t.Helper()
	name := w.name()
	draft, plain := w.both(name)
	switch op := w.r.IntN(10); {
	case op < 3 && len(w.open) < 5:
		flags := []int{os.O_RDWR, os.O_RDWR | os.O_CREATE, os.O_WRONLY | os.O_CREATE | os.O_TRUNC, os.O_RDWR | os.O_CREATE | os.O_EXCL, os.O_RDWR | os.O_CREATE | os.O_APPEND, os.O_RDONLY}
		flag := flags[w.r.IntN(len(flags))]
		w.say("open %s %#x", name, flag)
		a, aerr := os.OpenFile(draft, flag, 0o644)
		b, berr := os.OpenFile(plain, flag, 0o644)
		if w.same(aerr, berr) {
			w.open = append(w.open, twin{a, b})
		}
	case op < 7 && len(w.open) > 0:
		w.use(w.r.IntN(len(w.open)))
	case op == 7:
		to := w.name()
		w.say("rename %s %s", name, to)
		adraft, aplain := w.both(to)
		w.same(os.Rename(draft, adraft), os.Rename(plain, aplain))
	case op == 8:
		w.say("remove %s", name)
		w.same(os.Remove(draft), os.Remove(plain))
	default:
		n := int64(w.r.IntN(200_000))
		w.say("truncate %s %d", name, n)
		w.same(os.Truncate(draft, n), os.Truncate(plain, n))
	}
}

// use does something to a file that is open.
func (w *twins) use(i int) {
	w.t.Helper()
	f := w.open[i]
	off := int64(w.r.IntN(300_000))
	switch w.r.IntN(6) {
	case 0:
		w.say("close %s", filepath.Base(f.plain.Name()))
		w.open = append(w.open[:i], w.open[i+1:]...)
		w.same(f.draft.Close(), f.plain.Close())
	case 1:
		w.say("fsync %s", filepath.Base(f.plain.Name()))
		w.same(f.draft.Sync(), f.plain.Sync())
	case 2:
		w.say("ftruncate %s %d", filepath.Base(f.plain.Name()), off)
		w.same(f.draft.Truncate(off), f.plain.Truncate(off))
	case 3:
		a, b := make([]byte, 70_000), make([]byte, 70_000)
		n, aerr := f.draft.ReadAt(a, off)
		m, berr := f.plain.ReadAt(b, off)
		w.say("read %s at %d: %d", filepath.Base(f.plain.Name()), off, m)
		if n != m || !bytes.Equal(a[:n], b[:m]) || errors.Is(aerr, io.EOF) != errors.Is(berr, io.EOF) {
			w.t.Fatalf("the draft reads %d bytes (%v), a plain folder %d (%v), or others, after\n%v", n, aerr, m, berr, w.story)
		}
	default:
		b := make([]byte, 1+w.r.IntN(100_000))
		for i := range b {
			b[i] = byte(w.r.Uint32())
		}
		w.say("write %s at %d: %d", filepath.Base(f.plain.Name()), off, len(b))
		if _, err := f.plain.Seek(off, io.SeekStart); err != nil {
			w.t.Fatal(err)
		}
		if _, err := f.draft.Seek(off, io.SeekStart); err != nil {
			w.t.Fatal(err)
		}
		_, aerr := f.draft.Write(b) // at the end, when it was opened to append
		_, berr := f.plain.Write(b)
		w.same(aerr, berr)
	}
	a, aerr := f.draft.Stat()
	b, berr := f.plain.Stat()
	if aerr == nil && berr == nil && a.Size() != b.Size() {
		w.t.Fatalf("the draft says %d bytes, a plain folder %d, after\n%v", a.Size(), b.Size(), w.story)
	}
}

// TestDraftAgainstFolder: whatever programs do to the files of a draft, the
// answers and the bytes are those of a plain folder, and so is the set.
func TestDraftAgainstFolder(t *testing.T) {
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	for _, checked := range []bool{false, true} {
		t.Run(fmt.Sprintf("checked %v", checked), func(t *testing.T) {
			t.Parallel()
			_, _, run := deskAt(t, wire.MountRequest{Checked: checked})
			for step := range 4 {
				w := &twins{t: t, r: rand.New(rand.NewPCG(seed, uint64(step))), draft: filepath.Join(run, ".write", fmt.Sprint(step)), plain: t.TempDir()}
				mustSh(t, `mkdir -p "$1"`, w.draft)
				for range 250 {
					w.step()
				}
				for len(w.open) > 0 {
					f := w.open[0]
					w.open = w.open[1:]
					w.same(f.draft.Close(), f.plain.Close())
				}
				mustSh(t, `cd "$1"; echo end >end; find . -size 0 -delete; cd "$2"; echo end >end; find . -size 0 -delete`, w.draft, w.plain)
				if err := sameFiles(t.Context(), w.plain, w.draft); err != nil {
					t.Fatalf("%v, after\n%v", err, w.story)
				}
				if err := os.Rename(w.draft, filepath.Join(run, fmt.Sprint(step))); err != nil {
					t.Fatal(err)
				}
				if err := sameFiles(t.Context(), w.plain, filepath.Join(run, fmt.Sprint(step))); err != nil {
					t.Fatalf("the set: %v, after\n%v", err, w.story)
				}
			}
		})
	}
}
