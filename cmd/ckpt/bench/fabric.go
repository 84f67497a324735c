package bench

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/target"
)

const (
	fabricStreams = 4 // exchanges in flight, and connections of the plain program
	crowd         = 64
	crowdRounds   = 2
)

func benchFabric(ctx context.Context, b *bench) error {
	data, err := randomMemory(b.opt.Size, 5)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	if err := b.fabricTCP(ctx, data); err != nil {
		return err
	}
	return b.targetMemory(ctx, data)
}

// mover is a target of nothing but the fabric: it pushes a file, and pulls and
// drops. While check is set it compares what it pulls.
type mover struct {
	file  fabric.OSFile
	data  []byte
	check atomic.Bool
}

func (*mover) Greeting() []byte     { return nil }
func (*mover) Join(fabric.Session)  {}
func (*mover) Leave(fabric.Session) {}

func (m *mover) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	at := int64(binary.LittleEndian.Uint64(x.Request()))
	if x.In() > 0 {
		return nil, x.PushFile(ctx, m.file, at, int64(x.In()))
	}
	for x.Out() > 0 {
		buf, err := x.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		p := buf.Bytes[:min(len(buf.Bytes), x.Out())]
		if err = x.Pull(ctx, p); err == nil && m.check.Load() {
			err = same(p, m.data[at:][:len(p)], at)
		}
		at += int64(len(p))
		buf.Release()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// fabricTCP holds the fabric against a Go program that sends a file by sendfile,
// and memory by write, over as many connections.
func (b *bench) fabricTCP(ctx context.Context, data []byte) (err error) {
	each := int64(len(data)) / fabricStreams
	path := filepath.Join(b.dir, "sent")
	if err := os.WriteFile(path, data[:each], 0o600); err != nil { // into the page cache: no disk is measured
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	m := &mover{file: fabric.OSFile{File: f}, data: data}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	fab := tcp.New(tcp.Options{})
	l, err := fab.Listen("127.0.0.1:0")
	if err != nil {
		return err
	}
	served, stop := context.WithCancel(ctx)
	var g errgroup.Group
	g.Go(func() error { return l.Serve(served, m) })
	defer func() {
		stop()
		err = errors.Join(err, g.Wait(), l.Close())
	}()
	c, err := fab.Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	files := []string{path, path, path, path}
	var rates, plains [2][]float64 // get, put
	var product, yard []float64
	for i := range b.opt.Pairs + 1 {
		b.logf("fabric: pair %d of %d", i, b.opt.Pairs)
		m.check.Store(i == 0)
		var r, y [2]float64
		for dir, do := range [2]func() error{sendFiles(files, each), sendMemory(data, fabricStreams, 0)} {
			if err := ctx.Err(); err != nil {
				return err
			}
			plain, err := took(do)
			if err != nil {
				return err
			}
			own, err := took(func() error { return exchangeAll(ctx, c, data, each, dir == 0, i == 0) })
			if err != nil {
				return err
			}
			r[dir], y[dir] = perSecond(len(data), own), perSecond(len(data), plain)
		}
		if i == 0 {
			continue
		}
		worse := 0
		if r[1]/y[1] < r[0]/y[0] {
			worse = 1
		}
		product, yard = append(product, r[worse]), append(yard, y[worse])
		for dir := range r {
			rates[dir], plains[dir] = append(rates[dir], r[dir]), append(plains[dir], y[dir])
		}
	}
	b.versus("fabric.tcp", product, yard, "the worse direction of each pair, %d streams over loopback, both ends in this process: from a target %s against sendfile's %s, to a target %s against %s",
		fabricStreams, amount(median(rates[0]), "B/s"), amount(median(plains[0]), "B/s"), amount(median(rates[1]), "B/s"), amount(median(plains[1]), "B/s"))
	return nil
}

// exchangeAll moves data by the fabric, from the target's file or to the target.
func exchangeAll(ctx context.Context, c fabric.Client, data []byte, each int64, get, check bool) error {
	var g errgroup.Group
	for i := range int64(fabricStreams) {
		g.Go(func() error {
			buf, step := []byte(nil), int64(plainSend)
			if get {
				buf, step = make([]byte, plainRecv), plainRecv
			}
			for off := int64(0); off < each; off += step {
				n := min(step, each-off)
				op := &fabric.Op{}
				at := off // of the file
				if get {
					op.In = buf[:n]
				} else {
					at += i * each
					op.Out = data[at:][:n]
				}
				op.Request = binary.LittleEndian.AppendUint64(nil, uint64(at))
				if err := c.Do(ctx, op); err != nil {
					return err
				}
				if get && (op.N != int(n) || check && !bytes.Equal(buf[:n], data[off:][:n])) {
					return fmt.Errorf("%d bytes at %d: %w: they are not the ones sent", op.N, off, catalog.ErrCorrupt)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// targetMemory has many clients write to and read from one target at once.
func (b *bench) targetMemory(ctx context.Context, data []byte) (err error) {
	t, err := b.startTarget(ctx, "crowded", "--buffers", fmt.Sprintf("%dMiB", targetBuffers>>20))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.stop()) }()
	size := int64(len(data)) / crowd / 4096 * 4096
	b.logf("target.memory: %d clients with %s each", crowd, amount(float64(size), "B"))
	most, err := t.peak(func() error {
		var g errgroup.Group
		for i := range crowd {
			g.Go(func() error { return writeAndRead(ctx, t, i, data[int64(i)*size:][:size]) })
		}
		return g.Wait()
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, t.tail())
	}
	b.limit("target.memory", float64(most), "largest of anonymous and file pages of a target with %s of buffers, while %d clients write a column of %s and read it back, %d times each, all at once; sampled every 20 ms",
		amount(targetBuffers, "B"), crowd, amount(float64(size), "B"), crowdRounds)
	return nil
}

// peak is the most memory that a process has while do runs.
func (p *process) peak(do func() error) (most int64, err error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		now, merr := p.memory()
		most = max(most, now)
		if merr != nil {
			return 0, errors.Join(merr, <-done)
		}
		select {
		case err := <-done:
			return most, err
		case <-tick.C:
		}
	}
}

// writeAndRead is one client, on connections of its own.
func writeAndRead(ctx context.Context, t *targetProcess, i int, p []byte) error {
	r, err := target.Dial(ctx, tcp.New(tcp.Options{}), []string{t.addr}, target.RemoteOptions{Name: t.name})
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, 1<<20)
	for round := range crowdRounds {
		key := remotetier.Key{Blob: fmt.Sprintf("bench/client-%02d", i), Generation: uint64(round + 1)}
		w, err := r.Create(ctx, key, int64(len(p)), remotetier.CreateNew)
		if err != nil {
			return err
		}
		if err := errors.Join(w.Write(ctx, p), w.Commit(ctx), w.Close()); err != nil {
			return err
		}
		c, err := r.Open(ctx, key)
		if err != nil {
			return err
		}
		for off := 0; off < len(p) && err == nil; off += len(got) {
			want := p[off:min(off+len(got), len(p))]
			if _, err = c.ReadAt(ctx, got[:len(want)], int64(off)); err == nil {
				err = same(got[:len(want)], want, int64(off))
			}
		}
		if err = errors.Join(err, c.Close()); err != nil {
			return err
		}
	}
	return nil
}
