package order

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Limits of an order.
const (
	MaxSamples = 1 << 48
	MaxGroup   = 1 << 24
)

// DefaultGroup is the slices of a block where nobody says how many: what a
// node's cache holds easily when a slice is a pack.
const DefaultGroup = 16

// Mode says how far a sample may travel. The zero value is the global order: a
// permutation of all samples.
type Mode struct {
	Slice int64 // samples of a slice, about a pack's worth; 0: global
	Group int64 // slices that are mixed in one block; 0 with a Slice: DefaultGroup
}

// Global is the order over all samples.
var Global = Mode{}

// Window is the order that needs the samples of group slices at a time.
func Window(slice, group int64) Mode { return Mode{Slice: slice, Group: group} }

// WindowOf is a window whose slices are as long as a version's packs are on average.
func WindowOf(samples int64, packs int, group int64) Mode {
	n := int64(max(packs, 1))
	return Window(max(1, (samples+n-1)/n), group)
}

// withDefaults fills in the group.
func (m Mode) withDefaults() Mode {
	if m.Slice != 0 && m.Group == 0 {
		m.Group = DefaultGroup
	}
	return m
}

// Check reports what is wrong with the mode, if anything.
func (m Mode) Check() error {
	m = m.withDefaults()
	switch {
	case m == Global:
		return nil
	case m.Slice < 1 || m.Slice > MaxSamples:
		return fmt.Errorf("order's slice of %d samples: %w: want 1 to 2^48", m.Slice, catalog.ErrInvalid)
	case m.Group < 1 || m.Group > MaxGroup:
		return fmt.Errorf("order's group of %d slices: %w: want 1 to %d", m.Group, catalog.ErrInvalid, MaxGroup)
	}
	return nil
}

// String is "global" or "window:SLICE:GROUP".
func (m Mode) String() string {
	if m = m.withDefaults(); m == Global {
		return "global"
	}
	return fmt.Sprintf("window:%d:%d", m.Slice, m.Group)
}

// ParseMode reads what String writes, and nothing else.
func ParseMode(s string) (Mode, error) {
	if s == "global" {
		return Global, nil
	}
	bad := fmt.Errorf("order's mode %.100q: %w: want global or window:SLICE:GROUP", s, catalog.ErrInvalid)
	rest, ok := strings.CutPrefix(s, "window:")
	slice, group, two := strings.Cut(rest, ":")
	if !ok || !two {
		return Mode{}, bad
	}
	a, fine := number(slice, MaxSamples)
	b, good := number(group, MaxGroup)
	if !fine || !good || a == 0 || b == 0 {
		return Mode{}, bad
	}
	return Window(int64(a), int64(b)), nil
}

// number reads a decimal number as it is printed: no sign, no leading zeros.
func number(s string, most uint64) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && n <= most && s == strconv.FormatUint(n, 10)
}
