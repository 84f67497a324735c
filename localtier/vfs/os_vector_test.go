package vfs_test

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/ckptd/ckptd/localtier/vfs"
)

// TestReadvAt reads a file into buffers of many sizes and compares with what ReadAt gives.
func TestReadvAt(t *testing.T) {
	const size = 3<<20 + 1234
	data := vfs.AlignedBuffer(4 << 20)[:size]
	_, _ = rand.NewChaCha8([32]byte{7}).Read(data)
	for _, direct := range []bool{false, true} {
		name := filepath.Join(t.TempDir(), "file")
		f, err := vfs.OS.Create(name, vfs.Opt{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(data, 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if f, err = vfs.OS.Open(name, vfs.Opt{Direct: direct}); err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		v := f.(vfs.Vector)
		read := func(off int64, lens ...int) (got []byte, n int, err error) {
			var bufs [][]byte
			for _, n := range lens {
				bufs = append(bufs, vfs.AlignedBuffer(n))
			}
			n, err = v.ReadvAt(bufs, off)
			return bytes.Join(bufs, nil), n, err
		}
		if got, n, err := read(4096, 1<<20, 4096, 1<<20); err != nil || n != 2<<20+4096 || !bytes.Equal(got, data[4096:][:n]) {
			t.Errorf("direct %v: whole buffers: %d bytes, %v", direct, n, err)
		}
		many := make([]int, 2000) // more than the kernel takes at once
		for i := range many {
			many[i] = 512
		}
		if direct {
			many = many[:700]
			for i := range many {
				many[i] = 4096
			}
			many = append(many, make([]int, 600)...)
		}
		if got, n, err := read(0, many...); err != nil || !bytes.Equal(got, data[:n]) || n != len(got) {
			t.Errorf("direct %v: %d buffers: %d bytes, %v", direct, len(many), n, err)
		}
		if got, n, err := read(2<<20, 1<<20, 1<<20); !errors.Is(err, io.EOF) || n != size-2<<20 || !bytes.Equal(got[:n], data[2<<20:]) {
			t.Errorf("direct %v: past the end: %d bytes, %v", direct, n, err)
		}
		if _, n, err := read(8<<20, 4096); !errors.Is(err, io.EOF) || n != 0 {
			t.Errorf("direct %v: behind the end: %d bytes, %v", direct, n, err)
		}
	}
}
