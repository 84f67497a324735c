package order

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// MaxCursorLen is the bytes of a cursor's text.
const MaxCursorLen = 1024

// Cursor says where a job is in its data: what a checkpoint keeps so that
// training goes on with the next sample.
type Cursor struct {
	Dataset string         // NAME@VERSION
	Digest  catalog.Digest // of the version
	Seed    uint64
	Epoch   uint64
	At      int64 // samples of the epoch that all ranks together have taken
	Mode    Mode
}

// Key is the key of the cursor's epoch.
func (c Cursor) Key() Key { return NewKey(c.Digest, c.Seed, c.Epoch) }

// String is the text that ParseCursor reads.
func (c Cursor) String() string {
	return fmt.Sprintf("%s;digest=%x;seed=%d;epoch=%d;at=%d;mode=%v", c.Dataset, c.Digest[:], c.Seed, c.Epoch, c.At, c.Mode)
}

// Check reports what is wrong with the cursor, if anything.
func (c Cursor) Check() error {
	name, version, ok := strings.Cut(c.Dataset, "@")
	n, fine := number(version, catalog.MaxStep)
	if !ok || !fine || n == 0 {
		return fmt.Errorf("cursor of %.200q: %w: want NAME@VERSION", c.Dataset, catalog.ErrInvalid)
	}
	if _, err := catalog.ParseRun(name); err != nil {
		return fmt.Errorf("cursor: %w", err)
	}
	if c.At < 0 || c.At > MaxSamples {
		return fmt.Errorf("cursor at %d: %w: want 0 to 2^48", c.At, catalog.ErrInvalid)
	}
	if c.Digest.IsZero() {
		return fmt.Errorf("cursor of %s: %w: it has no digest", c.Dataset, catalog.ErrInvalid)
	}
	return c.Mode.Check()
}

// ParseCursor reads what String writes, and nothing else.
func ParseCursor(s string) (Cursor, error) {
	bad := func(why string) (Cursor, error) {
		return Cursor{}, fmt.Errorf("cursor %.200q: %w: %s", s, catalog.ErrInvalid, why)
	}
	if len(s) > MaxCursorLen {
		return bad(fmt.Sprintf("longer than %d bytes", MaxCursorLen))
	}
	parts := strings.Split(s, ";")
	names := []string{"", "digest=", "seed=", "epoch=", "at=", "mode="}
	if len(parts) != len(names) {
		return bad("want NAME@VERSION;digest=HEX;seed=N;epoch=N;at=N;mode=MODE")
	}
	for i, name := range names {
		if !strings.HasPrefix(parts[i], name) {
			return bad(fmt.Sprintf("want %s… in part %d", name, i+1))
		}
		parts[i] = parts[i][len(name):]
	}
	c := Cursor{Dataset: parts[0]}
	if strings.ToLower(parts[1]) != parts[1] || parts[1] == "" || c.Digest.UnmarshalText([]byte(parts[1])) != nil {
		return bad("the digest is not 64 lower-case digits")
	}
	for _, n := range []struct {
		text, name string
		most       uint64
		set        func(uint64)
	}{
		{parts[2], "seed", math.MaxUint64, func(v uint64) { c.Seed = v }},
		{parts[3], "epoch", math.MaxUint64, func(v uint64) { c.Epoch = v }},
		{parts[4], "at", MaxSamples, func(v uint64) { c.At = int64(v) }},
	} {
		v, ok := number(n.text, n.most)
		if !ok {
			return bad(n.name + " is not a number up to " + strconv.FormatUint(n.most, 10))
		}
		n.set(v)
	}
	mode, err := ParseMode(parts[5])
	if err != nil {
		return Cursor{}, fmt.Errorf("cursor: %w", err)
	}
	c.Mode = mode
	if err := c.Check(); err != nil {
		return Cursor{}, err
	}
	return c, nil
}
