package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// openRaw opens a file whose bytes are saved as they are.
func openRaw(path string) (*input, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = usage("%s is not a file", path)
	case info.Size() == 0:
		err = fmt.Errorf("%s: %w: it is empty; a shard has at least one byte", path, catalog.ErrInvalid)
	case info.Size() > catalog.MaxShardSize:
		err = fmt.Errorf("%s: %w: %s; a shard has at most %s", path, catalog.ErrInvalid, size(info.Size()), size(catalog.MaxShardSize))
	default:
		err = catalog.CheckFile(filepath.Base(path))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return &input{path: path, size: info.Size(), file: f, raw: info}, nil
}

// steadyFile reads a file that nobody may write to meanwhile.
type steadyFile struct {
	in  *input
	add func(int64)
}

// ReadAt looks after each read whether the file is still what it was when it
// was opened, so that no shard is of two states of it.
func (s steadyFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.in.file.ReadAt(p, off)
	now, serr := s.in.file.Stat()
	if serr != nil {
		return 0, serr
	}
	if now.Size() != s.in.size || !now.ModTime().Equal(s.in.raw.ModTime()) {
		return 0, fmt.Errorf("%w: it changed while it was read; save it when nobody writes to it", catalog.ErrConflict)
	}
	s.add(int64(n))
	return n, err
}

// addRaw makes the file the shard.
func (in *input) addRaw(s *ckpt.Save, add func(int64)) error {
	return s.Raw(filepath.Base(in.path), in.size, steadyFile{in, add})
}

// checkNames refuses two raw files of one name: they could not be restored into
// one folder.
func checkNames(inputs []*input) error {
	m := &catalog.Manifest{}
	for rank, in := range inputs {
		s := catalog.Shard{Rank: rank}
		if in.raw != nil {
			s.File = filepath.Base(in.path)
		}
		m.Shards = append(m.Shards, s)
	}
	if _, err := fileNames(m); err != nil {
		return usage("%v; save them as sets of their own, or rename one", err)
	}
	return nil
}
