package localtier

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/ckptd/ckptd/catalog"
)

const mib = 1 << 20

// shm gives a folder on a tmpfs, where there is one.
func shm(t testing.TB) string {
	dir, err := os.MkdirTemp("/dev/shm", "arena-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func openArena(t testing.TB, dir string, opt ArenaOptions) *Arena {
	t.Helper()
	a, err := OpenArena(dir, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if err := a.WaitWarm(t.Context()); err != nil {
		t.Fatal(err)
	}
	return a
}

var small = ArenaOptions{Size: 8 * mib, Segment: 2 * mib, Slot: mib}

func lend(t testing.TB, a *Arena, session string, uid uint32, want int) []*Segment {
	t.Helper()
	segs, err := a.LendTo(t.Context(), session, uid, want, nil)
	if err != nil {
		t.Fatal(err)
	}
	return segs
}

func TestArenaLendsWhatASessionCanWrite(t *testing.T) {
	a := openArena(t, shm(t), small)
	segs := lend(t, a, "s", 7, 10)
	if len(segs) != 4 || segs[0].Slots() != 2 || len(segs[0].Bytes()) != 2*mib {
		t.Fatalf("%d segments of %d slots", len(segs), segs[0].Slots())
	}
	f, err := segs[1].File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("from the session"), mib); err != nil {
		t.Fatal(err)
	}
	if got := segs[1].Slot(1)[:16]; string(got) != "from the session" {
		t.Errorf("the daemon sees %q", got)
	}
	if st := a.Stats(); st.Size != 8*mib || st.Segments != 4 || st.Lent != 4 || !st.Warm {
		t.Errorf("Stats = %+v", st)
	}
	a.Return(segs...)
	if st := a.Stats(); st.Lent != 0 {
		t.Errorf("%d are still lent", st.Lent)
	}
}

func TestPromise7AnotherUserGetsOtherMemory(t *testing.T) {
	a := openArena(t, shm(t), small)
	segs := lend(t, a, "first", 1, 4)
	files := map[int]*os.File{}
	for _, s := range segs {
		f, err := s.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[s.ID()] = f
		copy(s.Bytes(), "secret of user 1")
	}
	a.Return(segs...)
	if same := lend(t, a, "again", 1, 1); !bytes.HasPrefix(same[0].Bytes(), []byte("secret")) {
		t.Error("the same user's memory was replaced for nothing")
	} else {
		a.Return(same...)
	}
	for _, s := range lend(t, a, "second", 2, 4) {
		if len(bytes.Trim(s.Bytes(), "\x00")) != 0 {
			t.Error("user 2 got bytes of user 1")
		}
		copy(s.Bytes(), "secret of user 2")
		got := make([]byte, 16)
		files[s.ID()].ReadAt(got, 0) // user 1 kept the file it was passed
		if string(got) != "secret of user 1" {
			t.Errorf("user 1 reads %q in memory of user 2", got)
		}
		files[s.ID()].WriteAt([]byte("forged"), 0)
		if string(s.Bytes()[:16]) != "secret of user 2" {
			t.Error("user 1 writes to memory of user 2")
		}
	}
}

func TestACutSegmentIsReplacedAndHarmless(t *testing.T) {
	a := openArena(t, shm(t), small)
	tier, _ := openOS(t, Options{})
	segs := lend(t, a, "hostile", 1, 4)
	f, err := segs[0].File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(4096); err != nil {
		t.Fatal(err)
	}
	in, err := tier.Reserve(t.Context(), "a/b", 2*mib)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := in.WriteAt(segs[0].Bytes(), 0); err == nil {
		t.Error("memory that is gone was written")
	}
	if _, err := in.Commit(t.Context(), nil); !errors.Is(err, catalog.ErrIncomplete) {
		t.Errorf("Commit = %v, want ErrIncomplete", err)
	}
	a.Return(segs...)
	for _, s := range lend(t, a, "next", 1, 4) {
		clear(s.Bytes()) // must not fault
		s.Bytes()[2*mib-1] = 1
	}
}

func TestPromise8Fairness(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openArena(t, shm(t), small)
		all := lend(t, a, "greedy", 1, 4)
		var mu sync.Mutex
		got := map[string][]*Segment{}
		var wg sync.WaitGroup
		for _, name := range []string{"greedy", "b", "c"} {
			wg.Go(func() {
				segs, err := a.LendTo(t.Context(), name, 1, 4, nil)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				got[name] = append(got[name], segs...)
				mu.Unlock()
			})
			synctest.Wait()
		}
		if w := a.Stats().Waiting; w != 3 {
			t.Fatalf("%d wait, want 3", w)
		}
		// greedy asked first, but still has three: those without any come first.
		a.Return(all[0])
		synctest.Wait()
		if len(got["b"]) != 1 || len(got["greedy"]) != 0 {
			t.Errorf("after one came back: %v", got)
		}
		a.Return(all[1])
		synctest.Wait()
		if len(got["c"]) != 1 || len(got["greedy"]) != 0 {
			t.Errorf("after two came back: %v", got)
		}
		a.Return(all[2], all[3])
		wg.Wait()
		if len(got["greedy"]) != 2 {
			t.Errorf("greedy got %d at last, want 2", len(got["greedy"]))
		}
	})
}

func TestLendWaitsAndGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := openArena(t, shm(t), small)
		all := lend(t, a, "a", 1, 4)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			_, err := a.Lend(ctx, 1, 1)
			done <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Lend = %v, want the context's error", err)
		}
		if st := a.Stats(); st.Waiting != 0 {
			t.Errorf("%d still wait", st.Waiting)
		}
		a.Return(all...)
		if n := len(lend(t, a, "b", 1, 9)); n != 4 {
			t.Errorf("%d segments are left, want 4", n)
		}
	})
}

func TestPromise6BytesAndRecordsOutliveTheProcess(t *testing.T) {
	dir := shm(t)
	a := openArena(t, dir, small)
	segs := lend(t, a, "a", 5, 3)
	kept := segs[1].ID()
	copy(segs[1].Bytes(), "sealed, not yet on disk")
	if err := errors.Join(a.PutRecord("run-1", []byte("old")), a.PutRecord("run-1", []byte("segment 1")), a.PutRecord("x", nil), a.DropRecord("x"), a.DropRecord("y")); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenArena(dir, small); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("a second OpenArena: %v, want ErrConflict", err)
	}
	// The process dies: what it was about to write stays.
	if err := os.WriteFile(filepath.Join(dir, recordPrefix+"torn"+tmpSuffix), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Close()

	b := openArena(t, dir, small)
	if recs := b.Records(); len(recs) != 1 || string(recs["run-1"]) != "segment 1" {
		t.Fatalf("Records = %q", recs)
	}
	s, err := b.Claim(kept)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(s.Bytes(), []byte("sealed, not yet on disk")) {
		t.Error("the bytes are gone")
	}
	if _, err := b.Claim(kept); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("claimed twice: %v", err)
	}
	if _, err := b.Claim(99); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("claimed nothing: %v", err)
	}
	for _, o := range lend(t, b, "new", 5, 4) {
		if o.ID() == kept {
			t.Error("a claimed segment was lent")
		}
		if len(bytes.Trim(o.Bytes()[:64], "\x00")) != 0 {
			t.Error("after a restart nobody knows whose bytes these were, yet they were lent")
		}
	}
	b.Return(s)
	b.Close()

	// An arena of another shape still has what a record names, and no more.
	c := openArena(t, dir, ArenaOptions{Size: 4 * mib, Segment: mib, Slot: mib})
	if s, err = c.Claim(kept); err != nil {
		t.Fatal(err)
	}
	c.Return(s)
	if err := c.DropRecord("run-1"); err != nil {
		t.Fatal(err)
	}
	if n := len(lend(t, c, "new", 5, 9)); n != 4 {
		t.Errorf("%d segments of the new shape, want 4", n)
	}
	names, _ := filepath.Glob(filepath.Join(dir, segPrefix+"*"))
	if len(names) != 4 {
		t.Errorf("files: %v", names)
	}
}

func TestArenaBounds(t *testing.T) {
	for name, opt := range map[string]ArenaOptions{
		"OneSegment": {Size: mib, Segment: mib}, "OddSlot": {Size: 8 * mib, Segment: 2 * mib, Slot: 4096},
		"Negative": {Size: -1}, "TooMany": {Size: 1 << 40, Segment: mib, Slot: mib},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := OpenArena(shm(t), opt); !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("OpenArena = %v, want ErrInvalid", err)
			}
		})
	}
	if _, err := OpenArena(shm(t), ArenaOptions{Size: 1 << 52, Segment: 1 << 50}); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("an arena larger than the tmpfs: %v, want ErrNoSpace", err)
	}
	a := openArena(t, shm(t), small)
	for _, name := range []string{"", "../x", "a/b", ".x", "a.tmp"} {
		if err := a.PutRecord(name, nil); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("PutRecord(%q) = %v, want ErrInvalid", name, err)
		}
	}
	if err := a.PutRecord("a", make([]byte, maxRecordSize+1)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("a huge record: %v", err)
	}
	if _, err := a.Lend(t.Context(), 1, 0); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Lend(0) = %v", err)
	}
}

// TestArenaLeavesSharedFoldersAlone: a folder that others use is refused, and
// neither its mode nor what is in it changes.
func TestArenaLeavesSharedFoldersAlone(t *testing.T) {
	shared, used := t.TempDir(), t.TempDir()
	if err := os.Chmod(shared, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(used, 0o755), os.WriteFile(filepath.Join(used, "theirs"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for dir, files := range map[string]int{shared: 0, used: 1} {
		before, _ := os.Stat(dir)
		_, err := OpenArena(dir, small)
		if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "folder of its own") {
			t.Errorf("%v: got %v", before.Mode(), err)
		}
		after, _ := os.Stat(dir)
		if entries, _ := os.ReadDir(dir); after.Mode() != before.Mode() || len(entries) != files {
			t.Errorf("mode %v was %v, %d entries, want %d", after.Mode(), before.Mode(), len(entries), files)
		}
	}
	empty := t.TempDir() // as an orchestrator mounts it
	if err := os.Chmod(empty, 0o777); err != nil {
		t.Fatal(err)
	}
	openArena(t, empty, small)
	if fi, _ := os.Stat(empty); fi.Mode().Perm() != 0o700 {
		t.Errorf("got mode %v, want 0700", fi.Mode())
	}
	openArena(t, filepath.Join(shared, "ckptd"), small)
}
