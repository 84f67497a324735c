package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// Worker is one writer process of a benchmark. It takes commands from its
// standard input, a line each, and answers each with a line.
type Worker struct {
	Socket  string
	To      string // run
	Attempt int
	Rank    int
	World   int
	Size    int64 // bytes of its shard
	Dir     string
}

// WorkerCommand is the hidden command of this program that runs a Worker; its
// only argument is for ParseWorker.
const WorkerCommand = "bench-worker"

func workerSeed(rank int) uint64 { return 100 + uint64(rank) }

// ParseWorker reads the one argument that the worker's command is given.
func ParseWorker(arg string) (w Worker, err error) {
	f := strings.Split(arg, "\x1f")
	if len(f) != 7 {
		return w, fmt.Errorf("worker: %w: this command is for `ckpt bench` alone", catalog.ErrInvalid)
	}
	w.Socket, w.To, w.Dir = f[0], f[1], f[2]
	for i, to := range []*int{&w.Attempt, &w.Rank, &w.World} {
		if *to, err = strconv.Atoi(f[3+i]); err != nil {
			return w, fmt.Errorf("worker: %w: %v", catalog.ErrInvalid, err)
		}
	}
	if w.Size, err = strconv.ParseInt(f[6], 10, 64); err != nil {
		return w, fmt.Errorf("worker: %w: %v", catalog.ErrInvalid, err)
	}
	return w, nil
}

func (w Worker) arg() string {
	return strings.Join([]string{w.Socket, w.To, w.Dir, strconv.Itoa(w.Attempt), strconv.Itoa(w.Rank), strconv.Itoa(w.World), strconv.FormatInt(w.Size, 10)}, "\x1f")
}

// Run serves commands until in ends.
func (w Worker) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	data, err := randomMemory(w.Size, workerSeed(w.Rank))
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	c, err := ckpt.Dial(ctx, w.Socket)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := fmt.Fprintln(out, "ok"); err != nil {
		return err
	}
	plain := filepath.Join(w.Dir, fmt.Sprintf("plain-%d", w.Rank))
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		what, arg, _ := strings.Cut(lines.Text(), " ")
		var err error
		switch what {
		case "save":
			var step int64
			if step, err = strconv.ParseInt(arg, 10, 64); err == nil {
				_, _, err = save(ctx, c, w.To, step, data, ckpt.Rank(w.Rank, w.World), ckpt.Attempt(w.Attempt))
			}
		case "write":
			err = plainWrite(plain, data)
		case "unlink":
			err = os.Remove(plain)
		default:
			err = fmt.Errorf("command %q: %w", what, catalog.ErrInvalid)
		}
		answer := "ok"
		if err != nil {
			answer = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		if _, err := fmt.Fprintln(out, answer); err != nil {
			return err
		}
	}
	return lines.Err()
}

// crew is some workers.
type crew struct {
	exited []chan error
	in     []io.WriteCloser
	out    []*bufio.Reader
}

// startCrew starts n workers and waits until all are ready.
func startCrew(ctx context.Context, n int, like Worker) (_ *crew, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &crew{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	for rank := range n {
		like.Rank = rank
		cmd := exec.CommandContext(ctx, self, WorkerCommand, like.arg())
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		exited := make(chan error, 1)
		if err := startOn(cmd, exited); err != nil {
			return nil, fmt.Errorf("start a worker: %w", err)
		}
		c.exited, c.in, c.out = append(c.exited, exited), append(c.in, in), append(c.out, bufio.NewReader(out))
	}
	return c, c.answers()
}

// all gives a command to every worker and waits for all answers.
func (c *crew) all(command string) error {
	for _, in := range c.in {
		if _, err := fmt.Fprintln(in, command); err != nil {
			return fmt.Errorf("worker: %w", err)
		}
	}
	return c.answers()
}

func (c *crew) answers() error {
	var g errgroup.Group
	for rank, out := range c.out {
		g.Go(func() error {
			line, err := out.ReadString('\n')
			if line = strings.TrimSpace(line); line == "ok" {
				return nil
			}
			return fmt.Errorf("worker %d: %s: %w", rank, line, errors.Join(err, catalog.ErrUnavailable))
		})
	}
	return g.Wait()
}

// stop ends the workers.
func (c *crew) stop() {
	for _, in := range c.in {
		in.Close() // they read to the end of it
	}
	for _, exited := range c.exited {
		<-exited // what mattered was answered
	}
}
