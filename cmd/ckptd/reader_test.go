package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// asReader makes the test binary a program that reads files of a mount: it has
// to be another process than the one that serves the catalog, because a fault
// on a mapped page holds up the whole process until the daemon has answered.
const asReader = "CKPTD_TEST_READER"

// readTally is what a reader saw, by kind of reading.
type readTally struct {
	Right  map[string]int
	Failed map[string]int // by error
	Wrong  []string       // the first few
	Slow   time.Duration  // the longest that one call took
}

// model is a tree that is mounted, and the same files on a disk.
type model struct {
	files, mount string   // folders
	names, tars  []string // of files, and of tars below mount/.shuffle
	tally        *readTally
	mu           *sync.Mutex
	now          *[readersAtOnce]atomic.Int64 // when each began its call, ns
}

const (
	readersAtOnce = 4               // in a process
	readLimit     = 2 * time.Minute // of one call; a hang is longer
)

// readUntilTold is the reader: it reads at random, compares every byte, and
// tells on standard output what it saw when standard input ends. Arguments: the
// folder of files, the mounted folder, seed.
func readUntilTold(args []string) int {
	debug.SetGCPercent(-1) // a collection waits for threads that wait for a page
	seed, err := strconv.ParseUint(args[2], 10, 64)
	if err != nil {
		return 2
	}
	m := &model{files: args[0], mount: args[1], mu: new(sync.Mutex), now: new([readersAtOnce]atomic.Int64), tally: &readTally{Right: map[string]int{}, Failed: map[string]int{}}}
	if err := filepath.WalkDir(m.files, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			p, err = filepath.Rel(m.files, p)
			if filepath.Ext(p) == ".tar" {
				m.tars = append(m.tars, p)
			} else {
				m.names = append(m.names, p)
			}
		}
		return err
	}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	over := make(chan struct{})
	var wg sync.WaitGroup
	for k := range readersAtOnce {
		wg.Go(func() { m.loop(k, rand.New(rand.NewPCG(seed, uint64(k))), over) })
	}
	go m.watch()
	_, _ = io.Copy(io.Discard, os.Stdin)
	close(over)
	wg.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(m.tally); err != nil {
		return 2
	}
	return 0
}

// watch ends the process when a call does not come back.
func (m *model) watch() {
	for range time.Tick(time.Second) {
		for k := range m.now {
			if since := m.now[k].Load(); since != 0 && time.Since(time.Unix(0, since)) > readLimit {
				fmt.Fprintf(os.Stderr, "reader %d hangs for more than %v\n", k, readLimit)
				os.Exit(3)
			}
		}
	}
}

func (m *model) loop(k int, r *rand.Rand, over chan struct{}) {
	buf, want := make([]byte, 1<<20), make([]byte, 1<<20)
	debug.SetPanicOnFault(true)
	for {
		select {
		case <-over:
			return
		default:
		}
		name := m.names[r.IntN(len(m.names))]
		if r.IntN(8) == 0 {
			name = m.tars[r.IntN(len(m.tars))]
		}
		kind, read := "pread", m.pread
		switch r.IntN(10) {
		case 0, 1:
			kind, read = "mmap", m.mapped
		case 2, 3:
			kind, read = "whole", m.whole
		case 4:
			kind, read = "tree", m.listed
		}
		if filepath.Ext(name) == ".tar" {
			kind = "tar " + kind
		}
		begin := time.Now()
		m.now[k].Store(begin.UnixNano())
		err := read(name, r, buf, want)
		if errors.Is(err, fs.ErrNotExist) && m.isMounted() { // it came back meanwhile, or this is a lie
			err = read(name, r, buf, want)
			if errors.Is(err, fs.ErrNotExist) && m.isMounted() {
				err = fmt.Errorf("%w: %v", errWrongBytes, err)
			}
		}
		m.now[k].Store(0)
		m.count(kind, name, err, time.Since(begin))
		if err != nil {
			time.Sleep(2 * time.Millisecond) // the daemon is away: do not use up its processor
		}
	}
}

func (m *model) isMounted() bool {
	var st unix.Statfs_t
	return unix.Statfs(m.mount, &st) == nil && st.Type == unix.FUSE_SUPER_MAGIC
}

func (m *model) count(kind, name string, err error, took time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tally.Slow = max(m.tally.Slow, took)
	var errno syscall.Errno
	switch {
	case err == nil:
		m.tally.Right[kind]++
	case errors.Is(err, errPageFault):
		m.tally.Failed["SIGBUS"]++
	case errors.As(err, &errno) && !errors.Is(err, errWrongBytes):
		m.tally.Failed[unix.ErrnoName(errno)]++
	case len(m.tally.Wrong) < 10:
		m.tally.Wrong = append(m.tally.Wrong, fmt.Sprintf("%s of %q: %v", kind, name, err))
	}
}

// some is a random part of a file, of 1 byte to 1 MiB.
func some(r *rand.Rand, size int64) (off, n int64) {
	n = min(size, 1+r.Int64N(int64(1)<<(2*r.IntN(11))))
	return r.Int64N(size - n + 1), n
}

