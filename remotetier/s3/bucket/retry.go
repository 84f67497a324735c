package bucket

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/ckptd/ckptd/catalog"
)

// Limits of trying again.
const (
	tokens  = 100 // of the budget: so many more failures than successes, over all requests
	maxWait = 10 * time.Second
	minRate = 1 << 20 // bytes/s below which a transfer counts as stuck
)

// The library waits once more after the last of its tries, which is the first:
// for nothing.
func init() { minio.DefaultRetryUnit = time.Millisecond }

// budget keeps many callers that fail from asking a store that is down over
// and over: a try again takes a token, a success puts one back.
type budget struct {
	sync.Mutex
	left int
}

func (b *budget) take() bool {
	b.Lock()
	defer b.Unlock()
	if b.left == 0 {
		return false
	}
	b.left--
	return true
}

func (b *budget) put() {
	b.Lock()
	defer b.Unlock()
	b.left = min(b.left+1, tokens)
}

// do makes a request that moves about so many bytes, again while that may help.
func (b *Bucket) do(ctx context.Context, bytes int64, request func(ctx context.Context) error) error {
	return b.doLong(ctx, bytes, func(ctx context.Context, _ func(bool)) error { return request(ctx) })
}

// errStuck ends a try that makes no headway.
var errStuck = fmt.Errorf("%w: no answer in time", catalog.ErrUnavailable)

// doLong is do of what may take long, as a listing of many pages: request calls
// alive with true whenever it got on, and with false before it lets somebody
// else take his time.
func (b *Bucket) doLong(ctx context.Context, bytes int64, request func(ctx context.Context, alive func(bool)) error) error {
	begin := time.Now()
	limit := b.opt.Timeout + time.Duration(bytes/minRate)*time.Second
	for try := 1; ; try++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		one, cancel := context.WithCancelCause(ctx)
		timer := time.AfterFunc(limit, func() { cancel(errStuck) })
		err := request(one, func(on bool) {
			if begin = time.Now(); on {
				timer.Reset(limit)
			} else {
				timer.Stop()
			}
		})
		timer.Stop()
		stuck := context.Cause(one) == errStuck
		cancel(nil)
		if err == nil {
			b.budget.put()
			return nil
		}
		if cerr := ctx.Err(); cerr != nil {
			return cerr
		}
		if stuck {
			err = fmt.Errorf("%w, %v: %v", errStuck, limit, err) // which must not look like the caller's giving up
		} else if !ruleOf(err).again {
			return err
		}
		wait := min(b.opt.Pause<<min(try-1, 20), maxWait)
		wait = wait/2 + rand.N(wait/2+1)
		switch {
		case try >= b.opt.Tries:
			return fmt.Errorf("tried %d times: %w", try, err)
		case time.Since(begin)+wait > b.opt.Patience:
			return fmt.Errorf("tried for %v: %w", b.opt.Patience, err)
		case !b.budget.take():
			return fmt.Errorf("too many requests fail to try this one again: %w", err)
		}
		if b.opt.Again != nil {
			b.opt.Again(err, try, wait)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
