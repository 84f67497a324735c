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

// Unmount takes a mount away.
func (c *Client) Unmount(ctx context.Context, dir string) error {
	if _, err := post[wire.Mounts](ctx, c, "/v1/unmount", wire.UnmountRequest{Dir: dir}); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
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
