package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// The test binary is also the daemon, the trainer of TestKill9, an import and
// a reader of a mount: it runs itself again with one of these variables set.
const (
	asDaemon  = "CKPTD_TEST_DAEMON"
	asTrainer = "CKPTD_TEST_TRAINER"
)

func TestMain(m *testing.M) {
	switch {
	case os.Getenv(asDaemon) != "":
		main()
	case os.Getenv(asTrainer) != "":
		os.Exit(train(os.Args[1:]))
	case os.Getenv(asImporter) != "":
		os.Exit(importAndHang(os.Args[1], os.Args[2], os.Args[3]))
	case os.Getenv(asReader) != "":
		os.Exit(readUntilTold(os.Args[1:]))
	default:
		os.Exit(m.Run())
	}
}

// daemon is one ckptd process, which may be killed and started again.
type daemon struct {
	t      testing.TB
	host   *netHost            // nil: this one
	cred   *syscall.Credential // nil: the test's own user
	name   string
	dir    string
	socket string
	flags  []string
	stdin  *os.File // nil: /dev/null
	cmd    *exec.Cmd
	dead   chan struct{} // closed when the process has ended
	log    *os.File
}

// patience bounds every wait of a test for something that must happen.
const patience = 60 * time.Second

// newDaemon prepares a daemon with a data directory of its own.
func newDaemon(t testing.TB, name string, flags ...string) *daemon {
	t.Helper()
	dir := t.TempDir()
	short, err := os.MkdirTemp("", "ckptd") // a socket's path is at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{t: t, name: name, dir: dir, socket: filepath.Join(short, "s")}
	if d.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	arena, err := os.MkdirTemp("/dev/shm", "ckptd-test")
	if err != nil {
		arena = filepath.Join(dir, "arena")
	}
	d.flags = append([]string{"serve", "--name", name, "--socket", d.socket, "--data", filepath.Join(dir, "data"),
		"--arena", "32MiB", "--arena-dir", arena, "--log-level", "debug"}, flags...)
	t.Cleanup(func() {
		d.kill()
		d.mustBeSane()
		if t.Failed() {
			t.Logf("the end of the log of %s:\n%s", name, d.tail(40))
		}
		_ = errors.Join(os.RemoveAll(arena), os.RemoveAll(short), d.log.Close())
	})
	return d
}

// mustBeSane looks for what a daemon that was killed could not say with its
// exit code.
func (d *daemon) mustBeSane() {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		d.t.Error(err)
	}
	for _, bad := range []string{"DATA RACE", "panic: ", "handler panicked", "fatal error: "} {
		if i := bytes.Index(b, []byte(bad)); i >= 0 {
			d.t.Errorf("%s: %s", d.name, b[max(0, i-200):min(len(b), i+4000)])
		}
	}
}

// grep gives the last lines of the log that have one of the words.
func (d *daemon) grep(words ...string) string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if slices.ContainsFunc(words, func(w string) bool { return strings.Contains(line, w) }) {
			found = append(found, line)
		}
	}
	return strings.Join(found[max(0, len(found)-60):], "")
}

// tail is the end of the daemon's log.
func (d *daemon) tail(lines int) string {
	b, err := os.ReadFile(d.log.Name())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// launch starts the process and does not wait for it.
func (d *daemon) launch() {
	d.t.Helper()
	d.cmd = d.host.program(d.flags...)
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if d.cred != nil { // who may not look into the folder of the test's program
		d.cmd.Path, d.cmd.SysProcAttr = "/proc/self/exe", &syscall.SysProcAttr{Credential: d.cred}
	}
	if d.stdin != nil {
		d.cmd.Stdin = d.stdin
	}
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.dead = make(chan struct{})
	cmd, dead := d.cmd, d.dead
	go func() {
		_ = cmd.Wait()
		close(dead)
	}()
}

// start launches the daemon and waits until it answers.
func (d *daemon) start() *daemon {
	d.t.Helper()
	d.launch()
	d.dial()
	return d
}

// dial waits for the daemon and connects to it.
func (d *daemon) dial() *ckpt.Client {
	d.t.Helper()
	var c *ckpt.Client
	eventually(d.t, d.name+" answers", func() (err error) {
		select {
		case <-d.dead:
			d.t.Fatalf("%s ended: %v\n%s", d.name, d.cmd.ProcessState, d.tail(5))
		default:
		}
		if c, err = ckpt.Dial(d.t.Context(), d.socket); err == nil {
			_, err = c.Status(d.t.Context())
		}
		return err
	})
	d.t.Cleanup(func() { _ = c.Close() })
	return c
}

// kill is SIGKILL; it returns when the process is gone.
func (d *daemon) kill() {
	if d.cmd == nil {
		return
	}
	_ = d.cmd.Process.Kill() // it may have ended before
	<-d.dead
	d.cmd = nil
}

// eventually asks again and again until there is no error.
func eventually(t testing.TB, what string, ask func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, patience, err)
		}
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatalf("%s: %v", what, t.Context().Err())
		}
	}
}

// content is what a rank saves: a function of what it is called.
func content(step int64, attempt, rank, size int) []byte {
	b := make([]byte, size)
	var seed [32]byte
	copy(seed[:], fmt.Sprintf("%d %d %d", step, attempt, rank))
	_, _ = rand.NewChaCha8(seed).Read(b)
	return b
}

// save saves one rank and returns when it is sealed.
func save(ctx context.Context, c *ckpt.Client, run string, step int64, attempt, rank, world, size int) (*ckpt.Set, error) {
	s, err := c.Save(ctx, ckpt.At(run, step), ckpt.Attempt(attempt), ckpt.Rank(rank, world))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	b := content(step, attempt, rank, size)
	if err := s.Tensor("w", "U8", []int64{int64(size)}, b); err != nil {
		return nil, err
	}
	return s.Commit(ctx)
}

// load reads every shard of a set through one daemon and compares.
func load(ctx context.Context, c *ckpt.Client, ref string, from ...string) error {
	var opts []ckpt.OpenOption
	for _, f := range from {
		opts = append(opts, ckpt.From(f))
	}
	r, err := c.Open(ctx, ref, opts...)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, s := range r.Manifest().Shards {
		p := make([]byte, s.Size)
		if err := r.ReadShard(ctx, s.Rank, p); err != nil {
			return fmt.Errorf("%s rank %d: %w", ref, s.Rank, err)
		}
		t := s.Tensors[0]
		if want := content(r.ID().Step, r.ID().Attempt, s.Rank, int(t.Size)); !bytes.Equal(p[t.Offset:t.Offset+t.Size], want) {
			return fmt.Errorf("%s rank %d: other bytes came back", ref, s.Rank)
		}
	}
	return nil
}

func mustLoad(t testing.TB, c *ckpt.Client, ref string, from ...string) {
	t.Helper()
	if err := load(t.Context(), c, ref, from...); err != nil {
		t.Errorf("load %s %v: %v", ref, from, err)
	}
}

func mustWait(t testing.TB, c *ckpt.Client, ref string, level catalog.Level) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Wait(ctx, ref, level); err != nil {
		t.Fatalf("wait for %s at %v: %v", ref, level, err)
	}
}

// listed gives the committed sets of a run, by ID.
func listed(t testing.TB, c *ckpt.Client, run string) map[string]catalog.Level {
	t.Helper()
	sets, err := c.Sets(t.Context(), run, false)
	if err != nil && !strings.Contains(err.Error(), "not exist") {
		t.Fatalf("list %s: %v", run, err)
	}
	m := make(map[string]catalog.Level)
	for _, s := range sets {
		m[s.ID] = s.Level
	}
	return m
}
