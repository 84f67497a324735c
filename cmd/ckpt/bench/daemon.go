package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

const (
	startPatience = 60 * time.Second
	stopPatience  = 10 * time.Second
)

// daemon is a ckptd of the run's own, with the targets it may have.
type daemon struct {
	*process
	data    string
	socket  string
	arena   string
	client  *ckpt.Client
	mounted string // a folder; "": it mounts nothing
	targets []*targetProcess
}

// start runs the daemon of a suite.
func (b *bench) start(ctx context.Context, arena int64, flags ...string) (*daemon, error) {
	return b.startNode(ctx, "bench", arena, flags...)
}

// startNode runs a daemon with an empty data directory and waits until it
// answers and its arena is warm.
func (b *bench) startNode(ctx context.Context, name string, arena int64, flags ...string) (_ *daemon, err error) {
	d := &daemon{data: filepath.Join(b.dir, name), socket: filepath.Join(b.run, name), arena: filepath.Join(b.arenas, name)}
	if err := os.Mkdir(d.data, 0o700); err != nil {
		return nil, err
	}
	args := append([]string{
		"serve", "--name", name, "--data", d.data, "--socket", d.socket, "--scrub-every", "0", // it would be measured too
		"--arena", fmt.Sprintf("%dMiB", arena>>20), "--arena-dir", d.arena,
	}, flags...)
	if d.process, err = b.launch(filepath.Join(d.data, "log"), args...); err != nil {
		return nil, err
	}
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(err, d.stop())
	}
	return d, nil
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

// stop ends the daemon and its targets, and removes what they kept.
func (d *daemon) stop() error {
	if d.client != nil {
		d.client.Close()
	}
	d.end()
	var err error
	if d.mounted != "" {
		err = errors.Join(unmounted(d.mounted), os.Remove(d.mounted))
	}
	err = errors.Join(err, os.RemoveAll(d.data), os.RemoveAll(d.arena))
	for _, t := range d.targets {
		err = errors.Join(err, t.stop())
	}
	return err
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

// processes are the daemon's and those of its targets that run.
func (d *daemon) processes() []*process {
	all := []*process{d.process}
	for _, t := range d.targets {
		if t.process != nil {
			all = append(all, t.process)
		}
	}
	return all
}
