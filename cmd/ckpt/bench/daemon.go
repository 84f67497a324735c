package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const (
	startPatience = 60 * time.Second
	stopPatience  = 10 * time.Second
)

// daemon is a ckptd of the run's own.
type daemon struct {
	cmd    *exec.Cmd
	exited chan error
	log    string
	data   string
	socket string
	arena  string
	client *ckpt.Client
}

// start runs the daemon of a suite.
func (b *bench) start(ctx context.Context, arena int64, flags ...string) (*daemon, error) {
	return b.startNode(ctx, "bench", arena, flags...)
}

// startNode runs a daemon with an empty data directory and waits until it
// answers and its arena is warm.
func (b *bench) startNode(ctx context.Context, name string, arena int64, flags ...string) (_ *daemon, err error) {
	d := &daemon{data: filepath.Join(b.dir, name), socket: filepath.Join(b.run, name), arena: filepath.Join(b.arenas, name), exited: make(chan error, 1)}
	if err := os.Mkdir(d.data, 0o700); err != nil {
		return nil, err
	}
	d.log = filepath.Join(d.data, "log")
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	args := append([]string{
		"serve", "--name", name, "--data", d.data, "--socket", d.socket,
		"--arena", fmt.Sprintf("%dMiB", arena>>20), "--arena-dir", d.arena,
	}, flags...)
	d.cmd = exec.Command(b.ckptd, args...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	// Its own process group: Ctrl-C reaches us, and we stop it in order. If we
	// are killed, it is told.
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := startOn(d.cmd, d.exited); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.ckptd, err)
	}
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
}

// startOn starts a process on a thread that lives as long as it does: Pdeathsig
// is sent when the thread ends that started it. What Wait returns goes to
// exited, which has room for it.
func startOn(cmd *exec.Cmd, exited chan<- error) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this goroutine
		err := cmd.Start()
		started <- err
		if err == nil {
			exited <- cmd.Wait()
		}
	}()
	return <-started
}

// await waits for the first answer and the warm arena.
func (d *daemon) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := func() (err error) {
			if d.client == nil {
				if d.client, err = ckpt.Dial(ctx, d.socket); err != nil {
					return err
				}
			}
			st, err := d.client.Status(ctx)
			if err == nil && !st.Arena.Warm {
				err = fmt.Errorf("its arena is not warm: %w", catalog.ErrUnavailable)
			}
			return err
		}()
		if err == nil {
			return nil
		}
		select {
		case exit := <-d.exited:
			d.exited <- exit
			return fmt.Errorf("the daemon ended: %w\n%s", exit, d.tail())
		case <-ctx.Done():
			return fmt.Errorf("the daemon is not ready: %w\n%s", err, d.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// tail is the end of the daemon's log.
func (d *daemon) tail() string {
	b, err := os.ReadFile(d.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// stop ends the daemon and removes what it kept.
func (d *daemon) stop() error {
	if d.client != nil {
		d.client.Close()
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.exited:
	case <-time.After(stopPatience):
		d.cmd.Process.Kill()
		<-d.exited
	}
	return errors.Join(os.RemoveAll(d.data), os.RemoveAll(d.arena))
}

// finish stops the daemon at the end of a suite; an error of the suite is told
// with the daemon's last words.
func (d *daemon) finish(err error) error {
	err = d.explain(err)
	return errors.Join(err, d.stop())
}

// explain adds the daemon's last words to an error.
func (d *daemon) explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	return fmt.Errorf("%w\n%s", err, d.tail())
}

// cpu is the processor time the daemon has used so far.
func (d *daemon) cpu() (time.Duration, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field, the name, is in parentheses and may hold anything.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("stat of the daemon: %w", catalog.ErrCorrupt)
	}
	var ticks int64
	for _, f := range fields[11:13] { // utime, stime
		n, err := strconv.ParseInt(string(f), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat of the daemon: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / 100), nil // USER_HZ is 100 on Linux
}

// memory is what the daemon has in memory beyond its arena, in bytes.
func (d *daemon) memory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.cmd.Process.Pid))
	if err != nil {
		return 0, err
	}
	var sum int64
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(line, ":")
		if k != "RssAnon" && k != "RssFile" { // RssShmem is the arena
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("status of the daemon: %w", err)
		}
		sum += n << 10
	}
	return sum, nil
}

// ownCPU is the processor time this process has used so far.
func ownCPU() (time.Duration, error) {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		return 0, fmt.Errorf("getrusage: %w", err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano()), nil
}

// cpuOf is the processor time do takes in this process, and in d unless nil.
func cpuOf(d *daemon, do func() error) (time.Duration, error) {
	all := func() (time.Duration, error) {
		own, err := ownCPU()
		if d == nil || err != nil {
			return own, err
		}
		its, err := d.cpu()
		return own + its, err
	}
	before, err := all()
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := all()
	return after - before, err
}
