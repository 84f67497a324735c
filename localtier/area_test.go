package localtier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// draft is one file of an area's life: what it is called there, and as a blob.
type draft struct {
	file, blob string
	bytes      []byte
	synced     bool // it must not be lost from here on
	blobOnly   bool // Adopt returned nil
}

func drafts() []*draft {
	dir := "run/a/000000000001-000001/"
	return []*draft{
		{file: "__0_0.distcp", blob: dir + "rank-00001.bin", bytes: pattern(1, 9000)},
		{file: ".metadata", blob: dir + "rank-00000.bin", bytes: pattern(2, 100)},
		{file: "ünï \x01", blob: dir + "rank-00002.bin", bytes: pattern(3, 4096)},
	}
}

// write makes the files of an area as a program would: one under another name
// first, one written twice.
func write(a *Area, files []*draft) error {
	for i, d := range files {
		name := d.file
		if i == 1 {
			name += ".tmp"
		}
		f, err := a.Create(name)
		if err != nil {
			return err
		}
		defer f.Close()
		if i == 2 {
			if _, err := f.WriteAt(make([]byte, 7000), 0); err != nil {
				return err
			}
			if err := f.Truncate(0); err != nil {
				return err
			}
		}
		if _, err := f.WriteAt(d.bytes, 0); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if i == 1 {
			if err := a.Rename(name, d.file, true); err != nil {
				return err
			}
		}
		d.synced = true
	}
	return nil
}

func adopt(ctx context.Context, a *Area, files []*draft) error {
	if err := a.Freeze(); err != nil {
		return err
	}
	for _, d := range files {
		if err := a.Adopt(ctx, d.file, d.blob, []byte(d.file)); err != nil {
			return err
		}
		d.blobOnly = true
	}
	return a.Discard()
}

// areaLife is what happens to an area in the crash tests; it stops at the first error.
func areaLife(ctx context.Context, tier *Tier, files []*draft) error {
	a, err := tier.NewArea("run/a@1", []byte("made"))
	if err != nil {
		return err
	}
	if err := write(a, files); err != nil {
		return err
	}
	if err := a.SetNote([]byte("to be adopted")); err != nil {
		return err
	}
	return adopt(ctx, a, files)
}

// checkAdopted holds what is there after a crash against what was promised, ends
// what was begun, and looks again.
func checkAdopted(t *testing.T, tier *Tier, files []*draft, where string) {
	t.Helper()
	a, here := tier.Area("run/a@1")
	for _, d := range files {
		b, err := tier.Get(t.Context(), d.blob)
		switch {
		case err == nil && !bytes.Equal(b, d.bytes):
			t.Fatalf("%s: blob %s has other bytes", where, d.blob)
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist), d.blobOnly:
			t.Fatalf("%s: %s, adopted: %v: %v", where, d.blob, d.blobOnly, err)
		case !d.synced:
			continue
		case !here:
			t.Fatalf("%s: the area is gone, and %s is no blob", where, d.file)
		}
		if got, err := readDraft(a, d.file); err != nil || !bytes.Equal(got, d.bytes) {
			t.Fatalf("%s: %s: %v, or other bytes", where, d.file, err)
		}
	}
	for info := range tier.List("") {
		if err := tier.Verify(t.Context(), info.Name, nil); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
	}
	if !here {
		return
	}
	if string(a.Note()) == "to be adopted" { // so all files were synced
		var left []*draft
		for _, d := range files {
			if _, err := a.Lookup(d.file); err == nil {
				left = append(left, &draft{file: d.file, blob: d.blob})
			}
		}
		if err := adopt(t.Context(), a, left); err != nil {
			t.Fatalf("%s: going on: %v", where, err)
		}
		for _, d := range files {
			if b, err := tier.Get(t.Context(), d.blob); err != nil || !bytes.Equal(b, d.bytes) {
				t.Fatalf("%s: after going on, %s: %v, or other bytes", where, d.blob, err)
			}
		}
	} else if err := a.Discard(); err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	if u := tier.Usage(); u.Writing != 0 || len(tier.Areas()) > 0 {
		t.Fatalf("%s: %d bytes in %d areas are left", where, u.Writing, len(tier.Areas()))
	}
}

func readDraft(a *Area, name string) ([]byte, error) {
	info, err := a.Lookup(name)
	if err != nil {
		return nil, err
	}
	f, err := a.Open(info.Number, false)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, info.Size)
	n, err := f.ReadAt(b, 0)
	return b[:n], err
}

