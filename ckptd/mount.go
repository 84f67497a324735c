package ckptd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/tree"
	"github.com/ckptd/ckptd/fuse"
	"github.com/ckptd/ckptd/sdk/wire"
)

// mounts are this node's. Which there are to be is remembered on the disk, so
// that a daemon that starts again has those of the last one.
type mounts struct {
	blocks *tree.Blocks
	leases mountLeases

	change sync.Mutex // one mount or unmount at a time
	mu     struct {
		sync.Mutex
		loaded bool
		want   map[string]wire.MountRequest // by folder
		here   map[string]*mounted
	}
}

type mounted struct {
	m     *fuse.Mount
	tree  *tree.Tree
	ahead *mountReads
}

const (
	mountBlocks = 64 << 20 // bytes of pieces that far files are read by
	maxMounts   = 64
	mountEvery  = 10 * time.Second
	mountFile   = "mounts.json" // in the data directory
	mountClose  = 10 * time.Second
)

func (n *Node) initMounts() {
	m := &n.mounts
	m.blocks = tree.NewBlocks(mountBlocks)
	m.leases.init(n.cat, n.cfg.Name)
	m.mu.want, m.mu.here = make(map[string]wire.MountRequest), make(map[string]*mounted)
}

// mountOnce mounts what is to be mounted and is not, and forgets what somebody
// has unmounted by umount(8).
func (n *Node) mountOnce(ctx context.Context) error {
	m := &n.mounts
	m.change.Lock()
	defer m.change.Unlock()
	if err := n.loadMounts(); err != nil {
		return err
	}
	m.leases.tend(ctx, time.Now())
	m.mu.Lock()
	want := slices.Sorted(maps.Keys(m.mu.want))
	m.mu.Unlock()
	var errs []error
	for _, dir := range want {
		m.mu.Lock()
		h, req := m.mu.here[dir], m.mu.want[dir]
		m.mu.Unlock()
		if h != nil {
			select {
			case <-h.m.Done():
				n.log.Info("unmounted by somebody else", "dir", dir)
				errs = append(errs, n.unmount(ctx, dir, false))
			default:
			}
			continue
		}
		errs = append(errs, n.mount(ctx, req))
	}
	return errors.Join(errs...)
}

