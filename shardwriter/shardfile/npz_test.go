package shardfile

import (
	"archive/zip"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// encodeNPZ makes a shard of an .npz file, as `ckpt save` does.
func encodeNPZ(path string) ([]byte, error) {
	z, err := OpenNPZ(path)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	h, err := NewHeader(z.Specs, nil)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = Encode(&b, h, z.Open)
	return b.Bytes(), err
}

func TestNPZ(t *testing.T) {
	for name, want := range expectations(t) {
		if !strings.HasSuffix(name, ".npz") {
			continue
		}
		t.Run(name, func(t *testing.T) {
			b, err := encodeNPZ(filepath.Join("testdata", name))
			if err != nil {
				t.Fatal(err)
			}
			r, err := NewReader(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			checkTensors(t, r, want)
		})
	}
}

func TestNPZRefuses(t *testing.T) {
	for name, text := range map[string]string{
		"refuse-fortran.npz":    "ascontiguousarray",
		"refuse-bigendian.npz":  "newbyteorder",
		"refuse-object.npz":     "objects",
		"refuse-struct.npz":     "fields",
		"refuse-complex128.npz": "<c16",
	} {
		_, err := OpenNPZ(filepath.Join("testdata", name))
		if !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v, want ErrInvalid with %q", name, err, text)
		}
	}
	if _, err := OpenNPZ(filepath.Join(t.TempDir(), "none.npz")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// Promise 3 for archives: cut or flipped, an .npz file is read as it was or refused.
func TestHostileNPZ(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.npz")
	try := func(good, b []byte, what string, at int) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := encodeNPZ(path)
		if err == nil {
			// Names and timestamps are under no checksum; the data is.
			if len(b) < len(good) {
				t.Errorf("%s at %d: read", what, at)
			}
			if _, err := ParseHeader(got, int64(len(got))); err != nil {
				t.Errorf("%s at %d: %v", what, at, err)
			}
		} else if c := catalog.ClassOf(err); c != catalog.ErrCorrupt && c != catalog.ErrInvalid {
			t.Errorf("%s at %d: error of class %v: %v", what, at, c, err)
		}
	}
	for _, name := range []string{"numpy.npz", "numpy-deflated.npz"} {
		good := testdata(t, name)
		for i := range good {
			try(good, good[:i], name+" cut", i)
			b := bytes.Clone(good)
			b[i] ^= 0xff
			try(good, b, name+" flipped", i)
		}
	}
}

func TestNPZMembers(t *testing.T) {
	const header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }\n"
	npy := func(version byte, header string) string {
		b := "\x93NUMPY" + string([]byte{version, 0, byte(len(header)), byte(len(header) >> 8)})
		if version > 1 {
			b += "\x00\x00"
		}
		return b + header
	}
	for _, c := range []struct {
		name    string
		members []string // name, content, …
		want    error
	}{
		{"Version1", []string{"a.npy", npy(1, header) + "12345678"}, nil},
		{"Version2", []string{"a.npy", npy(2, header) + "12345678"}, nil},
		{"Version3", []string{"größe.npy", npy(3, header) + "12345678"}, nil},
		{"Version4", []string{"a.npy", npy(4, header) + "12345678"}, catalog.ErrCorrupt},
		{"FortranVector", []string{"a.npy", npy(1, strings.Replace(header, "False", "True", 1)) + "12345678"}, nil},
		{"Short", []string{"a.npy", npy(1, header) + "1234567"}, catalog.ErrCorrupt},
		{"Long", []string{"a.npy", npy(1, header) + "123456789"}, catalog.ErrCorrupt},
		{"Twice", []string{"a.npy", npy(1, header) + "12345678", "a.npy", npy(1, header) + "12345678"}, catalog.ErrInvalid},
		{"NotAnArray", []string{"readme.txt", "hello"}, catalog.ErrInvalid},
		{"NoMagic", []string{"a.npy", strings.Repeat("x", 100)}, catalog.ErrCorrupt},
		{"Empty", []string{"a.npy", ""}, catalog.ErrCorrupt},
		{"NoArrays", nil, nil},
		{"NegativeShape", []string{"a.npy", npy(1, strings.Replace(header, "(2,)", "(-2,)", 1))}, catalog.ErrCorrupt},
		{"HugeShape", []string{"a.npy", npy(1, strings.Replace(header, "(2,)", "(9223372036854775807, 8)", 1))}, catalog.ErrInvalid},
		{"NoShape", []string{"a.npy", npy(1, "{'descr': '<f4', 'fortran_order': False, }")}, catalog.ErrCorrupt},
		{"NotADict", []string{"a.npy", npy(1, "(1, 2)")}, catalog.ErrCorrupt},
		{"OpenString", []string{"a.npy", npy(1, "{'descr: 1}")}, catalog.ErrCorrupt},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "x.npz")
			f, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			zw := zip.NewWriter(f)
			for i := 0; i < len(c.members); i += 2 {
				w, err := zw.Create(c.members[i])
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.WriteString(w, c.members[i+1]); err != nil {
					t.Fatal(err)
				}
			}
			if err := zw.Close(); err != nil {
				t.Fatal(err)
			}
			if _, err := encodeNPZ(path); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}
