package tree

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// shelf is a store whose sets are given; a shard's bytes are its set's name.
type shelf struct {
	runs []catalog.Run
	sets []catalog.SetRecord // newest first
	held map[catalog.SetID]int
}

func (s *shelf) Runs() []catalog.Run { return s.runs }

func (s *shelf) Committed(run catalog.Run) (sets []catalog.SetRecord) {
	for _, rec := range s.sets {
		if rec.Run == run {
			sets = append(sets, rec)
		}
	}
	return sets
}

func (s *shelf) Set(run catalog.Run, step int64, attempt int) (catalog.SetRecord, bool) {
	for _, rec := range s.Committed(run) {
		if (step == catalog.Latest || rec.Step == step) && (attempt == 0 || rec.Attempt == attempt) {
			return rec, true
		}
	}
	return catalog.SetRecord{}, false
}

func (s *shelf) Manifest(_ context.Context, rec catalog.SetRecord) (*catalog.Manifest, []byte, error) {
	m := &catalog.Manifest{Version: 1, Set: rec.SetID, World: rec.World}
	for rank := range rec.World {
		m.Shards = append(m.Shards, catalog.Shard{Rank: rank, Size: int64(len(rec.SetID.String()))})
	}
	b, _, err := m.Marshal()
	return m, b, err
}

func (s *shelf) OpenShard(_ context.Context, rec catalog.SetRecord, _ catalog.Shard) (fuse.File, error) {
	return memory{bytes.NewReader([]byte(rec.SetID.String()))}, nil
}

func (s *shelf) OpenVersion(context.Context, catalog.SetRecord) (Version, error) {
	return nil, catalog.ErrUnavailable
}

func (s *shelf) Hold(_ context.Context, id catalog.SetID) (func(), error) {
	s.held[id]++
	return func() { s.held[id]-- }, nil
}

func (s *shelf) Space() fuse.Space { return fuse.Space{} }

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func newShelf(ids ...string) *shelf {
	s := &shelf{held: make(map[catalog.SetID]int)}
	for i, text := range ids {
		ref, err := catalog.ParseRef(text)
		if err != nil {
			panic(err)
		}
		id := catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}
		s.sets = append(s.sets, catalog.SetRecord{SetID: id, State: catalog.Committed, World: 2, Committed: noon.Add(time.Duration(i) * time.Minute)})
		s.runs = append(s.runs, id.Run)
	}
	slices.SortFunc(s.sets, func(a, b catalog.SetRecord) int { return b.SetID.Compare(a.SetID) })
	slices.Sort(s.runs)
	s.runs = slices.Compact(s.runs)
	return s
}

// walk looks a path up, by names.
func walk(t *testing.T, tr *Tree, path string) (fuse.Entry, error) {
	t.Helper()
	e := fuse.Entry{ID: fuse.Root}
	for name := range strings.SplitSeq(path, "/") {
		var err error
		if e, err = tr.Lookup(t.Context(), e.ID, []byte(name)); err != nil {
			return e, err
		}
		if a, err := tr.Attr(t.Context(), e.ID); err != nil || a != e.Attr {
			t.Fatalf("%s: Attr = %+v, %v; Lookup said %+v", path, a, err, e.Attr)
		}
	}
	return e, nil
}

