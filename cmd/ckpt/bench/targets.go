package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// The remote tier measured: as many targets as the default layout for them, 4+2,
// has columns.
const (
	benchTargets = 6
	layoutK      = 4
	layoutM      = 2

	targetBuffers = 64 << 20 // bytes, what a target has by default
)

// targetProcess is a stripe target, a process of its own on loopback.
type targetProcess struct {
	*process // nil once it was killed
	name     string
	addr     string
	dir      string
}

// startTarget runs one and waits until it listens.
func (b *bench) startTarget(ctx context.Context, name string, flags ...string) (*targetProcess, error) {
	t := &targetProcess{name: name, dir: filepath.Join(b.dir, name)}
	if err := os.Mkdir(t.dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	args := append([]string{"target", "--dir", t.dir, "--name", name, "--domain", name, "--listen", "127.0.0.1:0"}, flags...)
	if t.process, err = b.launch(t.dir+".log", args...); err != nil {
		return nil, err
	}
	if err := t.await(ctx); err != nil {
		return nil, errors.Join(err, t.stop())
	}
	return t, nil
}

var listens = regexp.MustCompile(`msg="target listens" addr=(\S+)`)

// await waits until the log says at which address the target is.
func (t *targetProcess) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		said, err := os.ReadFile(t.log)
		if err != nil {
			return err
		}
		if m := listens.FindSubmatch(said); m != nil {
			t.addr = string(m[1])
			return nil
		}
		select {
		case exit := <-t.exited:
			t.exited <- exit
			return fmt.Errorf("the target ended: %w\n%s", exit, t.tail())
		case <-ctx.Done():
			return fmt.Errorf("target %s does not listen: %w\n%s", t.name, ctx.Err(), t.tail())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// lose kills the target for good.
func (t *targetProcess) lose() {
	t.kill()
	t.process = nil
}

// stop ends the target and removes what it kept.
func (t *targetProcess) stop() error {
	if t.process != nil {
		t.end()
	}
	return errors.Join(os.RemoveAll(t.dir), os.Remove(t.dir+".log"))
}

// startNetworked runs a daemon whose remote tier is six target processes,
// reached by TCP.
func (b *bench) startNetworked(ctx context.Context, arena int64) (_ *daemon, err error) {
	var targets []*targetProcess
	defer func() {
		if err != nil {
			for _, t := range targets {
				err = errors.Join(err, t.stop())
			}
		}
	}()
	var flags []string
	for i := range benchTargets {
		t, err := b.startTarget(ctx, fmt.Sprintf("t%d", i))
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
		flags = append(flags, "--remote", fmt.Sprintf("tcp:%s,name=%s,domain=%s", t.addr, t.name, t.name))
	}
	d, err := b.start(ctx, arena, flags...)
	if err != nil {
		return nil, err
	}
	d.targets = targets
	return d, nil
}

// target is the process of a target by name.
func (d *daemon) target(name string) (*targetProcess, error) {
	for _, t := range d.targets {
		if t.name == name {
			return t, nil
		}
	}
	return nil, fmt.Errorf("target %q: %w: this run did not start it", name, catalog.ErrUnavailable)
}
