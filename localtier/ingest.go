package localtier

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
)

// Ingest is a blob on its way in. Close without Commit leaves nothing behind.
type Ingest struct {
	t       *Tier
	d       *disk
	name    string
	size    int64
	staging string
	f       vfs.File

	mu struct {
		sync.Mutex
		crcs    []uint32
		state   []blockState
		writing int  // calls of WriteAt
		done    bool // committed, being committed, or closed
	}
}

type blockState uint8

const (
	missing blockState = iota
	writing
	written
)

// Reserve makes room for a blob: quota, and allocated blocks on one disk. It is
// a *Shortage when there is not enough, fs.ErrExist when the name is taken by
// a blob or another ingest.
func (t *Tier) Reserve(ctx context.Context, name string, size int64) (*Ingest, error) {
	in, err := t.reserve(ctx, name, size)
	if err != nil {
		return nil, fmt.Errorf("reserve %s: %w", name, err)
	}
	return in, nil
}

func (t *Tier) reserve(ctx context.Context, name string, size int64) (*Ingest, error) {
	in, err := t.newIngest(name, size)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	if err := t.admit(in, true); err != nil {
		return nil, err
	}
	disks, errs := t.order(size)
	for _, d := range disks {
		if err = t.stage(in, d); err == nil {
			return in, nil
		}
		errs = errors.Join(errs, fmt.Errorf("disk %s: %w", d.dir, err))
		if !errors.Is(err, catalog.ErrNoSpace) {
			t.failed(d, err)
		}
	}
	t.leave(in)
	if errs == nil || errors.Is(errs, catalog.ErrNoSpace) {
		free := t.roomiest()
		return nil, errors.Join(&Shortage{Need: size, Free: free, Short: max(1, size+sealRoom(size)-free)}, errs)
	}
	return nil, errs
}

func (t *Tier) newIngest(name string, size int64) (*Ingest, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if size < 0 || size > catalog.MaxShardSize {
		return nil, fmt.Errorf("%w: size %d, want 0 to %d", catalog.ErrInvalid, size, int64(catalog.MaxShardSize))
	}
	in := &Ingest{t: t, name: name, size: size}
	in.mu.crcs = make([]uint32, catalog.Blocks(size))
	in.mu.state = make([]blockState, len(in.mu.crcs))
	return in, nil
}

// admit takes the ingest's name and, if it has to ask, its share of the quota.
func (t *Tier) admit(in *Ingest, ask bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return fs.ErrClosed
	}
	if t.mu.index[in.name] != nil || t.mu.staged[in.name] != nil {
		return fs.ErrExist
	}
	free := t.unused()
	if ask && in.size > free {
		return &Shortage{Need: in.size, Free: max(0, free), Short: in.size - free}
	}
	t.mu.staged[in.name] = in
	t.mu.reserved += in.size
	return nil
}

// leave undoes admit.
func (t *Tier) leave(in *Ingest) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.staged[in.name] != in {
		return
	}
	delete(t.mu.staged, in.name)
	t.mu.reserved -= in.size
	if in.d != nil {
		in.d.ingests--
	}
}

// stage makes the staging file on d and allocates it.
func (t *Tier) stage(in *Ingest, d *disk) error {
	name := t.stagingName(d)
	f, err := t.fsys.Create(name, vfs.Opt{Direct: !t.opt.Buffered})
	if err != nil {
		return err
	}
	if err := f.Allocate(in.size); err != nil {
		return errors.Join(err, f.Close(), t.fsys.Remove(name))
	}
	t.direct(d, f)
	t.attach(in, d, name, f)
	return nil
}

func (t *Tier) attach(in *Ingest, d *disk, staging string, f vfs.File) {
	in.d, in.staging, in.f = d, staging, f
	t.mu.Lock()
	d.ingests++
	t.mu.Unlock()
}

func (t *Tier) stagingName(d *disk) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.seq++
	return filepath.Join(d.dir, stagingDir, fmt.Sprintf("%016x-%06d%s", t.start, t.mu.seq, tmpSuffix))
}

// Resume takes up an ingest that an earlier process of this machine's boot left
// in the file staging (see Options.Keep). written says which blocks are
// in the file, with their CRC32C.
func (t *Tier) Resume(ctx context.Context, name, staging string, size int64, written func(block int) (crc uint32, ok bool)) (*Ingest, error) {
	in, err := t.resume(ctx, name, staging, size, written)
	if err != nil {
		return nil, fmt.Errorf("resume %s: %w", name, err)
	}
	return in, nil
}

func (t *Tier) resume(ctx context.Context, name, staging string, size int64, has func(int) (uint32, bool)) (*Ingest, error) {
	d := t.stagedOn(staging)
	if d == nil {
		return nil, fmt.Errorf("%w: %q is no staging file of this tier", catalog.ErrInvalid, staging)
	}
	in, err := t.newIngest(name, size)
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	for i := range in.mu.crcs {
		if crc, ok := has(i); ok {
			in.mu.crcs[i], in.mu.state[i] = crc, written
		}
	}
	if err := t.admit(in, false); err != nil { // it was admitted when it was reserved
		return nil, err
	}
	f, err := t.fsys.OpenWrite(staging, vfs.Opt{Direct: !t.opt.Buffered})
	if err == nil {
		if err = f.Allocate(size); err != nil {
			err = errors.Join(err, f.Close())
		}
	}
	if err != nil {
		t.leave(in)
		return nil, err
	}
	t.attach(in, d, filepath.Clean(staging), f)
	return in, nil
}

