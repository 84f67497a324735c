package localtier

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"math/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
)

// openOS opens a tier in a folder of the real file system.
func openOS(t testing.TB, opt Options) (*Tier, string) {
	t.Helper()
	if len(opt.Dirs) == 0 {
		opt.Dirs = []string{t.TempDir()}
	}
	tier, err := Open(vfs.OS, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tier.Close() })
	return tier, opt.Dirs[0]
}

const shardName = "llama/7b/000000001200-000003/rank-00003.safetensors"

func TestIngestInAnyOrder(t *testing.T) {
	for _, size := range []int{0, 1, 4095, 4096, mib, mib + 1, 9*mib + 12345} {
		tier, dir := openOS(t, Options{})
		b := pattern(int64(size), size)
		in, err := tier.Reserve(t.Context(), shardName, int64(size))
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, i := range rand.New(rand.NewSource(1)).Perm(catalog.Blocks(int64(size))) {
			wg.Go(func() {
				p := b[i*mib : min(size, (i+1)*mib)]
				if i == 1 { // from any address, too
					p = slices.Clone(append([]byte{0}, p...))[1:]
				}
				if err := in.WriteAt(p, int64(i)*mib); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if _, err := tier.Open(shardName); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("visible before Commit: %v", err)
		}
		seal, err := in.Commit(t.Context(), []byte("{}"))
		if err != nil {
			t.Fatal(err)
		}
		if in.Close() != nil {
			t.Error("Close after Commit")
		}
		onDisk, err := os.ReadFile(filepath.Join(dir, "shards", shardName))
		if err != nil || !bytes.Equal(onDisk, b) {
			t.Fatalf("size %d: the file has %d bytes, %v", size, len(onDisk), err)
		}
		info, err := tier.Stat(shardName)
		if err != nil || info.Root != seal.Root() || info.Size != int64(size) {
			t.Errorf("Stat = %+v, %v", info, err)
		}
		got, err := tier.Get(t.Context(), shardName)
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("Get: %d bytes, %v", len(got), err)
		}
		if s, err := tier.Seal(shardName); err != nil || string(s.Info) != "{}" || s.Root() != seal.Root() {
			t.Errorf("Seal = %+v, %v", s, err)
		}
		readRanges(t, tier, b)
		if err := tier.Remove(t.Context(), shardName); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadDir(filepath.Join(dir, "shards")); len(left) != 0 {
			t.Errorf("Remove left %v", left)
		}
		if u := tier.Usage(); u.Used != 0 || u.Reserved != 0 {
			t.Errorf("Usage = %+v", u)
		}
	}
}

func readRanges(t *testing.T, tier *Tier, want []byte) {
	t.Helper()
	b, err := tier.Open(shardName)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	r := rand.New(rand.NewSource(2))
	for range 30 {
		off := r.Intn(len(want) + 1)
		p := make([]byte, r.Intn(len(want)+10))
		for name, src := range map[string]io.ReaderAt{"ReadAt": b, "Raw": b.Raw()} {
			n, err := src.ReadAt(p, int64(off))
			if n != min(len(p), len(want)-off) || !bytes.Equal(p[:n], want[off:off+n]) || n < len(p) && err != io.EOF || n == len(p) && err != nil && err != io.EOF {
				t.Fatalf("%s(%d bytes at %d) of %d = %d, %v", name, len(p), off, len(want), n, err)
			}
		}
	}
}

func TestPromise3CorruptBytesAreNotReturned(t *testing.T) {
	tier, dir := openOS(t, Options{})
	b := pattern(1, 9*mib+100)
	if err := ingest(t.Context(), tier, shardName, b); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "shards", shardName)
	for _, at := range []int{0, 3*mib + 7, 9*mib + 99} {
		f, err := os.OpenFile(file, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{b[at] ^ 1}, int64(at))
		bad := at / mib
		blob, err := tier.Open(shardName)
		if err != nil {
			t.Fatal(err)
		}
		buf := vfs.AlignedBuffer(10 * mib)
		n, err := blob.ReadBlocks(t.Context(), 0, 10, buf)
		if n != bad*mib || !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("ReadBlocks with a bad block %d = %d, %v", bad, n, err)
		}
		if !bytes.Equal(buf[:n], b[:n]) || len(bytes.Trim(buf[n:], "\x00")) != 0 {
			t.Errorf("bytes that failed their check were left in the buffer")
		}
		if n, err := blob.ReadAt(buf[:10], int64(min(at, len(b)-10))); n != 0 || !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("ReadAt in the bad block = %d, %v", n, err)
		}
		if err := tier.Verify(t.Context(), shardName, nil); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("Verify = %v", err)
		}
		if err := tier.VerifyRange(t.Context(), shardName, int64(at), 1); !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("VerifyRange of the bad byte = %v", err)
		}
		if err := tier.VerifyRange(t.Context(), shardName, 5*mib, 2*mib); err != nil {
			t.Errorf("VerifyRange elsewhere = %v", err)
		}
		blob.Close()
		f.WriteAt([]byte{b[at]}, int64(at))
		f.Close()
	}
	os.Truncate(file, 5*mib)
	if err := tier.Verify(t.Context(), shardName, nil); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Verify of a cut file = %v", err)
	}
}