// loadMounts reads what the last daemon had, once.
func (n *Node) loadMounts() error {
	m := &n.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.loaded {
		return nil
	}
	for _, req := range n.cfg.Mounts {
		m.mu.want[req.Dir] = req
	}
	m.mu.loaded = true
	if n.cfg.Data == "" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(n.cfg.Data, mountFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var last []wire.MountRequest
	if err == nil {
		err = json.Unmarshal(b, &last)
	}
	if err != nil {
		n.log.Warn("the mounts of the last daemon are not known", "err", err)
		return nil
	}
	for _, req := range last[:min(len(last), maxMounts)] {
		if _, given := m.mu.want[req.Dir]; !given && filepath.IsAbs(req.Dir) {
			m.mu.want[req.Dir] = req
		}
	}
	return nil
}

// saveMounts remembers what is to be mounted.
func (n *Node) saveMounts() error {
	if n.cfg.Data == "" {
		return nil
	}
	m := &n.mounts
	m.mu.Lock()
	list := make([]wire.MountRequest, 0, len(m.mu.want))
	for _, dir := range slices.Sorted(maps.Keys(m.mu.want)) {
		list = append(list, m.mu.want[dir])
	}
	m.mu.Unlock()
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	name := filepath.Join(n.cfg.Data, mountFile)
	if err := os.WriteFile(name+".tmp", append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("remember the mounts: %w", err)
	}
	return os.Rename(name+".tmp", name)
}

// mount mounts one folder. The change lock is held.
func (n *Node) mount(ctx context.Context, req wire.MountRequest) error {
	// An empty tree would be a lie: the first listing has what is committed.
	if err := n.cat.Sync(ctx); err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	ahead := newMountReads(n, req)
	tr := tree.New(mountStore{n, ahead, req.Checked}, tree.Options{
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Started: n.started, Shared: req.AllowOther && len(n.cfg.UIDs) > 0,
	})
	var at atomic.Pointer[fuse.Mount]
	tr.OnChange(func(parent fuse.ID, name string) {
		if m := at.Load(); m != nil {
			m.Changed(parent, name)
		}
	})
	m, err := fuse.New(req.Dir, tr, fuse.Options{AllowOther: req.AllowOther, Checked: req.Checked, NoPassthrough: req.NoPassthrough})
	if err != nil {
		return err
	}
	at.Store(m)
	info := m.Info()
	n.log.Info("mounted", "dir", info.Dir, "passthrough", info.Passthrough, "why", info.Why)
	n.mounts.mu.Lock()
	n.mounts.mu.here[req.Dir] = &mounted{m, tr, ahead}
	n.mounts.mu.Unlock()
	return nil
}

// unmount takes one mount away and forgets it. The change lock is held.
// lazy: also from under those who use it.
func (n *Node) unmount(ctx context.Context, dir string, lazy bool) error {
	m := &n.mounts
	m.mu.Lock()
	h := m.mu.here[dir]
	m.mu.Unlock()
	if h != nil {
		ctx, cancel := context.WithTimeout(ctx, mountClose)
		defer cancel()
		take := h.m.Unmount
		if lazy {
			cancel() // one try, and then by force
			take = h.m.Close
		}
		if err := take(ctx); errors.Is(err, catalog.ErrConflict) && !lazy {
			return wire.WithHint(fmt.Errorf("unmount %s: %w", dir, err), "end what uses it, or `ckpt unmount --lazy %s`: files that the daemon reads for others then answer an error", dir)
		} else if err != nil {
			return fmt.Errorf("unmount %s: %w", dir, err)
		}
		h.tree.Close()
	}
	m.mu.Lock()
	delete(m.mu.here, dir)
	delete(m.mu.want, dir)
	m.mu.Unlock()
	return n.saveMounts()
}

// endMounts takes all mounts away; the next daemon has them again.
func (n *Node) endMounts() error {
	m := &n.mounts
	m.change.Lock()
	defer m.change.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), mountClose)
	defer cancel()
	m.mu.Lock()
	here := m.mu.here
	m.mu.here = make(map[string]*mounted)
	m.mu.Unlock()
	var errs []error
	for dir, h := range here {
		if err := h.m.Close(ctx); err != nil {
			errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
		}
		h.tree.Close()
	}
	m.leases.end()
	return errors.Join(errs...)
}

// mountRows tells of the mounts, by folder.
func (n *Node) mountRows() []wire.Mount {
	m := &n.mounts
	m.mu.Lock()
	defer m.mu.Unlock()
	rows := make([]wire.Mount, 0, len(m.mu.want))
	for _, dir := range slices.Sorted(maps.Keys(m.mu.want)) {
		req := m.mu.want[dir]
		row := wire.Mount{Dir: dir, AllowOther: req.AllowOther, Checked: req.Checked, NoPassthrough: req.NoPassthrough, Ahead: req.Ahead, Retries: req.Retries}
		if h := m.mu.here[dir]; h != nil {
			i := h.m.Info()
			row.Mounted, row.Kernel, row.Passthrough, row.Why, row.Open = true, i.Kernel, i.Passthrough, i.Why, i.Open
			row.Ahead, row.Retries, row.FetchedAhead = h.ahead.effective(), h.ahead.retries(), h.ahead.asked.Load()
			row.Plain, row.Direct, row.Passed = i.Plain, i.Direct, i.Passed
		}
		rows = append(rows, row)
	}
	return rows
}

// checkMount refuses what could never be mounted.
func checkMount(dir string) error {
	if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || dir == "/" || strings.ContainsRune(dir, 0) {
		return fmt.Errorf("mount %.200q: %w: want the absolute path of an empty folder", dir, catalog.ErrInvalid)
	}
	return nil
}
