package bench

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// TestPlainNetwork: the network's yardsticks move what they are told to, and
// say so when a file is too short.
func TestPlainNetwork(t *testing.T) {
	data, err := randomMemory(16<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	if err := sendMemory(data, 4, 2)(); err != nil {
		t.Errorf("sendMemory: %v", err)
	}
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"a", "b", "c"} {
		files = append(files, filepath.Join(dir, name))
		if err := os.WriteFile(files[len(files)-1], data[:3<<20], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := sendFiles(files, 3<<20)(); err != nil {
		t.Errorf("sendFiles: %v", err)
	}
	if err := sendFiles(files, 3<<20+1)(); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("sendFiles of more than there is: %v, want ErrCorrupt", err)
	}
}

// TestComparing: bytes are right at their own place only.
func TestComparing(t *testing.T) {
	w := comparing{data: []byte("abcdef"), header: 2}
	for _, c := range []struct {
		p    string
		off  int64
		want bool
	}{{"..ab", 0, true}, {".", 0, true}, {"ef", 6, true}, {"", 8, true}, {"ab", 3, false}, {"efg", 6, false}, {"x", 8, false}} {
		if _, err := w.WriteAt([]byte(c.p), c.off); (err == nil) != c.want {
			t.Errorf("WriteAt(%q, %d): %v, right: %v", c.p, c.off, err, c.want)
		}
	}
}

// TestProcessClock: the processor time of another process grows while it works.
func TestProcessClock(t *testing.T) {
	b := &bench{ckptd: "/bin/sh"}
	p, err := b.launch(filepath.Join(t.TempDir(), "log"), "-c", "while :; do :; done")
	if err != nil {
		t.Fatal(err)
	}
	defer p.kill()
	first, err := p.cpu()
	for deadline := time.Now().Add(time.Minute); ; {
		now, nerr := p.cpu()
		if err = errors.Join(err, nerr); err != nil || time.Now().After(deadline) {
			t.Fatalf("no processor time used: %v", err)
		}
		if now > first {
			return
		}
	}
}
