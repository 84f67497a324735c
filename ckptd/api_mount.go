package ckptd

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"

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
	if err := n.mayMount(c); err != nil {
		return fmt.Errorf("mount %s: %w", q.Dir, err)
	}
	if err := checkMount(q.Dir); err != nil {
		return err
	}
	if err := checkReads(q); err != nil {
		return fmt.Errorf("mount %s: %w", q.Dir, err)
	}
	m := &n.mounts
	m.change.Lock()
	defer m.change.Unlock()
	if err := n.loadMounts(); err != nil {
		return err
	}
	m.mu.Lock()
	was, wanted := m.mu.want[q.Dir]
	h := m.mu.here[q.Dir]
	here, full := h != nil, len(m.mu.want) >= maxMounts
	m.mu.Unlock()
	if here { // what can be changed while it is there
		q.Ahead, q.Retries = cmp.Or(q.Ahead, was.Ahead), cmp.Or(q.Retries, was.Retries)
		was.Ahead, was.Retries = q.Ahead, q.Retries
	}
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
	if here {
		h.ahead.set(q)
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
	if err := n.mayMount(c); err != nil {
		return fmt.Errorf("unmount %s: %w", q.Dir, err)
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
	if err := n.unmount(ctx, q.Dir, q.Lazy); err != nil {
		return err
	}
	return reply(c, wire.Mounts{Mounts: n.mountRows()})
}

// mayMount lets root and the daemon's own user change mounts, and nobody whom
// --allow-uid lets in: he would have a daemon that is root's mount wherever he
// says, over what others trust, and could swap the folder for a link meanwhile.
func (n *Node) mayMount(c *app.RequestContext) error {
	uid, ok := c.RemoteAddr().(peerAddr)
	if me := uint32(os.Geteuid()); ok && (uid == 0 || uint32(uid) == me) {
		return nil
	} else if ok {
		return wire.WithHint(fmt.Errorf("%w: user %d may use this daemon, and only root and its own user, %d, may change what it mounts", wire.ErrUnauthorized, uid, me),
			"ask one of them, or start a daemon of your own: `ckptd serve --mount DIR`")
	}
	return fmt.Errorf("%w: who asks is not known", wire.ErrUnauthorized)
}
