package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

// buildDaemon builds cmd/ckptd once for the tests of this package.
var buildDaemon = sync.OnceValues(func() (string, error) {
	out, err := exec.Command("go", "build", "-o", filepath.Join(binDir, "ckptd"), "../ckptd").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("go build ../ckptd: %w\n%s", err, out)
	}
	return filepath.Join(binDir, "ckptd"), nil
})

var binDir string

func TestMain(m *testing.M) {
	var err error
	if binDir, err = os.MkdirTemp("", "ckpt-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(binDir)
	os.Exit(code)
}

// daemon is a real one, with its data in a temporary folder.
type daemon struct {
	t      testing.TB
	dir    string
	socket string
	args   []string
	cmd    *exec.Cmd
	gone   chan struct{}
	mu     sync.Mutex
	log    bytes.Buffer
}

// startDaemon starts a daemon that lives as long as the test.
func startDaemon(t testing.TB, args ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	sock, err := os.MkdirTemp("", "s") // a socket's path is at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	arena, err := os.MkdirTemp("/dev/shm", "ckpt-test-")
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, dir: dir, socket: filepath.Join(sock, "s")}
	d.args = append([]string{"serve", "--data", dir, "--socket", d.socket, "--name", "n1", "--arena-dir", arena, "--arena", "128MiB", "--grace", "1s"}, args...)
	t.Cleanup(func() {
		d.stop(syscall.SIGKILL)
		os.RemoveAll(sock)
		os.RemoveAll(arena)
		if t.Failed() {
			d.mu.Lock()
			defer d.mu.Unlock()
			t.Logf("the daemon said:\n%s", d.log.String())
		}
	})
	d.start()
	return d
}

// start returns when the daemon serves.
func (d *daemon) start() {
	d.t.Helper()
	bin, err := buildDaemon()
	if err != nil {
		d.t.Fatal(err)
	}
	d.cmd = exec.Command(bin, d.args...)
	pipe, err := d.cmd.StderrPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.gone = make(chan struct{})
	go func() {
		defer close(d.gone)
		for scan := bufio.NewScanner(pipe); scan.Scan(); {
			d.mu.Lock()
			fmt.Fprintln(&d.log, scan.Text())
			d.mu.Unlock()
		}
		d.cmd.Wait()
	}()
	// Another process tells by answering; nothing but asking finds out.
	for end, tick := time.After(time.Minute), time.NewTicker(10*time.Millisecond); ; {
		c, err := ckpt.Dial(d.t.Context(), d.socket)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-tick.C:
		case <-d.gone:
			d.t.Fatal("the daemon ended")
		case <-end:
			d.t.Fatalf("the daemon does not answer: %v", err)
		}
	}
}

// stop ends the daemon and waits for it.
func (d *daemon) stop(sig syscall.Signal) {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	d.cmd.Process.Signal(sig)
	<-d.gone
}

// ckpt runs the command line and gives its exit code and what it printed.
func (d *daemon) ckpt(args ...string) (code int, out, errs string) {
	var o, e bytes.Buffer
	code = run(d.t.Context(), append([]string{"--socket", d.socket}, args...), &o, &e)
	return code, o.String(), e.String()
}

// must is ckpt that has to work.
func (d *daemon) must(args ...string) string {
	d.t.Helper()
	code, out, errs := d.ckpt(args...)
	if code != 0 {
		d.t.Fatalf("ckpt %v: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// into decodes the JSON a command prints.
func into[T any](d *daemon, args ...string) T {
	d.t.Helper()
	var v T
	out := d.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		d.t.Fatalf("ckpt %v prints %s: %v", args, out, err)
	}
	return v
}

func (d *daemon) dial() *ckpt.Client {
	d.t.Helper()
	c, err := ckpt.Dial(d.t.Context(), d.socket)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	return c
}
