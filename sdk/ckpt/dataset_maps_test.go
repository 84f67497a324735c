package ckpt

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// mapPack writes a pack of n pages and a bit, and maps it.
func mapPack(t *testing.T, n int64) (*packMap, *os.File) {
	t.Helper()
	data := bytes.Repeat([]byte("pack"), int(n*pageSize/4+25))
	f, err := os.Create(filepath.Join(t.TempDir(), "pack"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.Write(data); err != nil {
		t.Fatal(err)
	}
	mem, err := mapWhole(f, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return &packMap{mem: mem, told: tellsPages(f)}, f
}

// TestPackMapResident: what is in the page cache is known to be there, also
// over the end of one question to the kernel; what is behind a file's end is not.
func TestPackMapResident(t *testing.T) {
	const pages = 2500
	m, f := mapPack(t, pages)
	if !m.told {
		t.Fatal("the kernel does not tell a file's owner which pages are in memory")
	}
	if !resident(m.mem) {
		t.Error("a file that was just written is not resident")
	}
	if err := f.Truncate(2000 * pageSize); err != nil {
		t.Fatal(err)
	}
	if resident(m.mem) {
		t.Error("pages behind the end of the file are resident")
	}
	if !resident(m.mem[:2000*pageSize]) {
		t.Error("pages before the end of the file are not resident")
	}
}

// TestPackMapUnreadable: pages that cannot be had are no bytes, and no signal,
// whether the kernel tells what is in memory or not.
func TestPackMapUnreadable(t *testing.T) {
	for _, told := range []bool{true, false} {
		m, f := mapPack(t, 8)
		m.told = told
		if got := m.bytes(pageSize-10, 100); !bytes.Equal(got, m.mem[pageSize-10:pageSize+90]) {
			t.Errorf("told %v: %d bytes, want the pack's", told, len(got))
		}
		if err := f.Truncate(4 * pageSize); err != nil {
			t.Fatal(err)
		}
		if got := m.bytes(3*pageSize, 2*pageSize); got != nil {
			t.Errorf("told %v: bytes behind the end of the file", told)
		}
		if got := m.bytes(3*pageSize, pageSize); got == nil {
			t.Errorf("told %v: no bytes before the end of the file", told)
		}
	}
}
