package localtier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// model holds, per blob, what may be there after a crash: nil stands for absent.
type model map[string][][]byte

// change runs one change of a blob. While it runs, old and new are both fine;
// when it has returned nil only the new is.
func (m model) change(name string, to []byte, f func() error) error {
	if _, ok := m[name]; !ok {
		m[name] = [][]byte{nil}
	}
	m[name] = append(m[name], to)
	err := f()
	if err == nil {
		m[name] = [][]byte{to}
	}
	return err
}

func (m model) check(t *testing.T, tier *Tier, where string) {
	t.Helper()
	for name, allowed := range m {
		got, err := tier.Get(t.Context(), name)
		if errors.Is(err, fs.ErrNotExist) {
			got, err = nil, nil
		} else if err == nil && got == nil {
			got = []byte{}
		}
		if err != nil {
			t.Fatalf("%s: %s: %v", where, name, err)
		}
		ok := false
		for _, a := range allowed {
			ok = ok || (a == nil) == (got == nil) && bytes.Equal(a, got)
		}
		if !ok {
			t.Fatalf("%s: %s has %d bytes (absent: %v), which none of its %d possible states has", where, name, len(got), got == nil, len(allowed))
		}
	}
	for info := range tier.List("") {
		if _, ok := m[info.Name]; !ok {
			t.Fatalf("%s: %s appeared from nowhere", where, info.Name)
		}
		if err := tier.Verify(t.Context(), info.Name, nil); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
	}
}

// pattern is n bytes that differ from those of any other seed.
func pattern(seed int64, n int) []byte {
	b := vfs.AlignedBuffer(n)
	rand.New(rand.NewSource(seed)).Read(b)
	return b
}

func ingest(ctx context.Context, tier *Tier, name string, b []byte) error {
	in, err := tier.Reserve(ctx, name, int64(len(b)))
	if err != nil {
		return err
	}
	defer in.Close()
	for off := 0; off < len(b); off += catalog.BlockSize {
		if err := in.WriteAt(b[off:min(len(b), off+catalog.BlockSize)], int64(off)); err != nil {
			return err
		}
	}
	_, err = in.Commit(ctx, []byte("info of "+name))
	return err
}

