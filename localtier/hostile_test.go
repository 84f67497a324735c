package localtier

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// tamper changes the bytes of a file in memory.
func tamper(t *testing.T, m *vfstest.Mem, name string, change func([]byte) []byte) {
	t.Helper()
	f, err := m.OpenWrite(name, vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, _ := f.Size()
	b := make([]byte, n)
	f.ReadAt(b, 0)
	b = change(b)
	if err := f.Truncate(int64(len(b))); err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 {
		if _, err := f.WriteAt(b, 0); err != nil {
			t.Fatal(err)
		}
	}
}

// TestPromise2EverySealByte cuts a seal at every length and flips each of its
// bytes, before Open and under an open tier: the blob is then put aside or
// refused, never shown.
func TestPromise2EverySealByte(t *testing.T) {
	base := vfstest.New(vfstest.Options{})
	tier, err := openMem(base)
	if err != nil {
		t.Fatal(err)
	}
	if err := ingest(t.Context(), tier, "a/b", pattern(1, 5000)); err != nil {
		t.Fatal(err)
	}
	info, err := tier.Stat("a/b")
	if err != nil {
		t.Fatal(err)
	}
	seal := info.Disk + "/shards/a/.b.seal"
	fi, err := base.Stat(seal)
	if err != nil {
		t.Fatal(err)
	}
	for i := range int(fi.Size()) {
		for kind, change := range map[string]func(b []byte) []byte{
			"cut":  func(b []byte) []byte { return b[:i] },
			"flip": func(b []byte) []byte { b[i] ^= 0x10; return b },
		} {
			mem := base.Crash(vfstest.Lose, nil)
			live, err := openMem(mem)
			if err != nil {
				t.Fatal(err)
			}
			tamper(t, mem, seal, change)
			if _, err := live.Get(t.Context(), "a/b"); !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("%s at %d under an open tier: %v, want ErrCorrupt", kind, i, err)
			}
			again, err := openMem(mem.Crash(vfstest.Keep, nil))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := again.Stat("a/b"); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("%s at %d: the blob is visible (%v)", kind, i, err)
			}
			if u := again.Usage(); u.Quarantined != 5000 {
				t.Fatalf("%s at %d: %d bytes in quarantine", kind, i, u.Quarantined)
			}
		}
	}
}

// TestASealOfAnotherBlob swaps two blobs' seals: neither may be shown.
func TestASealOfAnotherBlob(t *testing.T) {
	mem := vfstest.New(vfstest.Options{})
	tier, err := Open(mem, Options{Dirs: []string{"/d"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		if err := ingest(t.Context(), tier, name, pattern(1, 5000)); err != nil {
			t.Fatal(err)
		}
	}
	var other []byte
	tamper(t, mem, "/d/shards/.a.seal", func(b []byte) []byte { other = b; return b })
	tamper(t, mem, "/d/shards/.b.seal", func([]byte) []byte { return other })
	if _, err := tier.Open("b"); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Open = %v, want ErrCorrupt", err)
	}
	again, err := Open(mem.Crash(vfstest.Keep, nil), Options{Dirs: []string{"/d"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Stat("b"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat = %v, want ErrNotExist", err)
	}
	if _, err := again.Get(t.Context(), "a"); err != nil {
		t.Errorf("the other blob: %v", err)
	}
}

// TestAnUnknownFormatIsLeftAlone opens a folder of a later version.
func TestAnUnknownFormatIsLeftAlone(t *testing.T) {
	mem := vfstest.New(vfstest.Options{})
	tier, err := openMem(mem)
	if err != nil {
		t.Fatal(err)
	}
	if err := ingest(t.Context(), tier, "a", pattern(1, 10)); err != nil {
		t.Fatal(err)
	}
	mem = mem.Crash(vfstest.Lose, nil)
	tamper(t, mem, "/disk0/FORMAT", func(b []byte) []byte { return bytes.Replace(b, []byte("1"), []byte("2"), 1) })
	before := mem.Ops()
	if _, err := openMem(mem); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Open = %v, want ErrInvalid", err)
	}
	if mem.Ops() != before {
		t.Errorf("Open changed something in it")
	}
	if _, err := mem.Lock("/disk0/LOCK"); err != nil {
		t.Errorf("Open kept the lock: %v", err)
	}
}

func TestWithoutDirect(t *testing.T) {
	var told []string
	tier, err := Open(vfstest.New(vfstest.Options{NoDirect: true}), Options{Dirs: []string{"/x", "/y"},
		Trace: Trace{DirectFallback: func(dir string) { told = append(told, dir) }}})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		name, b := fmt.Sprint("a/", i), pattern(int64(i), 5001)
		if err := ingest(t.Context(), tier, name, b); err != nil {
			t.Fatal(err)
		}
		if got, err := tier.Get(t.Context(), name); err != nil || !bytes.Equal(got, b) {
			t.Error(err)
		}
	}
	if len(told) != 2 {
		t.Errorf("told of %s, want each disk once", strings.Join(told, " "))
	}
}
