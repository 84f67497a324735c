package vfstest

import (
	"errors"
	"io/fs"
	"math/rand"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

func write(t *testing.T, m *Mem, name, text string) vfs.File {
	t.Helper()
	f, err := m.Create(name, vfs.Opt{})
	if errors.Is(err, fs.ErrExist) {
		f, err = m.OpenWrite(name, vfs.Opt{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
	return f
}

func content(m *Mem, name string) string {
	f, err := m.Open(name, vfs.Opt{})
	if err != nil {
		return "-"
	}
	defer f.Close()
	n, _ := f.Size()
	b := make([]byte, n)
	f.ReadAt(b, 0)
	return string(b)
}

func TestPromise1UnsyncedIsForgotten(t *testing.T) {
	m := New(Options{})
	f := write(t, m, "/a", "one")
	if got := content(m.Crash(Lose, nil), "/a"); got != "-" {
		t.Errorf("a name nobody synced is %q after the crash", got)
	}
	m.SyncDir("/")
	if got := content(m.Crash(Lose, nil), "/a"); got != "" {
		t.Errorf("bytes nobody synced are %q after the crash", got)
	}
	f.Sync()
	f.WriteAt([]byte("two"), 0)
	if got := content(m.Crash(Lose, nil), "/a"); got != "one" {
		t.Errorf("after the crash %q, want the synced %q", got, "one")
	}
	if got := content(m.Crash(Keep, nil), "/a"); got != "two" {
		t.Errorf("a lucky crash left %q, want %q", got, "two")
	}
	if got := content(m, "/a"); got != "two" {
		t.Errorf("Crash changed the running file system: %q", got)
	}
}

func TestPromise1TornReachesEveryVersion(t *testing.T) {
	m := New(Options{})
	write(t, m, "/new", "N").Sync()
	write(t, m, "/name", "O").Sync()
	m.SyncDir("/")
	if err := m.Rename("/new", "/name"); err != nil {
		t.Fatal(err)
	}
	f := write(t, m, "/torn", string(make([]byte, 2*sector)))
	f.Sync()
	big := make([]byte, 2*sector)
	for i := range big {
		big[i] = 'x'
	}
	f.WriteAt(big, 0)
	seen := map[string]bool{}
	r := rand.New(rand.NewSource(1))
	for range 300 {
		c := m.Crash(Torn, r)
		seen["name="+content(c, "/name")+" new="+content(c, "/new")] = true
		if s := content(c, "/torn"); len(s) == 2*sector {
			seen["torn="+string([]byte{'0' + s[0]/'x', '0' + s[sector]/'x'})] = true
		}
		if content(c, "/name") == "-" {
			t.Fatal("a replaced name was gone for a moment")
		}
	}
	for _, want := range []string{"name=O new=N", "name=N new=-", "name=O new=-", "name=N new=N", "torn=00", "torn=01", "torn=10", "torn=11"} {
		if !seen[want] {
			t.Errorf("never saw %s", want)
		}
	}
}

func TestPromise2DirectRefuses(t *testing.T) {
	f, err := New(Options{}).Create("/a", vfs.Opt{Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	buf := vfs.AlignedBuffer(2 * vfs.Align)
	if _, err := f.WriteAt(buf, 0); err != nil {
		t.Error(err)
	}
	for name, err := range map[string]error{
		"offset": second(f.WriteAt(buf, 512)), "length": second(f.WriteAt(buf[:100], 0)), "address": second(f.WriteAt(buf[8:8+vfs.Align], 0)),
	} {
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("unaligned %s: %v, want EINVAL", name, err)
		}
	}
	g, _ := New(Options{NoDirect: true}).Create("/a", vfs.Opt{Direct: true})
	if g.Direct() {
		t.Error("Direct where there is no O_DIRECT")
	}
}

func second[T any](_ T, err error) error { return err }

func TestPromise3FailAndLosePower(t *testing.T) {
	boom := errors.New("boom")
	m := New(Options{})
	m.OnOp(FailNth(2, boom))
	f, err := m.Create("/a", vfs.Opt{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, boom) {
		t.Errorf("the second operation gave %v", err)
	}
	if _, err := f.WriteAt([]byte("y"), 0); err != nil || m.Ops() != 3 {
		t.Errorf("the third gave %v, %d ops", err, m.Ops())
	}
	m.LosePowerAt(4)
	for range 2 {
		if err := f.Sync(); !errors.Is(err, ErrPower) {
			t.Errorf("Sync without power: %v", err)
		}
	}
	if _, err := m.Open("/a", vfs.Opt{}); !errors.Is(err, ErrPower) {
		t.Errorf("Open without power: %v", err)
	}
	if _, err := m.Crash(Keep, nil).Open("/a", vfs.Opt{}); err != nil {
		t.Errorf("the next boot: %v", err)
	}
}

func TestSpace(t *testing.T) {
	m := New(Options{Total: 3 * sector})
	f := write(t, m, "/a", "x")
	if err := f.Allocate(4 * sector); !errors.Is(err, catalog.ErrNoSpace) || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("Allocate = %v, want ErrNoSpace", err)
	}
	if err := f.Allocate(2 * sector); err != nil {
		t.Error(err)
	}
	m.Remove("/a")
	if _, free, _ := m.Space("/"); free != sector {
		t.Errorf("free = %d while the removed file is open, want %d", free, sector)
	}
	f.Close()
	if _, free, _ := m.Space("/"); free != 3*sector {
		t.Errorf("free = %d, want all of it", free)
	}
}