// life is what happens to a tier in the crash test; it stops at the first error.
func life(ctx context.Context, tier *Tier, m model) error {
	shard := func(i int) string { return fmt.Sprintf("run/a/000000000001-000001/rank-%05d.safetensors", i) }
	const record = "run/a/000000000001-000001/set.json"
	add := func(name string, seed int64, n int) error {
		b := pattern(seed, n)
		return m.change(name, b, func() error { return ingest(ctx, tier, name, b) })
	}
	put := func(name string, seed int64, n int) error {
		b := pattern(seed, n)
		return m.change(name, b, func() error { return tier.Put(ctx, name, b) })
	}
	remove := func(name string) error {
		return m.change(name, nil, func() error { return tier.Remove(ctx, name) })
	}
	steps := []func() error{
		func() error { return add(shard(0), 1, 10000) },
		func() error { return put(record, 2, 300) },
		func() error { return add(shard(1), 3, 8192) },
		func() error { return put(record, 4, 5000) },
		func() error { return put(record, 5, 5000) },
		func() error { return remove(shard(0)) },
		func() error { return add(shard(0), 6, 10000) }, // the same size, other bytes
		func() error { return add("other/file", 7, 0) },
		func() error {
			return m.change(shard(1), nil, func() error { return tier.Quarantine(ctx, shard(1), catalog.ErrCorrupt) })
		},
		func() error { return put(record, 8, 0) },
		func() error { return remove("other/file") },
		func() error { return remove(record) },
		func() error { return remove(shard(0)) },
		func() error { return add(shard(0), 9, 4097) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

func openMem(m *vfstest.Mem) (*Tier, error) {
	return Open(m, Options{Dirs: []string{"/disk0", "/disk1"}, Quota: 1 << 30})
}

// TestPromises1And2PowerLoss loses power at every operation of a tier's life,
// boots with nothing, all, or any part of what was not synced, loses power
// again while Open cleans up, and compares with the model.
func TestPromises1And2PowerLoss(t *testing.T) {
	points := 0
	for n := 1; ; n++ {
		mem := vfstest.New(vfstest.Options{})
		mem.LosePowerAt(n)
		m := model{}
		tier, err := openMem(mem)
		if err == nil {
			err = life(t.Context(), tier, m)
		}
		if err != nil && !errors.Is(err, vfstest.ErrPower) {
			t.Fatalf("operation %d: %v", n, err)
		}
		for i := range 12 {
			mode, r := vfstest.Torn, rand.New(rand.NewSource(int64(n*100+i)))
			if i < 2 {
				mode = vfstest.Mode(i)
			}
			where := fmt.Sprintf("power lost at operation %d (%v, try %d)", n, mode, i)
			boot := mem.Crash(mode, r)
			if i >= 6 { // lose it again while the tier is opened
				boot.LosePowerAt(1 + r.Intn(20))
				openMem(boot)
				boot = boot.Crash(mode, r)
			}
			again, err := openMem(boot)
			if err != nil {
				t.Fatalf("%s: %v", where, err)
			}
			m.check(t, again, where)
			// What was seen after one boot must be seen after the next: seen is durable.
			seen := model{}
			for name := range m {
				b, err := again.Get(t.Context(), name)
				if err == nil && b == nil {
					b = []byte{}
				}
				seen[name] = [][]byte{b}
			}
			third, err := openMem(boot.Crash(vfstest.Lose, nil))
			if err != nil {
				t.Fatalf("%s, once more: %v", where, err)
			}
			seen.check(t, third, where+", once more")
			points++
		}
		if err == nil {
			t.Logf("%d crash points over %d operations", points, n-1)
			return
		}
	}
}

// TestPromise2AnyOperationFails fails every single operation with EIO and with
// ENOSPC. The error must come out, the tier go on, and a reboot agree.
func TestPromise2AnyOperationFails(t *testing.T) {
	for _, cause := range []error{fmt.Errorf("disk: %w", syscall.EIO), fmt.Errorf("disk: %w", catalog.ErrNoSpace)} {
		for n := 1; ; n++ {
			mem := vfstest.New(vfstest.Options{})
			hit := ""
			mem.OnOp(func(i int, op, name string) error {
				if i == n {
					hit = op + " " + name
				}
				return vfstest.FailNth(n, cause)(i, op, name)
			})
			m := model{}
			tier, err := openMem(mem)
			if err != nil {
				if !errors.Is(err, cause) {
					t.Fatalf("%s failed, Open gave %v", hit, err)
				}
				continue
			}
			err = life(t.Context(), tier, m)
			if err != nil && !errors.Is(err, cause) {
				t.Fatalf("%s failed with %v, the tier gave %v", hit, cause, err)
			}
			mem.OnOp(nil)
			m.check(t, tier, "after the failure of "+hit)
			if u := tier.Usage(); u.Reserved != 0 {
				t.Fatalf("%s failed: %d bytes stay reserved", hit, u.Reserved)
			}
			// The disk works again: so must the tier.
			if err := ingest(t.Context(), tier, "after/all", pattern(1, 5000)); err != nil {
				t.Fatalf("%s failed once; later: %v", hit, err)
			}
			m["after/all"] = [][]byte{pattern(1, 5000)}
			again, err := openMem(mem.Crash(vfstest.Torn, rand.New(rand.NewSource(int64(n)))))
			if err != nil {
				t.Fatal(err)
			}
			m.check(t, again, "reboot after the failure of "+hit)
			if hit == "" {
				t.Logf("%d operations failed", n-1)
				break
			}
		}
	}
}

// TestPromise1KilledThenPowerLoss kills the process at every operation, lets
// the next one see what is there, and then loses power and all that was not
// synced: what the second process saw, it may have reported.
func TestPromise1KilledThenPowerLoss(t *testing.T) {
	killed := errors.New("killed")
	for n := 1; ; n++ {
		mem := vfstest.New(vfstest.Options{})
		mem.OnOp(func(i int, op, name string) error {
			if i >= n {
				return killed
			}
			return nil
		})
		m := model{}
		tier, err := openMem(mem)
		if err == nil {
			err = life(t.Context(), tier, m)
			tier.Close()
		}
		done := err == nil
		mem.OnOp(nil)
		where := fmt.Sprintf("killed at operation %d", n)
		next, err := openMem(mem)
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		m.check(t, next, where)
		seen := model{}
		for name := range m {
			b, err := next.Get(t.Context(), name)
			if err == nil && b == nil {
				b = []byte{}
			}
			seen[name] = [][]byte{b}
		}
		// It goes on in folders the killed one may have made and not synced.
		if err := ingest(t.Context(), next, "run/a/000000000001-000001/late", pattern(1, 10)); err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		seen["run/a/000000000001-000001/late"] = [][]byte{pattern(1, 10)}
		last, err := openMem(mem.Crash(vfstest.Lose, nil))
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		seen.check(t, last, where+", then power lost")
		if done {
			return
		}
	}
}
