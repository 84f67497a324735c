package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"
)

// casTries bounds how often an update starts over after losing a race.
const casTries = 64

// update reads key, lets change edit it, and swaps it in, starting over when
// somebody else was first. A missing record is given to change as the zero T
// with exists false. change returning errSame leaves the record as it is.
//
// After ErrUnavailable the swap may have happened. So every change in this
// package is one that, made again on its own result, returns errSame or does
// no harm: the caller just calls again.
func update[T any](ctx context.Context, d Driver, key string, change func(v *T, exists bool) error) (T, error) {
	for try := range casTries {
		v, rev, err := load[T](ctx, d, key)
		exists := err == nil
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return v, err
		}
		if err := change(&v, exists); errors.Is(err, errSame) {
			return v, nil
		} else if err != nil {
			return v, err
		}
		b, err := json.Marshal(v)
		if err != nil { // a NaN, say
			return v, fmt.Errorf("record %s: %w: %v", key, ErrInvalid, err)
		}
		if _, err = d.Swap(ctx, key, rev, b); err == nil {
			return v, nil
		} else if !errors.Is(err, ErrConflict) {
			return v, err
		}
		if try > 2 { // many writers: spread them
			select {
			case <-ctx.Done():
				return v, ctx.Err()
			case <-time.After(time.Duration(rand.Int64N(int64(try) * int64(time.Millisecond)))):
			}
		}
	}
	var v T
	return v, fmt.Errorf("record %s: %w: %w %d times", key, ErrConflict, ErrRaced, casTries)
}

// ErrRaced goes with ErrConflict when it was no rule that refused a change:
// others were first, again and again. Trying later helps.
var ErrRaced = errors.New("lost the race")

// errSame tells update that nothing needs to change.
var errSame = errors.New("same")

// ErrSame, returned by a change, leaves the record as it is without error.
var ErrSame = errSame

// load reads and decodes a record; without one the revision is 0.
func load[T any](ctx context.Context, d Driver, key string) (v T, rev uint64, err error) {
	rec, err := d.Get(ctx, key)
	if err != nil {
		return v, 0, err
	}
	return v, rec.Rev, decode(rec, &v)
}

func read[T any](ctx context.Context, d Driver, key string) (T, error) {
	v, _, err := load[T](ctx, d, key)
	return v, err
}

// decode reads a record's value. One that breaks its type's rules, or is of
// another key, is ErrCorrupt: whoever can write to the store must not be able
// to make a node allocate without bound or take one set for another.
func decode[T any](rec Record, v *T) error {
	err := json.Unmarshal(rec.Value, v)
	if c, ok := any(v).(interface{ valid(key string) error }); ok && err == nil {
		err = c.valid(rec.Key)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w: %v", rec.Key, ErrCorrupt, err)
	}
	return nil
}

// remove deletes key whatever its revision; a missing key is fine.
func remove(ctx context.Context, d Driver, key string) error {
	for range casTries {
		rec, err := d.Get(ctx, key)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if _, err = d.Swap(ctx, key, rec.Rev, nil); !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("delete %s: %w", key, ErrConflict)
}
