package posix

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// Stripe is how Lustre is to stripe the large files: over so many of its
// targets, in pieces of so many bytes. The zero Stripe leaves it to the file
// system.
type Stripe struct {
	Count int   // -1: over all of them
	Size  int64 // bytes; 0: what the file system uses
}

const lustreUnit = 64 << 10 // stripe sizes are multiples of it

// ParseStripe reads "COUNT" or "COUNT:SIZE", with a size as 4M or 1048576.
func ParseStripe(s string) (Stripe, error) {
	bad := func(why string) (Stripe, error) {
		return Stripe{}, fmt.Errorf("stripe %.40q: %w: %s", s, catalog.ErrInvalid, why)
	}
	count, size, sized := strings.Cut(s, ":")
	n, err := strconv.Atoi(count)
	if err != nil || n == 0 || n < -1 || n > 2000 {
		return bad("COUNT is a number from 1 to 2000, or -1 for all targets of the file system")
	}
	st := Stripe{Count: n}
	if !sized {
		return st, nil
	}
	factor := int64(1)
	for suffix, f := range map[string]int64{"K": 1 << 10, "M": 1 << 20, "G": 1 << 30} {
		if rest, ok := strings.CutSuffix(strings.TrimSuffix(size, "iB"), suffix); ok {
			size, factor = rest, f
			break
		}
	}
	v, err := strconv.ParseInt(size, 10, 64)
	if err != nil || v <= 0 || v > 4<<30/factor || v*factor%lustreUnit != 0 {
		return bad("SIZE is a multiple of 64K up to 4G, as 4M")
	}
	st.Size = v * factor
	return st, nil
}

// wants says whether a file of so many bytes is worth striping.
func (s Stripe) wants(size int64) bool {
	return s.Count != 0 && size > max(s.Size, 1<<20)
}

// lfsTime bounds the call of lfs.
const lfsTime = 30 * time.Second

// apply makes files that are made in dir be striped so.
func (s Stripe) apply(ctx context.Context, dir string) error {
	if s.Count == 0 {
		return nil
	}
	lfs, err := exec.LookPath("lfs")
	if err != nil {
		return fmt.Errorf("stripe: %w: it needs the program lfs of the Lustre client, which is not in PATH; leave stripe= out on another file system", catalog.ErrInvalid)
	}
	args := []string{"setstripe", "-c", strconv.Itoa(s.Count)}
	if s.Size > 0 {
		args = append(args, "-S", strconv.FormatInt(s.Size, 10))
	}
	ctx, cancel := context.WithTimeout(ctx, lfsTime)
	defer cancel()
	out, err := exec.CommandContext(ctx, lfs, append(args, dir)...).CombinedOutput()
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("lfs setstripe: %w: no answer within %v", catalog.ErrUnavailable, lfsTime)
	}
	if err != nil {
		return fmt.Errorf("lfs %s %s: %w: %w: %s", strings.Join(args, " "), dir, catalog.ErrInvalid, err, bytes.TrimSpace(out[:min(len(out), 500)]))
	}
	return nil
}
