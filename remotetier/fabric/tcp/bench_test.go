package tcp_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
)

// The benchmark moves benchBytes in pieces of benchPiece over benchStreams
// connections: by the fabric, and by the plainest Go program that does the
// same, in turn. It reports the medians' ratio: above 1 the fabric is better.
const (
	benchBytes   = 1 << 30
	benchPiece   = 1 << 20
	benchStreams = 4
)

// mover pushes a file, or pulls and drops.
type mover struct{ file fabric.OSFile }

func (mover) Greeting() []byte     { return nil }
func (mover) Join(fabric.Session)  {}
func (mover) Leave(fabric.Session) {}
func (m mover) Answer(ctx context.Context, _ fabric.Session, x fabric.Exchange) ([]byte, error) {
	if x.In() > 0 {
		return nil, x.PushFile(ctx, m.file, int64(binary.LittleEndian.Uint32(x.Request())), int64(x.In()))
	}
	for x.Out() > 0 {
		b, err := x.Buffer(ctx)
		if err != nil {
			return nil, err
		}
		err = x.Pull(ctx, b.Bytes[:min(len(b.Bytes), x.Out())])
		b.Release()
		if err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// benchFile is 64 MiB in the page cache, in memory where there is a tmpfs.
func benchFile(b *testing.B) *os.File {
	dir := "/dev/shm"
	if _, err := os.Stat(dir); err != nil {
		dir = b.TempDir()
	}
	f, err := os.CreateTemp(dir, "ckptd-bench")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) })
	if _, err := f.Write(make([]byte, 64<<20)); err != nil {
		b.Fatal(err)
	}
	return f
}

// streams runs f for each stream and gives wall and processor time.
func streams(b *testing.B, f func(i int) error) (wall, cpu float64) {
	var u0, u1 unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u0)
	from := time.Now()
	var wg sync.WaitGroup
	for i := range benchStreams {
		wg.Go(func() {
			if err := f(i); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	wall = time.Since(from).Seconds()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &u1)
	return wall, float64(u1.Utime.Nano()+u1.Stime.Nano()-u0.Utime.Nano()-u0.Stime.Nano()) / 1e9
}

// plain is a Go program with a connection for each stream: get sends the file
// by sendfile, piece by piece, and put writes memory.
func plain(b *testing.B, name string, get bool) func() (wall, cpu float64) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if !get {
					buf := make([]byte, 4<<20)
					for {
						if _, err := io.ReadFull(c, buf); err != nil {
							return
						}
					}
				}
				f, err := os.Open(name)
				if err != nil {
					b.Error(err)
					return
				}
				defer f.Close()
				for {
					if _, err := f.Seek(0, io.SeekStart); err != nil {
						return
					}
					if _, err := c.(*net.TCPConn).ReadFrom(f); err != nil { // sendfile
						return
					}
				}
			})
		}
	})
	b.Cleanup(func() { _ = l.Close(); wg.Wait() })
	return func() (wall, cpu float64) {
		return streams(b, func(int) error {
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			if get {
				buf := make([]byte, benchPiece)
				for n := 0; n < benchBytes/benchStreams; n += len(buf) {
					if _, err := io.ReadFull(c, buf); err != nil {
						return err
					}
				}
				return nil
			}
			buf := make([]byte, 4<<20)
			for n := 0; n < benchBytes/benchStreams; n += len(buf) {
				if _, err := c.Write(buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
}

func BenchmarkFabric(b *testing.B) {
	f := benchFile(b)
	l, err := tcp.New(tcp.Options{}).Listen("127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, mover{fabric.OSFile{File: f}}) }()
	defer func() {
		cancel()
		if err := errors.Join(<-done, l.Close()); err != nil {
			b.Error(err)
		}
	}()
	c, err := tcp.New(tcp.Options{}).Connect([]string{l.Addr().String()}, nil)
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	product := func(get bool) (wall, cpu float64) {
		return streams(b, func(i int) error {
			size := benchPiece
			if !get {
				size = 4 << 20
			}
			buf := make([]byte, size)
			for n := 0; n < benchBytes/benchStreams; n += size {
				op := &fabric.Op{Request: binary.LittleEndian.AppendUint32(nil, uint32(n%(64<<20)))}
				if get {
					op.In = buf
				} else {
					op.Out = buf
				}
				if err := c.Do(context.Background(), op); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for _, get := range []bool{true, false} {
		name := map[bool]string{true: "get", false: "put"}[get]
		b.Run(name, func(b *testing.B) {
			yardstick := plain(b, f.Name(), get)
			var rates, cpus, walls, plains []float64
			for b.Loop() {
				w0, c0 := yardstick()
				w1, c1 := product(get)
				rates, cpus = append(rates, w0/w1), append(cpus, c1/c0)
				walls, plains = append(walls, w1), append(plains, w0)
			}
			median := func(v []float64) float64 { slices.Sort(v); return v[len(v)/2] }
			b.ReportMetric(median(rates), "rate-of-plain")
			b.ReportMetric(median(cpus), "cpu-of-plain")
			b.ReportMetric(benchBytes/median(walls)/(1<<30), "GiB/s")
			b.ReportMetric(benchBytes/median(plains)/(1<<30), "plain-GiB/s")
		})
	}
}
