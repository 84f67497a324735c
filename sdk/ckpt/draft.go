package ckpt

import (
	"context"
	"fmt"

	"github.com/ckptd/ckptd/sdk/wire"
)

// CommitDraft makes the files that were written into RUN/.write/STEP of a
// mount, on all nodes together, the set RUN@STEP, and returns when it is
// committed. They must be closed. Progress may be nil.
func (c *Client) CommitDraft(ctx context.Context, req wire.CommitRequest, progress func(wire.Progress)) (*wire.Set, error) {
	s, err := stream[wire.Set](ctx, c, "/v1/commit", req, progress)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", req.Ref, err)
	}
	return s, nil
}