// TestPromise9PowerLoss loses power at every operation of an area's life,
// boots with nothing, all, or any part of what was not synced, and again while
// the next process goes on.
func TestPromise9PowerLoss(t *testing.T) {
	points := 0
	for n := 1; ; n++ {
		mem, files := vfstest.New(vfstest.Options{}), drafts()
		mem.LosePowerAt(n)
		tier, err := openMem(mem)
		if err == nil {
			err = areaLife(t.Context(), tier, files)
		}
		if err != nil && !errors.Is(err, vfstest.ErrPower) {
			t.Fatalf("operation %d: %v", n, err)
		}
		for i := range 8 {
			mode, r := vfstest.Torn, rand.New(rand.NewSource(int64(n*100+i)))
			if i < 2 {
				mode = vfstest.Mode(i)
			}
			boot := mem.Crash(mode, r)
			if i >= 5 { // and again while it is opened
				boot.LosePowerAt(1 + r.Intn(20))
				_, _ = openMem(boot)
				boot = boot.Crash(mode, r)
			}
			where := fmt.Sprintf("power lost at operation %d (%v, try %d)", n, mode, i)
			again, oerr := openMem(boot)
			if oerr != nil {
				t.Fatalf("%s: %v", where, oerr)
			}
			checkAdopted(t, again, files, where)
			points++
		}
		if err == nil {
			t.Logf("%d crash points over %d operations", points, n-1)
			return
		}
	}
}

// TestPromise9AnyOperationFails fails every single operation once: the error
// comes out, nothing is lost, and the same process goes on.
func TestPromise9AnyOperationFails(t *testing.T) {
	cause := fmt.Errorf("disk: %w", syscall.EIO)
	for n := 1; ; n++ {
		mem, files := vfstest.New(vfstest.Options{}), drafts()
		tier, err := openMem(mem)
		if err != nil {
			t.Fatal(err)
		}
		before := mem.Ops()
		mem.OnOp(vfstest.FailNth(before+n, cause))
		err = areaLife(t.Context(), tier, files)
		if err != nil && !errors.Is(err, cause) {
			t.Fatalf("operation %d: %v", n, err)
		}
		mem.OnOp(nil)
		if a, ok := tier.Area("run/a@1"); ok {
			a.Thaw()
			checkAdopted(t, tier, files, fmt.Sprintf("operation %d failed", n))
		}
		again, oerr := openMem(mem.Crash(vfstest.Lose, nil))
		if oerr != nil {
			t.Fatal(oerr)
		}
		if len(again.Areas()) > 0 {
			t.Fatalf("operation %d failed: an area came back", n)
		}
		if err == nil && mem.Ops() < before+n {
			return
		}
	}
}

// TestPromise9SomebodyStillWrites: a file that is open for writing is not made
// a blob, also when this process knows nothing of it: its predecessor gave the
// descriptor away.
func TestPromise9SomebodyStillWrites(t *testing.T) {
	tier, err := Open(vfs.OS, Options{Dirs: []string{t.TempDir()}, Quota: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	a, err := tier.NewArea("run@1", nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := a.Create("x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("bytes"), 0); err != nil {
		t.Fatal(err)
	}
	if err := a.Freeze(); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("frozen with a writer: %v, want ErrConflict", err)
	}
	outside, err := f.OpenFile()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Freeze(); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("frozen with a writer that nobody counted: %v, want ErrConflict", err)
	}
	outside.Close()
	if err := a.Freeze(); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"created": second(a.Create("y")), "opened": second(a.Open(1, true)), "renamed": a.Rename("x", "y", true), "unlinked": a.Unlink("x"),
	} {
		if !errors.Is(err, catalog.ErrConflict) {
			t.Errorf("%s while frozen: %v, want ErrConflict", what, err)
		}
	}
	if err := a.Adopt(t.Context(), "x", "run/b", nil); err != nil {
		t.Fatal(err)
	}
	if b, err := tier.Get(t.Context(), "run/b"); err != nil || string(b) != "bytes" {
		t.Errorf("the blob is %q, %v", b, err)
	}
}

func second[T any](_ T, err error) error { return err }

