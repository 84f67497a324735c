package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
)

// Sizes of the plain network programs, in bytes: those at which they are
// cheapest here.
const (
	plainRecv = 1 << 20 // of the memory received into
	plainSend = 4 << 20 // of one write
)

// overLoopback makes a connection for each of n streams and runs both ends.
func overLoopback(n int, server, client func(i int, c *net.TCPConn) error) (err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	var g errgroup.Group
	defer func() { err = errors.Join(err, g.Wait()) }() // the listener's end ends who waits for a connection
	defer l.Close()
	both := func(c net.Conn, do func(int, *net.TCPConn) error, i int) {
		g.Go(func() error {
			defer c.Close()
			return do(i, c.(*net.TCPConn))
		})
	}
	for i := range n {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		s, err := l.Accept()
		if err != nil {
			return errors.Join(err, c.Close())
		}
		both(s, server, i)
		both(c, client, i)
	}
	return nil
}

// sendFiles sends the first n bytes of each file by sendfile over loopback,
// all at once, into reused memory.
func sendFiles(files []string, n int64) func() error {
	return func() error {
		return overLoopback(len(files), func(i int, c *net.TCPConn) error {
			f, err := os.Open(files[i])
			if err != nil {
				return err
			}
			defer f.Close()
			sent, err := c.ReadFrom(io.LimitReader(f, n)) // sendfile
			if err == nil && sent < n {
				err = fmt.Errorf("%s: %w: it ends at %d of %d", files[i], catalog.ErrCorrupt, sent, n)
			}
			return err
		}, func(_ int, c *net.TCPConn) error { return receive(c, n, plainRecv) })
	}
}

// sendMemory sends k+m columns' worth of bytes over loopback, a connection
// each and all at once, into reused memory.
func sendMemory(data []byte, k, m int) func() error {
	n := int64(len(data)) / int64(k)
	return func() error {
		return overLoopback(k+m, func(_ int, c *net.TCPConn) error { return receive(c, n, plainSend) },
			func(i int, c *net.TCPConn) error {
				p := data[int64(i%k)*n:][:n]
				for len(p) > 0 {
					sent, err := c.Write(p[:min(len(p), plainSend)])
					if err != nil {
						return err
					}
					p = p[sent:]
				}
				return nil
			})
	}
}

// receive reads n bytes into a buffer of its own.
func receive(c *net.TCPConn, n int64, size int) error {
	buf := make([]byte, size)
	for n > 0 {
		got, err := io.ReadFull(c, buf[:min(int64(size), n)])
		if err != nil {
			return err
		}
		n -= int64(got)
	}
	return nil
}
