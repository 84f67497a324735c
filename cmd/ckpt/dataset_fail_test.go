package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/datasets/store"
)

// heard is what an import that runs beside the test has said so far.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func (h *heard) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.String()
}

// wait returns when the import has said it.
func (h *heard) wait(t *testing.T, what string) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.After(2 * time.Minute); !strings.Contains(h.String(), what); {
		select {
		case <-tick.C:
		case <-end:
			t.Fatalf("it never said %q, but:\n%s", what, h)
		}
	}
}

// importing starts an import and gives what it says, and its exit code.
func importing(ctx context.Context, d *daemon, args ...string) (*heard, <-chan int) {
	h, code := new(heard), make(chan int, 1)
	go func() {
		code <- run(ctx, append([]string{"--socket", d.socket, "dataset", "import"}, args...), io.Discard, h)
	}()
	return h, code
}

// noVersion holds that nothing of a dataset is visible.
func noVersion(t *testing.T, d *daemon, name string) {
	t.Helper()
	c := d.dial()
	if _, err := c.OpenDataset(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v, want that it does not exist", name, err)
	}
	all, err := c.Datasets(t.Context())
	if err != nil {
		t.Error(err)
	}
	for _, x := range all { // packs that are stored are no version
		if x.Versions != 0 || x.Latest != nil {
			t.Errorf("%+v: a version is visible", x)
		}
	}
}

// cutDaemon kills the daemon in the middle of an import, when it has packs. An
// import that is faster than the signal is begun anew.
func cutDaemon(t *testing.T, d *daemon, dir, name string, flags ...string) (as string, h *heard, code <-chan int) {
	t.Helper()
	for i := range 10 {
		as = fmt.Sprintf("%s-%d", name, i)
		c := d.dial()
		st, err := store.New(c, as)
		if err != nil {
			t.Fatal(err)
		}
		h, code = importing(t.Context(), d, append(append([]string{"--raw-from", "2"}, flags...), dir, as)...)
		tick := time.NewTicker(2 * time.Millisecond)
		for over := false; !over; <-tick.C {
			packs, err := st.Packs(t.Context())
			over = len(packs) >= 2 || err != nil || len(code) > 0
		}
		tick.Stop()
		d.stop(syscall.SIGKILL)
		if len(code) == 0 {
			return as, h, code
		}
		d.start()
	}
	t.Fatal("every import was over before the daemon was killed")
	return as, h, code
}

// TestImportDaemonAway: an import says that its daemon is away; it goes on when
// the daemon is back, and gives up when told to, with nothing visible and what
// is stored kept.
func TestImportDaemonAway(t *testing.T) {
	d := startDaemon(t)
	dir := oddTree(t, 16)

	name, h, code := cutDaemon(t, d, dir, "gone", "--patience", "1500ms")
	if got := <-code; got != 1 || !strings.Contains(h.String(), "waited ") || !strings.Contains(h.String(), "--patience") {
		t.Errorf("exit %d, want 1, and what to do:\n%s", got, h)
	}
	d.start()
	noVersion(t, d, name)
	if v := importDataset(t, d, "--raw-from", "2", dir, name); v.OldPacks < 2 {
		t.Errorf("%+v: packs were not taken up", v)
	}
	wantDataset(t, d, name, dir)

	name, h, code = cutDaemon(t, d, dir, "back")
	h.wait(t, "waits since")
	d.start()
	if got := <-code; got != 0 {
		t.Errorf("with the daemon back: exit %d\n%s", got, h)
	}
	wantDataset(t, d, name, dir)
}

// TestImportNoSpace: a full node with nothing to drain ends an import at once.
func TestImportNoSpace(t *testing.T) {
	d := startDaemon(t, "--quota", "20MiB", "--remote", "none")
	h, code := importing(t.Context(), d, "--raw-from", "2", oddTree(t, 12), "pets")
	if got := <-code; got != 5 || !strings.Contains(h.String(), "not enough space") || !strings.Contains(h.String(), "ckpt dataset rm") {
		t.Errorf("exit %d, want 5, and what to do:\n%s", got, h)
	}
	noVersion(t, d, "pets")
}

// TestImportInterrupted: Ctrl-C ends an import at once, also one that waits.
func TestImportInterrupted(t *testing.T) {
	d := startDaemon(t)
	ctx, interrupt := context.WithCancel(t.Context())
	defer interrupt()
	if err := d.cmd.Process.Signal(syscall.SIGSTOP); err != nil { // it takes connections and says nothing
		t.Fatal(err)
	}
	defer func() { _ = d.cmd.Process.Signal(syscall.SIGCONT) }()
	h, code := importing(ctx, d, oddTree(t, 1), "pets")
	interrupt()
	if got := <-code; got != 1 {
		t.Errorf("exit %d, want 1:\n%s", got, h)
	}
}

// TestImportTogether: two imports of one dataset at once are both whole, and
// what they have in common is one version, or two in a row.
func TestImportTogether(t *testing.T) {
	d := startDaemon(t)
	dirs := []string{oddTree(t, 3), oddTree(t, 3)}
	if err := os.WriteFile(filepath.Join(dirs[1], "only here"), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	var codes []<-chan int
	var said []*heard
	for _, dir := range dirs {
		h, code := importing(t.Context(), d, "--raw-from", "2", dir, "pets")
		codes, said = append(codes, code), append(said, h)
	}
	for i, code := range codes {
		if got := <-code; got != 0 {
			t.Errorf("import %d: exit %d\n%s", i, got, said[i])
		}
	}
	c := d.dial()
	seen := map[int64]bool{}
	for _, ref := range []string{"pets@1", "pets@2"} {
		v, err := c.OpenDataset(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		seen[v.Len()] = true
		for i := range v.Len() {
			if _, err := v.Sample(t.Context(), i); err != nil {
				t.Errorf("%s sample %d: %v", ref, i, err)
			}
		}
		v.Close()
	}
	if len(seen) != 2 {
		t.Errorf("versions of %v samples, want one of each import", seen)
	}
}

// TestImportSourceWrittenTo: a file that grows while it is read ends the import
// with its name; the next one, when it is left alone, works.
func TestImportSourceWrittenTo(t *testing.T) {
	d := startDaemon(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "train.log")
	if err := os.WriteFile(path, random(30<<20, 1), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	stop, stopped := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				stopped <- nil
				return
			default:
			}
			if _, err := f.WriteString("step\n"); err != nil {
				stopped <- err
				return
			}
		}
	}()
	h, code := importing(t.Context(), d, "--raw-from", "2", dir, "pets")
	got := <-code
	close(stop)
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if got != 6 || !strings.Contains(h.String(), `"train.log"`) || !strings.Contains(h.String(), "nobody writes") {
		t.Errorf("exit %d, want 6, naming the file:\n%s", got, h)
	}
	noVersion(t, d, "pets")
	importDataset(t, d, "--raw-from", "2", dir, "pets")
	wantDataset(t, d, "pets", dir)
}
