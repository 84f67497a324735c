//go:build ofi

package ofi_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/ofi"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

// The benchmark moves benchBytes over benchStreams streams, by this fabric and
// by that over TCP in turn: a file of the page cache in pieces of 1 MiB to the
// client, and memory in pieces of 4 MiB to the target. It reports the medians' ratio:
// above 1 this fabric is better.
const (
	benchBytes   = 1 << 30
	benchStreams = 4
	benchFile    = 64 << 20
)

// filer pushes a file, or pulls and drops.
type filer struct {
	mover
	file fabric.OSFile
}

func (f *filer) Answer(ctx context.Context, s fabric.Session, x fabric.Exchange) ([]byte, error) {
	if x.In() > 0 {
		return nil, x.PushFile(ctx, f.file, int64(binary.LittleEndian.Uint32(x.Request())), int64(x.In()))
	}
	return f.mover.Answer(ctx, s, x)
}

// pass moves benchBytes and gives wall and processor time, in seconds.
func pass(b *testing.B, c fabric.Client, get bool, bufs [][]byte) (wall, cpu float64) {
	var u0, u1 unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u0)
	from := time.Now()
	var wg sync.WaitGroup
	for i := range benchStreams {
		wg.Go(func() {
			buf := bufs[i]
			if get {
				buf = buf[:1<<20]
			}
			for n := 0; n < benchBytes/benchStreams; n += len(buf) {
				op := &fabric.Op{Request: binary.LittleEndian.AppendUint32(nil, uint32(n%benchFile))}
				if get {
					op.In = buf
				} else {
					op.Out = buf
				}
				if err := c.Do(context.Background(), op); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	wall = time.Since(from).Seconds()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u1)
	return wall, float64(u1.Utime.Nano()+u1.Stime.Nano()-u0.Utime.Nano()-u0.Stime.Nano()) / 1e9
}

func BenchmarkFabric(b *testing.B) {
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		dir = b.TempDir()
	}
	f, err := os.CreateTemp(dir, "ckptd-bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) })
	if _, err := f.Write(make([]byte, benchFile)); err != nil {
		b.Fatal(err)
	}
	h := &filer{file: fabric.OSFile{File: f}}

	n := open(b, ofi.Options{})
	here := connect(b, n, serve(b, n, h).Addr().String())
	l, err := tcp.New(tcp.Options{}).Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, h) }()
	b.Cleanup(func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			b.Error(err)
		}
	})
	there, err := tcp.New(tcp.Options{}).Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = there.Close() })

	known, unknown := make([][]byte, benchStreams), make([][]byte, benchStreams)
	for i := range benchStreams {
		known[i], unknown[i] = mapped(b, 4<<20), mapped(b, 4<<20)
		un, err := n.Register(known[i])
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(un)
	}
	for _, c := range []struct {
		name string
		get  bool
		bufs [][]byte
	}{{"get", true, known}, {"put", false, known}, {"get-copied", true, unknown}, {"put-copied", false, unknown}} {
		b.Run(c.name, func(b *testing.B) {
			var rates, cpus, walls []float64
			for b.Loop() {
				w0, c0 := pass(b, there, c.get, c.bufs)
				w1, c1 := pass(b, here, c.get, c.bufs)
				rates, cpus, walls = append(rates, w0/w1), append(cpus, c1/c0), append(walls, w1)
			}
			median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
			b.ReportMetric(median(rates), "rate-of-tcp")
			b.ReportMetric(median(cpus), "cpu-of-tcp")
			b.ReportMetric(benchBytes/median(walls)/(1<<30), "GiB/s")
		})
	}
}