func TestPromise4Admission(t *testing.T) {
	tier, _ := openOS(t, Options{Quota: 10 * mib})
	in, err := tier.Reserve(t.Context(), "a/b", 6*mib)
	if err != nil {
		t.Fatal(err)
	}
	if fi, err := os.Stat(in.Staging()); err != nil || fi.Sys().(*syscall.Stat_t).Blocks*512 < 6*mib {
		t.Errorf("the staging file is not allocated: %v", err)
	}
	_, err = tier.Reserve(t.Context(), "a/c", 5*mib)
	var short *Shortage
	if !errors.Is(err, catalog.ErrNoSpace) || !errors.As(err, &short) || *short != (Shortage{Need: 5 * mib, Free: 4 * mib, Short: mib}) {
		t.Errorf("Reserve over the quota = %v", err)
	}
	if _, err := tier.Reserve(t.Context(), "a/b", mib); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Reserve of a name in use = %v", err)
	}
	if u := tier.Usage(); u.Reserved != 6*mib || u.Free != 4*mib || u.High {
		t.Errorf("Usage = %+v", u)
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(in.Staging()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Close left %v", err)
	}
	if err := ingest(t.Context(), tier, "a/b", pattern(1, 9*mib)); err != nil {
		t.Fatal(err)
	}
	if u := tier.Usage(); !u.High || u.EvictBytes != 9*mib-10*mib*3/4 {
		t.Errorf("Usage = %+v", u)
	}
	if err := ingest(t.Context(), tier, "a/b", nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("an ingest over a blob = %v", err)
	}

	// A full disk is found before bytes move, too.
	full, err := Open(vfstest.New(vfstest.Options{Total: 8 * mib}), Options{Dirs: []string{"/d"}, Quota: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	if _, err = full.Reserve(t.Context(), "a", 9*mib); !errors.As(err, &short) || short.Short < mib || short.Free > 8*mib {
		t.Errorf("Reserve on a full disk = %v", err)
	}
	if u := full.Usage(); u.Reserved != 0 {
		t.Errorf("%d bytes stay reserved", u.Reserved)
	}
}

func TestPromise5OneProcess(t *testing.T) {
	_, dir := openOS(t, Options{})
	_, err := Open(vfs.OS, Options{Dirs: []string{t.TempDir(), dir}})
	if !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), dir) {
		t.Errorf("a second Open = %v", err)
	}
}

func TestHostileNamesAndRanges(t *testing.T) {
	tier, _ := openOS(t, Options{})
	for _, name := range []string{"", "/etc/passwd", "../x", "a/../b", "a//b", "a/", ".hidden", "a/.seal", "a\x00b", "a b", "ä", strings.Repeat("x", 201), strings.Repeat("a/", 20) + "a"} {
		_, e1 := tier.Reserve(t.Context(), name, 1)
		_, e2 := tier.Open(name)
		_, e3 := tier.Get(t.Context(), name)
		_, e4 := tier.Resume(t.Context(), name, tier.stagingName(tier.disks[0]), 1, nil)
		for i, err := range []error{e1, e2, e3, e4, tier.Put(t.Context(), name, nil), tier.Remove(t.Context(), name), tier.Quarantine(t.Context(), name, nil)} {
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%q, method %d: %v, want ErrInvalid", name, i, err)
			}
		}
	}
	for _, size := range []int64{-1, catalog.MaxShardSize + 1} {
		if _, err := tier.Reserve(t.Context(), "a", size); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Reserve of %d bytes = %v", size, err)
		}
	}
	in, err := tier.Reserve(t.Context(), "a", 3*mib+5)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	b := make([]byte, 4*mib)
	for _, w := range []struct{ off, n int }{{1, mib}, {0, 100}, {0, 0}, {-mib, mib}, {3 * mib, 4}, {3 * mib, 6}, {2 * mib, mib + 6}, {4 * mib, mib}} {
		if err := in.WriteAt(b[:w.n], int64(w.off)); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("WriteAt(%d bytes at %d) = %v, want ErrInvalid", w.n, w.off, err)
		}
	}
	if err := in.WriteAt(b[:3*mib+5], 0); err != nil {
		t.Error(err)
	}
	if _, err := in.Commit(t.Context(), make([]byte, catalog.MaxSealInfo+1)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Commit with a huge info = %v", err)
	}
	if _, err := tier.Resume(t.Context(), "b", "/etc/passwd", 1, nil); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Resume elsewhere = %v", err)
	}
}

