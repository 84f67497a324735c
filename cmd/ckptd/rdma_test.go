//go:build ofi

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/target"
)

// TestDaemonWithTargetsByRDMA: what a daemon saves goes to its targets by
// remote memory access and comes back that way, with one target killed too.
func TestDaemonWithTargetsByRDMA(t *testing.T) {
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret"), 0o600); err != nil {
		t.Fatal(err)
	}
	flags := []string{"--layout", "2+1", "--unit", "1MiB", "--ofi-provider", "tcp", "--token-file", token}
	var targets []*targetProcess
	for i := range 3 {
		p := startTarget(t, fmt.Sprintf("t%d", i), "--listen", "ofi:127.0.0.1:0", "--ofi-provider", "tcp", "--token-file", token)
		targets = append(targets, p)
		flags = append(flags, "--remote", fmt.Sprintf("ofi:%s,name=%s", p.all[1], p.name))
	}
	d := newDaemon(t, "n1", flags...).start()
	c := d.dial()
	if n, err := c.Attach(t.Context(), "run", "launch", 1); err != nil || n != 1 {
		t.Fatalf("Attach = %d, %v", n, err)
	}
	const size = 12 << 20
	for step := int64(1); step <= 2; step++ {
		if _, err := save(t.Context(), c, "run", step, 1, 0, 1, size); err != nil {
			t.Fatal(err)
		}
	}
	for _, ref := range []string{"run@1", "run@2"} {
		mustWait(t, c, ref, catalog.Verified)
		mustLoad(t, c, ref, "remote")
	}
	targets[0].kill()
	mustLoad(t, c, "run@1", "remote")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-d.dead
	// The drain, the verification and restores move columns where they are; small
	// reads are copied.
	m := regexp.MustCompile(`msg="moved by remote memory access" provider=tcp direct=(\d+) copied=(\d+)`).FindStringSubmatch(d.tail(40))
	if m == nil {
		t.Fatalf("the daemon does not say what it moved:\n%s", d.tail(40))
	}
	direct, _ := strconv.Atoi(m[1])
	copied, _ := strconv.Atoi(m[2])
	if direct < 6*size || copied > direct/8 {
		t.Errorf("%d bytes moved where they were, %d by a copy", direct, copied)
	}
	t.Logf("%d bytes moved where they were, %d by a copy", direct, copied)
}

// TestMemoryOfATargetByRDMA: 64 clients of six connections each take no more
// of a target by RDMA than by TCP.
func TestMemoryOfATargetByRDMA(t *testing.T) {
	p := startBuiltTarget(t, "ofi", "t0", "--buffers", "32MiB", "--listen", "ofi:127.0.0.1:0", "--ofi-provider", "tcp")
	n, err := ofi.New(ofi.Options{Provider: "tcp", Dial: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	memoryWith64Clients(t, p, func() *target.Remote {
		r, err := target.Dial(t.Context(), n, p.all[1:], target.RemoteOptions{Name: p.name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		return r
	})
}

// TestSilentTargetByRDMA: a target that is stopped, and whose card answers on,
// is away after the stall limit; one that goes on is used again.
func TestSilentTargetByRDMA(t *testing.T) {
	p := startTarget(t, "t0", "--listen", "ofi:127.0.0.1:0", "--ofi-provider", "tcp")
	n, err := ofi.New(ofi.Options{Provider: "tcp", Stall: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	r, err := target.Dial(t.Context(), n, p.all[1:], target.RemoteOptions{Name: p.name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	if _, err := r.Space(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	from := time.Now()
	if _, err := r.Space(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("a stopped target: %v, want ErrUnavailable", err)
	}
	if d := time.Since(from); d > 30*time.Second {
		t.Errorf("it took %v to notice, with a limit of 1s", d)
	}
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the target is used again", func() error {
		_, err := r.Space(t.Context())
		return err
	})
}
