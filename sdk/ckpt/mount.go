package ckpt

import (
	"context"
	"fmt"

	"github.com/ckptd/ckptd/sdk/wire"
)

// Mount has the daemon show its checkpoints and datasets as files in an empty
// folder of its machine, an absolute path, and returns when they are there.
func (c *Client) Mount(ctx context.Context, req wire.MountRequest) (*wire.Mount, error) {
	m, err := post[wire.Mount](ctx, c, "/v1/mount", req)
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", req.Dir, err)
	}
	return m, nil
}

// Unmount takes a mount away. While somebody uses it that is ErrConflict, after
// some seconds.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	return c.unmount(ctx, wire.UnmountRequest{Dir: dir})
}

// UnmountLazy takes a mount away also from under those who use it: files that
// the kernel reads by itself stay readable, others answer an error.
func (c *Client) UnmountLazy(ctx context.Context, dir string) error {
	return c.unmount(ctx, wire.UnmountRequest{Dir: dir, Lazy: true})
}

func (c *Client) unmount(ctx context.Context, req wire.UnmountRequest) error {
	if _, err := post[wire.Mounts](ctx, c, "/v1/unmount", req); err != nil {
		return fmt.Errorf("unmount %s: %w", req.Dir, err)
	}
	return nil
}

// Mounts lists the daemon's mounts.
func (c *Client) Mounts(ctx context.Context) ([]wire.Mount, error) {
	r, err := get[wire.Mounts](ctx, c, "/v1/mounts", nil)
	if err != nil {
		return nil, err
	}
	return r.Mounts, nil
}