// Discard removes a staging file that Options.Keep kept and nobody resumed.
func (t *Tier) Discard(staging string) error {
	if t.stagedOn(staging) == nil {
		return fmt.Errorf("discard %q: %w: no staging file of this tier", staging, catalog.ErrInvalid)
	}
	if err := t.fsys.Remove(staging); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("discard: %w", err)
	}
	return nil
}

// stagedOn gives the disk whose staging file this is, or nil.
func (t *Tier) stagedOn(staging string) *disk {
	dir, base := filepath.Split(filepath.Clean(staging))
	for _, d := range t.disks {
		if filepath.Clean(dir) == filepath.Join(d.dir, stagingDir) && strings.HasSuffix(base, tmpSuffix) {
			return d
		}
	}
	return nil
}

// Name is the blob's name to be.
func (in *Ingest) Name() string { return in.name }

// Size is the blob's size, in bytes.
func (in *Ingest) Size() int64 { return in.size }

// Staging is the path of the file the bytes are written to, for a journal.
func (in *Ingest) Staging() string { return in.staging }

// Block gives the CRC32C of block i, if it has been written.
func (in *Ingest) Block(i int) (crc uint32, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if i < 0 || i >= len(in.mu.state) || in.mu.state[i] != written {
		return 0, false
	}
	return in.mu.crcs[i], true
}

// Commit makes the blob durable and visible, with info in its seal. When it
// fails nothing is visible, but the blob may turn up after a restart if the
// disk failed while its directory was synced.
func (in *Ingest) Commit(ctx context.Context, info []byte) (*catalog.Seal, error) {
	seal, err := in.commit(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", in.name, err)
	}
	return seal, nil
}

func (in *Ingest) commit(ctx context.Context, info []byte) (*catalog.Seal, error) {
	if len(info) > catalog.MaxSealInfo {
		return nil, fmt.Errorf("%w: info of %d bytes, the limit is %d", catalog.ErrInvalid, len(info), catalog.MaxSealInfo)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	seal, err := in.finish(info)
	if err != nil {
		return nil, err
	}
	err = in.publish(seal)
	in.t.failed(in.d, err)
	if err != nil {
		in.reopen()
		return nil, fmt.Errorf("disk %s: %w", in.d.dir, err)
	}
	in.t.leave(in)
	return seal, in.f.Close()
}

// finish forbids further writes, if nothing is missing.
func (in *Ingest) finish(info []byte) (*catalog.Seal, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.mu.done:
		return nil, fs.ErrClosed
	case in.mu.writing > 0:
		return nil, fmt.Errorf("%w: %d writes are still running", catalog.ErrConflict, in.mu.writing)
	}
	for i, s := range in.mu.state {
		if s != written {
			return nil, fmt.Errorf("%w: block %d of %d was not written", catalog.ErrIncomplete, i, len(in.mu.state))
		}
	}
	in.mu.done = true
	return &catalog.Seal{Name: in.name, Size: in.size, CRCs: slices.Clone(in.mu.crcs), Info: slices.Clone(info)}, nil
}

// reopen lets Close clean up after a Commit that failed.
func (in *Ingest) reopen() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.mu.done = false
	// An fsync that failed may have dropped the bytes: what was written counts no more.
	clear(in.mu.state)
}

func (in *Ingest) publish(seal *catalog.Seal) error {
	if in.size%vfs.Align != 0 {
		if err := in.f.Truncate(in.size); err != nil { // of the last block's padding
			return err
		}
	}
	t := in.t
	if err := t.harden(in.f, sealTmp(in.staging), seal); err != nil {
		return err
	}
	l := t.lockOf(in.name)
	l.Lock()
	defer l.Unlock()
	if err := t.publish(in.d, in.name, in.staging, sealTmp(in.staging), t.fsys.Rename); err != nil {
		return err
	}
	t.show(t.entryOf(in.d, seal, time.Now()))
	return nil
}

// Close without Commit removes the staging file and gives the room back.
func (in *Ingest) Close() error {
	in.mu.Lock()
	done := in.mu.done
	in.mu.done = true
	in.mu.Unlock()
	if done {
		return nil
	}
	err := in.f.Close()
	if e := in.t.fsys.Remove(in.staging); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	in.t.leave(in)
	if err != nil {
		return fmt.Errorf("close ingest of %s: %w", in.name, err)
	}
	return nil
}

// Detach closes the file and gives the room's accounting back, but leaves the
// staging file for Resume: what a daemon does that stops.
func (in *Ingest) Detach() error {
	in.mu.Lock()
	done := in.mu.done
	in.mu.done = true
	in.mu.Unlock()
	if done {
		return nil
	}
	in.t.leave(in)
	return in.f.Close()
}