func TestResumeAfterTheProcessDied(t *testing.T) {
	tier, dir := openOS(t, Options{})
	b := pattern(3, 5*mib+77)
	in, err := tier.Reserve(t.Context(), shardName, int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	crcs := map[int]uint32{}
	for _, i := range []int{1, 3, 5} {
		if err := in.WriteAt(b[i*mib:min(len(b), (i+1)*mib)], int64(i)*mib); err != nil {
			t.Fatal(err)
		}
		crcs[i], _ = in.Block(i)
	}
	stale, err := tier.Reserve(t.Context(), "other", 10)
	if err != nil {
		t.Fatal(err)
	}
	tier.Close() // as if it had died: neither ingest was closed

	tier, _ = openOS(t, Options{Dirs: []string{dir}, Keep: func(s string) bool { return s == in.Staging() }})
	if _, err := os.Stat(stale.Staging()); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a stale ingest was kept")
	}
	again, err := tier.Resume(t.Context(), shardName, in.Staging(), int64(len(b)), func(i int) (uint32, bool) { c, ok := crcs[i]; return c, ok })
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if _, err := again.Commit(t.Context(), nil); !errors.Is(err, catalog.ErrIncomplete) {
		t.Errorf("Commit with blocks missing = %v", err)
	}
	for _, i := range []int{0, 2, 4} {
		if err := again.WriteAt(b[i*mib:(i+1)*mib], int64(i)*mib); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := again.Commit(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := tier.Get(t.Context(), shardName); err != nil || !bytes.Equal(got, b) {
		t.Errorf("Get: %v", err)
	}
}

func TestOneOfTwoDisksFails(t *testing.T) {
	mem := vfstest.New(vfstest.Options{})
	var told []string
	tier, err := Open(mem, Options{Dirs: []string{"/good", "/bad"}, Quota: 1 << 30,
		Trace: Trace{DiskFailed: func(dir string, err error) { told = append(told, dir) }}})
	if err != nil {
		t.Fatal(err)
	}
	mem.OnOp(vfstest.FailOn(func(op, name string) bool { return op == "write" && strings.HasPrefix(name, "/bad/") }, syscall.EIO))
	var good, bad int
	for i := range 10 {
		name := "set/" + string(rune('a'+i))
		switch err := ingest(t.Context(), tier, name, pattern(1, 5000)); {
		case err == nil:
			good++
		case errors.Is(err, syscall.EIO) && strings.Contains(err.Error(), "disk /bad"):
			bad++
		default:
			t.Fatal(err)
		}
	}
	if bad != 1 || good != 9 || !slices.Equal(told, []string{"/bad"}) {
		t.Errorf("%d failed, %d worked, told of %v; want one failure, then the good disk only", bad, good, told)
	}
}

func TestQuarantineIsBoundedAndKept(t *testing.T) {
	var told []string
	tier, dir := openOS(t, Options{Quota: 100 * mib, Quarantine: 25000, Trace: Trace{Quarantined: func(name string, _ error) { told = append(told, name) }}})
	for _, name := range []string{"a/1", "a/2", "a/3"} {
		if err := ingest(t.Context(), tier, name, pattern(1, 10000)); err != nil {
			t.Fatal(err)
		}
		if err := tier.Quarantine(t.Context(), name, catalog.ErrCorrupt); err != nil {
			t.Fatal(err)
		}
		if _, err := tier.Stat(name); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still visible: %v", name, err)
		}
	}
	kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", "*-[123]"))
	if len(kept) != 2 || !strings.HasSuffix(kept[0], "-2") || tier.Usage().Quarantined != 20000 || len(told) != 3 {
		t.Errorf("kept %v, %+v, told %v", kept, tier.Usage(), told)
	}
	// A seal that rotted is never what a crash leaves: its blob is put aside, not removed.
	if err := ingest(t.Context(), tier, "a/4", pattern(1, 1000)); err != nil {
		t.Fatal(err)
	}
	tier.Close()
	seal := filepath.Join(dir, "shards", "a", ".4.seal")
	b, err := os.ReadFile(seal)
	if err != nil {
		t.Fatal(err)
	}
	b[50] ^= 1
	os.WriteFile(seal, b, 0o600)
	tier, _ = openOS(t, Options{Dirs: []string{dir}, Quarantine: 25000})
	if _, err := tier.Stat("a/4"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a blob with a bad seal is visible: %v", err)
	}
	if kept, _ := filepath.Glob(filepath.Join(dir, "quarantine", "*-4")); len(kept) != 1 {
		t.Errorf("it was not kept: %v", kept)
	}
}

func TestAnOpenBlobOutlivesItsName(t *testing.T) {
	tier, _ := openOS(t, Options{})
	want := pattern(1, 2*mib+9)
	if err := ingest(t.Context(), tier, shardName, want); err != nil {
		t.Fatal(err)
	}
	b, err := tier.Open(shardName)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if err := tier.Remove(t.Context(), shardName); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := b.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("ReadAt after Remove: %v", err)
	}
	for _, direct := range []bool{false, true} {
		f, err := b.OpenFile(direct)
		if err != nil {
			t.Fatal(err)
		}
		if fi, err := f.Stat(); err != nil || fi.Size() != b.Size() {
			t.Errorf("OpenFile(%v) after Remove: %v", direct, err)
		}
		f.Close()
	}
}

