package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// input is an existing file to be saved as a shard.
type input struct {
	path string
	size int64 // bytes of its tensors, or of a raw file
	file *os.File
	head *shardfile.Header // of a safetensors file
	npz  *shardfile.NPZ
	raw  os.FileInfo // of a file that is saved as it is
}

// openInput opens a file by its kind: tensors of .safetensors and .npz, unless
// raw is asked for; the bytes of any other.
func openInput(path string, raw bool) (*input, error) {
	if raw {
		return openRaw(path)
	}
	switch strings.ToLower(filepath.Ext(path)) {
	case ".safetensors":
		return openSafetensors(path)
	case ".npz":
		z, err := shardfile.OpenNPZ(path)
		if err != nil {
			return nil, err
		}
		in := &input{path: path, npz: z}
		for _, s := range z.Specs {
			n, err := s.Size()
			if err != nil {
				return nil, errors.Join(fmt.Errorf("%s: %w", path, err), z.Close())
			}
			in.size += n
		}
		return in, nil
	}
	return openRaw(path)
}

func openSafetensors(path string) (*input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = usage("%s is not a file", path)
	}
	var h *shardfile.Header
	if err == nil {
		h, err = shardfile.ReadHeader(f, info.Size())
	}
	if err != nil {
		f.Close()
		return nil, wire.WithHint(fmt.Errorf("open %s: %w", path, err), "--raw saves the file as it is, whatever is in it")
	}
	return &input{path: path, size: h.DataSize, file: f, head: h}, nil
}

func (in *input) Close() error {
	if in.npz != nil {
		return in.npz.Close()
	}
	return in.file.Close()
}

// addTo adds every tensor to a save; add hears of the bytes as they are read.
func (in *input) addTo(s *ckpt.Save, add func(int64)) error {
	if in.raw != nil {
		return in.addRaw(s, add)
	}
	if in.npz != nil {
		for i, t := range in.npz.Specs {
			r := &lazyReader{open: func() (io.Reader, error) { return in.npz.Open(i) }, add: add}
			if err := s.Tensor(t.Name, t.DType, t.Shape, r); err != nil {
				return err
			}
		}
		return nil
	}
	for k, v := range in.head.Meta {
		if k != shardfile.KeyVersion { // the new shard has its own
			s.Meta(k, v)
		}
	}
	for _, t := range in.head.Tensors {
		data := &countedReader{io.NewSectionReader(in.file, t.Offset, t.Size), add}
		var err error
		if len(t.Global) > 0 {
			err = s.Piece(t.Name, t.DType, t.Shape, data, t.Global, t.Start)
		} else {
			err = s.Tensor(t.Name, t.DType, t.Shape, data)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

type countedReader struct {
	r   io.ReaderAt
	add func(int64)
}

func (c *countedReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.add(int64(n))
	return n, err
}

// lazyReader opens an array when its turn comes, so that an archive of many
// has one open at a time.
type lazyReader struct {
	open func() (io.Reader, error)
	add  func(int64)
	r    io.Reader
	err  error
}

func (l *lazyReader) Read(p []byte) (int, error) {
	if l.err != nil {
		return 0, l.err
	}
	if l.r == nil {
		if l.r, l.err = l.open(); l.err != nil {
			return 0, l.err
		}
	}
	n, err := l.r.Read(p)
	l.add(int64(n))
	if err != nil {
		l.err = err
		if c, ok := l.r.(io.Closer); ok {
			c.Close()
		}
	}
	return n, err
}
