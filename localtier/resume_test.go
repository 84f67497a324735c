package localtier

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// TestResumeAfterAKillAtEveryOperation kills the process at every operation of an
// ingest whose bytes somebody else still has, as the arena has those of a
// sealed shard. What the file system was told stays. At the next start the
// blob is there, or its staging file is; never neither.
func TestResumeAfterAKillAtEveryOperation(t *testing.T) {
	const name = "run/a/000000000001-000001/rank-00000.safetensors"
	for _, size := range []int{3 * catalog.BlockSize, catalog.BlockSize + 5000} {
		b := pattern(7, size)
		open := func(m *vfstest.Mem, keep ...string) *Tier {
			tier, err := Open(m, Options{Dirs: []string{"/disk"}, Quota: 1 << 30, Keep: func(file string) bool { return slices.Contains(keep, file) }})
			if err != nil {
				t.Fatal(err)
			}
			return tier
		}
		fill := func(in *Ingest) error {
			for i := range catalog.Blocks(int64(size)) {
				if _, ok := in.Block(i); ok {
					continue
				}
				off := i * catalog.BlockSize
				if err := in.WriteAt(b[off:min(size, off+catalog.BlockSize)], int64(off)); err != nil {
					return err
				}
			}
			_, err := in.Commit(t.Context(), []byte("info"))
			return err
		}
		points := 0
		for n := 1; ; n++ {
			mem := vfstest.New(vfstest.Options{})
			tier := open(mem)
			in, err := tier.Reserve(t.Context(), name, int64(size))
			if err != nil {
				t.Fatal(err)
			}
			if err := in.WriteAt(b[:catalog.BlockSize], 0); err != nil {
				t.Fatal(err)
			}
			first, _ := in.Block(0)
			had := func(i int) (uint32, bool) { return first, i == 0 }
			mem.LosePowerAt(mem.Ops() + n)
			died := fill(in)
			if died != nil && !errors.Is(died, vfstest.ErrPower) {
				t.Fatal(died)
			}
			boot := mem.Crash(vfstest.Keep, nil)
			for again := range 2 { // and killed once more, while it resumes
				where := fmt.Sprintf("%d bytes, killed at operation %d, start %d", size, n, again+1)
				tier := open(boot, in.Staging())
				if _, err := tier.Stat(name); err != nil {
					if again == 0 {
						boot.LosePowerAt(boot.Ops() + 1 + n%7)
					}
					in, err := tier.Resume(t.Context(), name, in.Staging(), int64(size), had)
					if err == nil {
						err = fill(in)
					}
					if err != nil && (again == 1 || !errors.Is(err, vfstest.ErrPower)) {
						t.Fatalf("%s: %v", where, err)
					}
				}
				boot = boot.Crash(vfstest.Keep, nil)
				points++
			}
			got, err := open(boot).Get(t.Context(), name)
			if err != nil || !slices.Equal(got, b) {
				t.Fatalf("%d bytes, killed at operation %d: the blob: %v, equal %v", size, n, err, slices.Equal(got, b))
			}
			if died == nil {
				break
			}
		}
		t.Logf("%d bytes: %d starts", size, points)
	}
}