// list reads a folder, step entries a call.
func listing(t *testing.T, tr *Tree, id fuse.ID, step int) (entries []fuse.Entry) {
	t.Helper()
	from := uint64(0)
	for {
		left := step
		err := tr.ReadDir(t.Context(), id, from, func(e fuse.Entry, next uint64) bool {
			if left == 0 {
				return false
			}
			if next == 0 || next >= 1<<62 {
				t.Fatalf("next of %s is %d", e.Name, next)
			}
			left--
			from = next
			e.Name = slices.Clone(e.Name)
			entries = append(entries, e)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		if left > 0 {
			return entries
		}
	}
}

func namesOf(entries []fuse.Entry) string {
	var names []string
	for _, e := range entries {
		names = append(names, string(e.Name))
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func TestListings(t *testing.T) {
	tr := New(newShelf("a@5#1", "a@7#1", "a@5#2", "a/b/c@1#1", "a/7@3#1", "z@9#1", "_datasets/x@1#1"), Options{Started: noon})
	for _, c := range []struct{ path, names string }{
		{"checkpoints", "a z"},
		{"checkpoints/a", "000000000007-000001 5 7 b latest"}, // 7 is a run there
		{"checkpoints/a/7", "3 latest"},
		{"checkpoints/a/b", "c"},
		{"checkpoints/a/b/c/1", ".manifest.json rank-00000.safetensors rank-00001.safetensors"},
	} {
		dir, err := walk(t, tr, c.path)
		if err != nil {
			t.Fatalf("%s: %v", c.path, err)
		}
		for _, step := range []int{1, 2, 100} {
			got := listing(t, tr, dir.ID, step)
			if namesOf(got) != c.names {
				t.Errorf("%s, %d a call: %s, want %s", c.path, step, namesOf(got), c.names)
			}
			folders := 0
			for _, e := range got {
				l, err := tr.Lookup(t.Context(), dir.ID, e.Name)
				if err != nil || l.ID != e.ID || l.Attr != e.Attr {
					t.Errorf("%s/%s: Lookup = %+v, %v; ReadDir said %+v", c.path, e.Name, l, err, e)
				}
				if e.Attr.Mode&syscall.S_IFMT == syscall.S_IFDIR {
					folders++
				}
			}
			if int(dir.Attr.Nlink) != 2+folders {
				t.Errorf("%s has %d links, want 2 and one for each of its %d folders", c.path, dir.Attr.Nlink, folders)
			}
		}
	}
}

func TestAttempts(t *testing.T) {
	s := newShelf("a@5#1", "a@5#2", "a@9#1")
	tr := New(s, Options{})
	read := func(path string) string {
		t.Helper()
		e, err := walk(t, tr, path)
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		f, err := tr.Open(t.Context(), e.ID, syscall.O_RDONLY)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		b := make([]byte, e.Attr.Size)
		if n, err := f.ReadAt(t.Context(), b, 0); n != len(b) || err != nil && err != io.EOF {
			t.Fatalf("read %s = %d, %v", path, n, err)
		}
		return string(b)
	}
	for path, want := range map[string]string{
		"5": "a@5#2", "5-1": "a@5#1", "5-2": "a@5#2", "000000000005-000001": "a@5#1", "9": "a@9#1",
	} {
		if got := read("checkpoints/a/" + path + "/rank-00001.safetensors"); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	for _, path := range []string{"6", "05", "5-3", "5-", "-5", "5-0", "5-01", "+5", "999999999999999", "rank"} {
		if _, err := walk(t, tr, "checkpoints/a/"+path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, want fs.ErrNotExist", path, err)
		}
	}
	link, err := walk(t, tr, "checkpoints/a/latest")
	if err != nil {
		t.Fatal(err)
	}
	if to, err := tr.ReadLink(t.Context(), link.ID); err != nil || string(to) != "5" || link.Attr.Size != 1 {
		t.Errorf("latest -> %s, %v, size %d; want 5: the later attempt is the newest", to, err, link.Attr.Size)
	}
}

// TestNumbersSurviveARestart asks a new tree about the numbers that an old one gave.
func TestNumbersSurviveARestart(t *testing.T) {
	s := newShelf("a@5#1", "a/b@7#1", "c@1#1")
	old := New(s, Options{})
	for _, path := range []string{"checkpoints/a", "checkpoints/a/latest", "checkpoints/a/5", "checkpoints/a/b/7/rank-00001.safetensors", "checkpoints/c/1/.manifest.json"} {
		e, err := walk(t, old, path)
		if err != nil {
			t.Fatal(err)
		}
		if a, err := New(s, Options{}).Attr(t.Context(), e.ID); err != nil || a != e.Attr {
			t.Errorf("%s after a restart: %+v, %v; want %+v", path, a, err, e.Attr)
		}
	}
}

// TestPromise1PrunedSetIsGone: its names and numbers, not what is open of it.
func TestPromise1PrunedSetIsGone(t *testing.T) {
	s := newShelf("a@5#1")
	tr := New(s, Options{})
	e, err := walk(t, tr, "checkpoints/a/5/rank-00000.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	f, err := tr.Open(t.Context(), e.ID, syscall.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	id := s.sets[0].SetID
	if s.held[id] != 1 {
		t.Errorf("an open file holds %d leases, want 1", s.held[id])
	}
	s.sets = nil
	if _, err := tr.Attr(t.Context(), e.ID); !errors.Is(err, syscall.ESTALE) {
		t.Errorf("a file of a pruned set: %v, want ESTALE", err)
	}
	if _, err := tr.Open(t.Context(), e.ID, syscall.O_RDONLY); err == nil {
		t.Error("a file of a pruned set was opened")
	}
	if n, err := f.ReadAt(t.Context(), make([]byte, 5), 0); n != 5 || err != nil && err != io.EOF {
		t.Errorf("what was open = %d, %v; want 5 bytes", n, err)
	}
	f.Close()
	if s.held[id] != 0 {
		t.Errorf("a closed file holds %d leases, want none", s.held[id])
	}
}

func TestReadOnly(t *testing.T) {
	tr := New(newShelf("a@5#1"), Options{})
	e, err := walk(t, tr, "checkpoints/a/5/rank-00000.safetensors")
	if err != nil {
		t.Fatal(err)
	}
	for _, flags := range []uint32{syscall.O_WRONLY, syscall.O_RDWR, syscall.O_RDONLY | syscall.O_TRUNC} {
		if _, err := tr.Open(t.Context(), e.ID, flags); err != syscall.EROFS {
			t.Errorf("open with %#x: %v, want EROFS", flags, err)
		}
	}
}

// TestVolumesOfOneHash puts volumes where others are.
func TestVolumesOfOneHash(t *testing.T) {
	var v volumes
	v.init()
	first := volume{stepKind, "a@1#1"}
	v.mu.keys[hashOf(first)] = volume{folderKind, "x"} // somebody else was there
	n := v.number(first)
	if n == hashOf(first) || v.number(first) != n {
		t.Errorf("number = %d, then %d, want another than the taken %d, twice", n, v.number(first), hashOf(first))
	}
	seen := map[uint32]bool{}
	for i := range 100_000 {
		n := v.number(volume{stepKind, fmt.Sprint(i)})
		if seen[n] || n < firstVolume || n > volumeMask {
			t.Fatalf("volume %d has number %d, taken or out of range", i, n)
		}
		seen[n] = true
	}
}