func TestListTakesWholeComponents(t *testing.T) {
	tier, _ := openOS(t, Options{})
	for _, name := range []string{"llama2/a", "llama/b", "llama/a", "x"} {
		if err := tier.Put(t.Context(), name, []byte(name)); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string]string{"": "llama/a llama/b llama2/a x", "llama": "llama/a llama/b", "llama/": "llama/a llama/b", "llama/a": "llama/a", "lla": ""} {
		var got []string
		for info := range tier.List(prefix) {
			got = append(got, info.Name)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("List(%q) = %v, want %s", prefix, got, want)
		}
	}
}

func TestManyAtOnce(t *testing.T) {
	tier, _ := openOS(t, Options{Dirs: []string{t.TempDir(), t.TempDir()}})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			mine := "set/" + string(rune('a'+g))
			for i := range 6 {
				b := pattern(int64(g*100+i), 3000+g)
				err := errors.Join(ingest(ctx, tier, mine, b), tier.Put(ctx, "set/shared", b))
				if got, e := tier.Get(ctx, mine); err != nil || e != nil || !bytes.Equal(got, b) {
					t.Error(err, e)
				}
				if _, err := tier.Get(ctx, "set/shared"); err != nil {
					t.Error(err)
				}
				if err := tier.Remove(ctx, mine); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if u := tier.Usage(); u.Reserved != 0 || u.Used < 3000 || u.Used > 3008 {
		t.Errorf("Usage = %+v", u)
	}
}

func TestPlanEvict(t *testing.T) {
	day := func(n int) time.Time { return time.Unix(int64(n)*86400, 0) }
	cands := []Candidate{
		{Name: "new", Size: 10, LastUse: day(9), Safe: true}, {Name: "old", Size: 10, LastUse: day(1), Safe: true},
		{Name: "unsafe", Size: 10, LastUse: day(0)}, {Name: "leased", Size: 10, LastUse: day(2), Safe: true, Leased: true},
		{Name: "tie-b", Size: 10, LastUse: day(5), Safe: true}, {Name: "tie-a", Size: 10, LastUse: day(5), Safe: true},
	}
	for _, c := range []struct {
		need int64
		want string
	}{{0, ""}, {-5, ""}, {1, "old"}, {10, "old"}, {11, "old tie-a"}, {30, "old tie-a tie-b"}, {1000, "old tie-a tie-b new"}} {
		if got := strings.Join(PlanEvict(cands, c.need), " "); got != c.want {
			t.Errorf("PlanEvict(%d) = %q, want %q", c.need, got, c.want)
		}
	}
}