// hold compares what came with the file on the disk.
func (m *model) hold(name string, got []byte, off int64, want []byte) error {
	f, err := os.Open(filepath.Join(m.files, name))
	if err != nil {
		return fmt.Errorf("%w: the model: %v", errWrongBytes, err)
	}
	defer f.Close()
	if n, err := f.ReadAt(want[:len(got)], off); n < len(got) {
		return fmt.Errorf("%w: %d bytes at %d are more than there are: %v", errWrongBytes, len(got), off, err)
	}
	if !bytes.Equal(got, want[:len(got)]) {
		return fmt.Errorf("%w: %d bytes at %d", errWrongBytes, len(got), off)
	}
	return nil
}

// opened opens a file of the mount; its size has to be right. One that is read
// twice is read from the daemon twice.
func (m *model) opened(name string, r *rand.Rand) (*os.File, int64, error) {
	info, err := os.Stat(filepath.Join(m.files, name))
	if err != nil {
		return nil, 0, fmt.Errorf("%w: the model: %v", errWrongBytes, err)
	}
	f, err := os.Open(filepath.Join(m.mount, name))
	if err != nil {
		return nil, 0, err
	}
	if r.IntN(2) == 0 {
		_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // advice
	}
	seen, err := f.Stat()
	if err == nil && seen.Size() != info.Size() {
		err = fmt.Errorf("%w: a size of %d, want %d", errWrongBytes, seen.Size(), info.Size())
	}
	if err != nil {
		f.Close()
	}
	return f, info.Size(), err
}

func (m *model) pread(name string, r *rand.Rand, buf, want []byte) error {
	f, size, err := m.opened(name, r)
	if err != nil || size == 0 {
		return err
	}
	defer f.Close()
	for range 1 + r.IntN(8) {
		off, n := some(r, size)
		if _, err := f.ReadAt(buf[:n], off); err != nil {
			return short0(err)
		}
		if err := m.hold(name, buf[:n], off, want); err != nil {
			return err
		}
	}
	return nil
}

// short0 is the error of a read that ended early: the end of a file is where
// its size says, whatever happens.
func short0(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: the file ends early", errWrongBytes)
	}
	return err
}

var errPageFault = errors.New("a page could not be read")

func (m *model) mapped(name string, r *rand.Rand, buf, want []byte) (err error) {
	f, size, err := m.opened(name, r)
	if err != nil || size == 0 {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer func() {
		if recover() != nil {
			err = errPageFault
		}
		_ = unix.Munmap(b) // it was mapped
	}()
	for range 1 + r.IntN(8) {
		off, n := some(r, size)
		copy(buf[:n], b[off:off+n])
		if err := m.hold(name, buf[:n], off, want); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) whole(name string, r *rand.Rand, buf, want []byte) error {
	f, size, err := m.opened(name, r)
	if err != nil {
		return err
	}
	defer f.Close()
	at := int64(0)
	for {
		n, err := f.Read(buf)
		if err := m.hold(name, buf[:n], at, want); err != nil {
			return err
		}
		at += int64(n)
		switch {
		case err == io.EOF && at < size:
			return short0(err)
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// listed compares the names, kinds and sizes of a file's folder.
func (m *model) listed(name string, _ *rand.Rand, _, _ []byte) error {
	dir := filepath.Dir(name)
	if filepath.Ext(name) == ".tar" {
		dir = "."
	}
	list := func(root string) (rows []string, err error) {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				return nil, err
			}
			if e.Name() != ".shuffle" { // of the model: in the mount it is found, and not listed
				row := fmt.Sprintf("%q %v %v", e.Name(), info.Mode(), info.ModTime().UnixNano())
				if !e.IsDir() {
					row += fmt.Sprint(" ", info.Size())
				}
				rows = append(rows, row)
			}
		}
		return rows, err
	}
	got, err := list(m.mount)
	if err != nil {
		return err
	}
	want, err := list(m.files)
	if err != nil || !slices.Equal(got, want) {
		return fmt.Errorf("%w: the folder %q has\n%q, want\n%q (%v)", errWrongBytes, dir, got, want, err)
	}
	return nil
}

// reader is a running one.
type reader struct {
	cmd  *exec.Cmd
	in   io.Closer
	out  bytes.Buffer
	errs bytes.Buffer
}

func startReader(t *testing.T, files, mount string, seed uint64) *reader {
	t.Helper()
	p := &reader{cmd: exec.Command(os.Args[0], files, mount, strconv.FormatUint(seed, 10))}
	p.cmd.Env = append(os.Environ(), asReader+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.errs
	in, err := p.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.in = in
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it has ended, mostly
		_ = p.cmd.Wait()
	})
	return p
}

// end tells the reader to stop, and gives what it saw.
func (p *reader) end(t *testing.T) (saw readTally) {
	t.Helper()
	hang := time.AfterFunc(readLimit+patience, func() { _ = p.cmd.Process.Kill() })
	defer hang.Stop()
	_ = p.in.Close()
	if err := p.cmd.Wait(); err != nil {
		t.Fatalf("a reader ended by %v: %s", err, p.errs.String())
	}
	if err := json.Unmarshal(p.out.Bytes(), &saw); err != nil {
		t.Fatalf("a reader said %s: %v", p.out.String(), err)
	}
	return saw
}
