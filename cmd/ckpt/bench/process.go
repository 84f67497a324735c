package bench

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a ckptd of the run's own: a daemon or a target.
type process struct {
	cmd    *exec.Cmd
	exited chan error
	log    string // path
}

// launch starts ckptd with args, its output in the file log.
func (b *bench) launch(log string, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(b.ckptd, args...), exited: make(chan error, 1), log: log}
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p.cmd.Stdout, p.cmd.Stderr = f, f
	// Its own process group: Ctrl-C reaches us, and we stop it in order. If we
	// are killed, it is told.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := startOn(p.cmd, p.exited); err != nil {
		return nil, fmt.Errorf("start %s: %w", b.ckptd, err)
	}
	return p, nil
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

// tail is the end of the process's log.
func (p *process) tail() string {
	b, err := os.ReadFile(p.log)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// end stops the process in order, or at once when it does not.
func (p *process) end() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(stopPatience):
		p.kill()
	}
}

// kill ends the process as a power failure would, for the program.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.exited
}

// cpu is the processor time the process has used so far. It is read from the
// clock of the process: /proc counts in hundredths of a second, which is too
// coarse for the sum over seven processes.
func (p *process) cpu() (time.Duration, error) {
	const sched = 2                                      // CPUCLOCK_SCHED, see clock_getcpuclockid(3)
	clock := int32(^p.cmd.Process.Pid)<<3 | int32(sched) // of all its threads, ended ones included
	var t unix.Timespec
	if err := unix.ClockGettime(clock, &t); err != nil {
		return 0, fmt.Errorf("processor time of ckptd (process %d): %w", p.cmd.Process.Pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// memory is what the process has in memory without what it shares, in bytes: of
// a daemon, all beyond its arena.
func (p *process) memory() (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
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
			return 0, fmt.Errorf("status of ckptd: %w", err)
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

// cpuOf is the processor time do takes in this process, and in those of others.
func cpuOf(others []*process, do func() error) (time.Duration, error) {
	all := func() (sum time.Duration, err error) {
		for _, p := range others {
			its, perr := p.cpu()
			sum, err = sum+its, errors.Join(err, perr)
		}
		own, oerr := ownCPU()
		return sum + own, errors.Join(err, oerr)
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
