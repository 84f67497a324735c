package ckptd

import (
	"context"
	"fmt"
	"io/fs"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) getMounts(_ context.Context, c *app.RequestContext) error {
	return reply(c, wire.Mounts{Mounts: n.mountRows()})
}

// postMount answers when the mount is there. Asking again for the same is fine.
func (n *Node) postMount(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.MountRequest](c)
	if err != nil {
		return err
	}
	if err := checkMount(q.Dir); err != nil {
		return err
	}
	m := &n.mounts
	m.change.Lock()
	defer m.change.Unlock()
	if err := n.loadMounts(); err != nil {
		return err
	}
	m.mu.Lock()
	was, wanted := m.mu.want[q.Dir]
	here, full := m.mu.here[q.Dir] != nil, len(m.mu.want) >= maxMounts
	m.mu.Unlock()
	switch {
	case here && was != q:
		return wire.WithHint(fmt.Errorf("mount %s: %w: it is mounted with other settings", q.Dir, fs.ErrExist), "`ckpt unmount %s` first", q.Dir)
	case !here && !wanted && full:
		return fmt.Errorf("mount %s: %w: there are %d mounts already", q.Dir, catalog.ErrConflict, maxMounts)
	case !here:
		if err := n.mount(ctx, q); err != nil {
			return err
		}
	}
	m.mu.Lock()
	m.mu.want[q.Dir] = q
	m.mu.Unlock()
	if err := n.saveMounts(); err != nil {
		return err
	}
	for _, row := range n.mountRows() {
		if row.Dir == q.Dir {
			return reply(c, row)
		}
	}
	return fmt.Errorf("mount %s: %w: it went away at once", q.Dir, catalog.ErrUnavailable)
}

func (n *Node) postUnmount(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.UnmountRequest](c)
	if err != nil {
		return err
	}
	m := &n.mounts
	m.change.Lock()
	defer m.change.Unlock()
	if err := n.loadMounts(); err != nil {
		return err
	}
	m.mu.Lock()
	_, ok := m.mu.want[q.Dir]
	m.mu.Unlock()
	if !ok {
		return fmt.Errorf("unmount %s: %w: this daemon has not mounted it", q.Dir, fs.ErrNotExist)
	}
	if err := n.unmount(ctx, q.Dir); err != nil {
		return err
	}
	return reply(c, wire.Mounts{Mounts: n.mountRows()})
}
