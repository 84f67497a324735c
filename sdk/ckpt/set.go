package ckpt

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Set is what a Commit made: one rank's part of a set.
type Set struct {
	ID    catalog.SetID
	Rank  int
	Level catalog.Level // when last looked
	Size  int64         // bytes of the shard
	Stall time.Duration // spent in Save and Commit: what the training waited

	c *Client
}

func (s *Set) String() string { return s.ID.String() }

// Wait blocks until the whole set, all its ranks, is at level or safer.
func (s *Set) Wait(ctx context.Context, level catalog.Level) error {
	if s.Level >= level && level <= catalog.Staged {
		return nil
	}
	got, err := s.c.Wait(ctx, s.ID.String(), level)
	if got != nil {
		s.Level = got.Level
	}
	return err
}

const (
	waitStep  = 30 * time.Second       // of one request
	awayLimit = time.Minute            // a daemon may take this long to restart
	awayStep  = 200 * time.Millisecond // between two tries to reach it
)

// Wait blocks until a set is at level or safer, across restarts of the daemon.
// When ctx ends first, the error is both its own and catalog.ErrIncomplete.
func (c *Client) Wait(ctx context.Context, ref string, level catalog.Level) (*wire.Set, error) {
	var away time.Time // since when
	for {
		req := wire.WaitRequest{Ref: ref, Level: level, Timeout: waitStep.Seconds()}
		if end, ok := ctx.Deadline(); ok {
			// Asked for a little less than there is, so that the daemon's own
			// answer, which says what is missing, comes before the end.
			req.Timeout = max(min(req.Timeout, time.Until(end).Seconds()*0.95-0.05), 0)
		}
		set, err := post[wire.Set](ctx, c, "/v1/wait", req)
		switch {
		case err == nil:
			return set, nil
		case errors.Is(err, catalog.ErrIncomplete):
			away = time.Time{}
			if end, ok := ctx.Deadline(); ok && time.Until(end) < time.Second {
				return nil, fmt.Errorf("wait for %v: %w", level, err)
			}
		case ctx.Err() != nil:
			return nil, fmt.Errorf("wait for %s at %v: %w: %w", ref, level, catalog.ErrIncomplete, context.Cause(ctx))
		case errors.Is(err, catalog.ErrUnavailable):
			if away.IsZero() {
				away = time.Now()
			} else if time.Since(away) > awayLimit {
				return nil, fmt.Errorf("wait for %s: %w", ref, err)
			}
		default:
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for %s at %v: %w: %w", ref, level, catalog.ErrIncomplete, context.Cause(ctx))
		case <-time.After(awayStep):
		}
	}
}