// TestPromise10Quota: what is written through the tier is refused where the
// quota ends; what others write is dropped, and the writer told.
func TestPromise10Quota(t *testing.T) {
	tier, err := Open(vfs.OS, Options{Dirs: []string{t.TempDir()}, Quota: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer tier.Close()
	a, err := tier.NewArea("run@1", nil)
	if err != nil {
		t.Fatal(err)
	}
	create := func(name string) *AreaFile {
		f, err := a.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	good := create("good")
	if _, err := good.WriteAt(make([]byte, 300<<10), 0); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"write": second(good.WriteAt(make([]byte, 800<<10), 300<<10)), "truncate": good.Truncate(2 << 20), "allocate": good.Allocate(2 << 20),
		"a far offset": second(good.WriteAt([]byte{1}, 1<<50)),
	} {
		if !errors.Is(err, catalog.ErrNoSpace) {
			t.Errorf("%s over the quota: %v, want ErrNoSpace", what, err)
		}
	}
	if err := errors.Join(good.Sync(), good.Close()); err != nil {
		t.Fatal(err)
	}

	bad := create("bad")
	outside, err := bad.OpenFile()
	if err != nil {
		t.Fatal(err)
	}
	defer outside.Close()
	if _, err := outside.WriteAt(make([]byte, 900<<10), 0); err != nil {
		t.Fatal(err)
	}
	over, writing := tier.MeasureAreas()
	if want := int64(300<<10 + 900<<10 - 1<<20 - 1<<14); over != want || !writing {
		t.Errorf("over by %d, writing %v; want %d", over, writing, want)
	}
	if got := tier.DropOverrun(); fmt.Sprint(got) != "[run@1/bad]" {
		t.Errorf("dropped %v", got)
	}
	if _, err := outside.WriteAt(make([]byte, 1<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	if over, _ := tier.MeasureAreas(); over != 0 {
		t.Errorf("over by %d after the drop", over)
	}
	var st syscall.Stat_t
	if err := syscall.Fstat(int(outside.Fd()), &st); err != nil || st.Blocks > 16 {
		t.Errorf("%d blocks are taken by what was dropped, %v", st.Blocks, err)
	}
	if err := bad.Sync(); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("fsync of it: %v, want ErrNoSpace", err)
	}
	if err := bad.Close(); err != nil {
		t.Error(err)
	}
	if u := tier.Usage(); u.Writing != 300<<10 {
		t.Errorf("%d bytes count, want those of the other file", u.Writing)
	}
	if _, err := a.Lookup("bad"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is still there: %v", err)
	}

	// What was removed while it is open counts until it is closed.
	gone := create("gone")
	if _, err := gone.WriteAt(make([]byte, 100<<10), 0); err != nil {
		t.Fatal(err)
	}
	if err := a.Unlink("gone"); err != nil {
		t.Fatal(err)
	}
	if u := tier.Usage(); u.Writing != 400<<10 {
		t.Errorf("%d bytes count while it is open", u.Writing)
	}
	gone.Close()
	if u := tier.Usage(); u.Writing != 300<<10 || u.Free > 1<<20-300<<10 {
		t.Errorf("%d bytes count, %d free", u.Writing, u.Free)
	}
}

// TestAreaNames: areas and their files are found again, under the names they
// were given, and none leaves its folder.
func TestAreaNames(t *testing.T) {
	dir := t.TempDir()
	open := func() *Tier {
		tier, err := Open(vfs.OS, Options{Dirs: []string{dir}, Quota: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		return tier
	}
	tier := open()
	a, err := tier.NewArea("a", []byte("n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tier.NewArea("a", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second area of a name: %v", err)
	}
	for _, bad := range []string{"", ".", "..", "x/y", "x\x00", string(make([]byte, 256))} {
		if _, err := a.Create(bad); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("file %q: %v, want ErrInvalid", bad, err)
		}
	}
	f, err := a.Create("\xff")
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := errors.Join(a.SetName("b"), a.SetNote([]byte("m"))); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir+"/areas/torn/files", 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/areas/torn/files/x", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tier.Close()
	tier = open()
	defer tier.Close()
	a, ok := tier.Area("b")
	if !ok || len(tier.Areas()) != 1 || string(a.Note()) != "m" || len(a.Files()) != 1 || a.Files()[0].Name != "\xff" {
		t.Errorf("found %v areas", len(tier.Areas()))
	}
	if _, err := os.Stat(dir + "/areas/torn"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an area that was being made is still there: %v", err)
	}
}

// TestAreasOverDisks: areas are spread over the disks, also after a restart, and
// do not keep ingests from the disks they are on.
func TestAreasOverDisks(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir()}
	open := func() *Tier {
		tier, err := Open(vfs.OS, Options{Dirs: dirs, Quota: 1 << 30})
		if err != nil {
			t.Fatal(err)
		}
		return tier
	}
	count := func() (n [2]int) {
		for i, dir := range dirs {
			entries, err := os.ReadDir(dir + "/areas")
			if err != nil {
				t.Fatal(err)
			}
			n[i] = len(entries)
		}
		return n
	}
	tier := open()
	for i := range 5 {
		if _, err := tier.NewArea(fmt.Sprint(i), nil); err != nil {
			t.Fatal(err)
		}
	}
	tier.Close()
	tier = open()
	defer tier.Close()
	if _, err := tier.NewArea("5", nil); err != nil {
		t.Fatal(err)
	}
	if got := count(); got != [2]int{3, 3} {
		t.Errorf("the disks have %v areas, want 3 each", got)
	}
	for _, a := range tier.Areas()[:5] {
		if err := a.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range tier.disks {
		if d.ingests != 0 {
			t.Errorf("%d ingests count on %s", d.ingests, d.dir)
		}
	}
}
