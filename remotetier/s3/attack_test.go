package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/remotetier/s3/s3test"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

const shard = "llama/7b/000000001200-000003/rank-00000.safetensors"

// quick are options with pauses for a test.
func quick() bucket.Options { return bucket.Options{Pause: time.Millisecond} }

func tierOf(targets ...remotetier.Target) *remotetier.Tier {
	var infos []remotetier.TargetInfo
	for _, t := range targets {
		infos = append(infos, remotetier.TargetInfo{Target: t})
	}
	return remotetier.New(infos, remotetier.Options{})
}

func random(n int, seed byte) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(b)
	return b
}

func mustPut(t *testing.T, tier *remotetier.Tier, blob string, b []byte) catalog.Place {
	t.Helper()
	p, err := tier.Put(t.Context(), blob, bytes.NewReader(b), stripe.Layout{K: 1})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func object(t *testing.T, b *bucket.Bucket, name string) []byte {
	t.Helper()
	i, err := b.Stat(t.Context(), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	p := make([]byte, i.Size)
	if err = errors.Join(err, b.Get(t.Context(), name, p, 0)); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestPlainObjects: a shard of several parts, and a record that is replaced,
// are what any tool can read.
func TestPlainObjects(t *testing.T) {
	srv := s3test.Start(t)
	b := srv.Open(t, "plain", nil)
	tg := open(t, srv, "plain", s3.Options{Trace: func(err error) { t.Error(err) }})
	tier := tierOf(tg)
	want := random(2*bucket.MinPart+12345, 1)
	place := mustPut(t, tier, shard, want)
	if !bytes.Equal(object(t, b, shard), want) {
		t.Error("the object is not the shard")
	}
	if err := tier.Verify(t.Context(), place); err != nil {
		t.Error(err)
	}
	again := mustPut(t, tier, shard, want) // as when the record of the first was not made
	if err := tier.Remove(t.Context(), shard, func(g uint64) bool { return g == again.Generation }); err != nil {
		t.Fatal(err)
	}
	if err := tier.Verify(t.Context(), again); err != nil || !bytes.Equal(object(t, b, shard), want) {
		t.Errorf("the second generation: %v; the object is the shard: %v", err, bytes.Equal(object(t, b, shard), want))
	}
	for i := range 4 {
		text := strings.Repeat(fmt.Sprint("record ", i), i+1)
		if _, err := tier.PutSmall(t.Context(), "llama/run.json", []byte(text), 1); err != nil {
			t.Fatal(err)
		}
		got, _, err := tier.GetSmall(t.Context(), "llama/run.json")
		if err != nil || string(got) != text || string(object(t, b, "llama/run.json")) != text {
			t.Errorf("record %d: %q, %v; the object is %q", i, got, err, object(t, b, "llama/run.json"))
		}
	}
	if err := errors.Join(tier.Remove(t.Context(), shard, nil), tier.Remove(t.Context(), "llama/run.json", nil)); err != nil {
		t.Fatal(err)
	}
	for o, err := range b.List(t.Context(), "") {
		if err != nil || o.Name != ".ckptd/target.id" {
			t.Errorf("left: %s, %v", o.Name, err)
		}
	}
}

// TestPromise3SomebodysObject: at a blob's name, before and after.
func TestPromise3SomebodysObject(t *testing.T) {
	srv := s3test.Start(t)
	b := srv.Open(t, "shared", nil)
	tier := tierOf(open(t, srv, "shared", s3.Options{}))
	if err := b.Put(t.Context(), "run/a", []byte("theirs"), nil); err != nil {
		t.Fatal(err)
	}
	first, second := mustPut(t, tier, "run/a", random(10_000, 1)), mustPut(t, tier, "run/a", random(9_000, 2))
	for _, p := range []catalog.Place{first, second} {
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	if err := tier.Remove(t.Context(), "run/a", nil); err != nil {
		t.Fatal(err)
	}
	if got := object(t, b, "run/a"); string(got) != "theirs" {
		t.Errorf("somebody's object is %q", got)
	}
	mine := mustPut(t, tier, "run/b", random(10_000, 3))
	if err := b.Put(t.Context(), "run/b", random(10_000, 4), nil); err != nil { // over ours
		t.Fatal(err)
	}
	if err := tier.Verify(t.Context(), mine); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("Verify of what was written over = %v, want ErrCorrupt", err)
	}
	if err := tier.Remove(t.Context(), "run/b", nil); err != nil {
		t.Fatal(err)
	}
	if got := object(t, b, "run/b"); !bytes.Equal(got, random(10_000, 4)) {
		t.Error("an object that took the place of ours was removed")
	}
}

// TestDamage: what was done to the objects of a column is seen, and a repair in
// its place mends it. The server keeps objects as files, which can be reached.
func TestDamage(t *testing.T) {
	srv := s3test.Start(t)
	want := random(160_000, 5)
	flip := func(at int64) func(*os.File) error {
		return func(f *os.File) error {
			var p [1]byte
			_, err := f.ReadAt(p[:], at)
			p[0] ^= 0x40
			_, werr := f.WriteAt(p[:], at)
			return errors.Join(err, werr)
		}
	}
	cut := func(n int64) func(*os.File) error { return func(f *os.File) error { return f.Truncate(n) } }
	for i, c := range []struct {
		what string
		side bool
		do   func(*os.File) error
	}{
		{"data flipped", false, flip(77_777)}, {"data cut", false, cut(159_999)}, {"data empty", false, cut(0)}, {"data gone", false, nil},
		{"sidecar's page flipped", true, flip(30)}, {"sidecar's header", true, flip(4096 + 50)}, {"sidecar's sums", true, flip(8192 + 3)},
		{"sidecar's footer", true, flip(3*4096 + 30)}, {"sidecar cut", true, cut(3 * 4096)}, {"sidecar empty", true, cut(0)},
	} {
		t.Run(c.what, func(t *testing.T) {
			prefix := fmt.Sprint("damage", i)
			tg := open(t, srv, prefix, s3.Options{})
			tier := tierOf(tg)
			place := mustPut(t, tier, shard, want)
			key := remotetier.Key{Blob: shard, Generation: place.Generation}
			r, err := tg.Open(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			good := vfs.AlignedBuffer(int(r.Size()))
			if n, err := r.ReadAt(t.Context(), good, 0); n != len(good) {
				t.Fatal(err)
			}
			name := filepath.Join(srv.Dir, srv.Bucket, prefix, shard)
			if c.side {
				name = filepath.Join(filepath.Dir(name), plain.SidecarName(key))
			}
			if c.do == nil {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			} else {
				f, err := os.OpenFile(name, os.O_RDWR, 0)
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(c.do(f), f.Close()); err != nil {
					t.Fatal(err)
				}
			}
			if err := tier.Verify(t.Context(), place); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("Verify = %v, want ErrCorrupt", err)
			}
			w, err := tg.Create(t.Context(), key, int64(len(good)), remotetier.CreateReplace)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(w.Write(t.Context(), good), w.Commit(t.Context()), w.Close()); err != nil {
				t.Fatal(err)
			}
			if err := tier.Verify(t.Context(), place); err != nil {
				t.Errorf("after the repair: %v", err)
			}
			if err := tier.Remove(t.Context(), shard, nil); err != nil {
				t.Fatal(err)
			}
			if _, err := tg.Open(t.Context(), key); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("Open of what was removed = %v", err)
			}
		})
	}
}

// story is what is done to a bucket: a shard of two parts, a record replaced, a
// shard once more, a removal.
func story(ctx context.Context, tier *remotetier.Tier, big []byte) (small string, err error) {
	one := stripe.Layout{K: 1}
	first, err := tier.Put(ctx, shard, bytes.NewReader(big), one)
	if err != nil {
		return small, err
	}
	for _, text := range []string{"one", "two, longer"} {
		if _, err := tier.PutSmall(ctx, "llama/run.json", []byte(text), 1); err != nil {
			return small, err
		}
		small = text
	}
	if err := tier.Verify(ctx, first); err != nil {
		return small, err
	}
	second, err := tier.Put(ctx, "llama/b", bytes.NewReader(big[:100_000]), one)
	if err != nil {
		return small, err
	}
	return small, errors.Join(tier.Verify(ctx, second), tier.Remove(ctx, "llama/b", nil))
}

// TestFaultsOnTheWay: with every kind of fault again and again the end is as if
// there were none, and nothing is left.
func TestFaultsOnTheWay(t *testing.T) {
	srv := s3test.Start(t)
	p := startProxy(t, srv)
	big := random(bucket.MinPart+777, 6)
	seed := uint64(os.Getpid())
	if s, err := strconv.ParseUint(os.Getenv("CKPTD_SEED"), 10, 64); err == nil {
		seed = s
	}
	for i, f := range []fault{busy, broken, cutUp, cutDown, lost, silent} {
		t.Run([]string{"busy", "broken", "cut on the way up", "cut on the way down", "answer lost", "silent"}[i], func(t *testing.T) {
			prefix := fmt.Sprint("fault", i)
			opt := quick()
			opt.Timeout, opt.Tries = 20*time.Second, 10
			if f == silent {
				opt.Timeout = 500 * time.Millisecond
			}
			rnd := rand.New(rand.NewPCG(seed, uint64(i)))
			big := big
			if f == broken || f == cutDown || f == silent { // which large parts would not make harder
				big = big[:200_000]
			}
			p.breaks(func(n int, r *http.Request) fault {
				switch {
				case f == silent && (r.ContentLength > 1<<20 || r.URL.Query().Has("uploadId") || rnd.IntN(8) > 0): // it takes its time
				case f == cutDown && r.Method != http.MethodGet:
				case rnd.IntN(4) == 0:
					return f
				}
				return fine
			})
			tg, err := s3.Open(t.Context(), p.bucket(t, srv, prefix, opt), "s3", s3.Options{})
			if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			small, err := story(t.Context(), tierOf(tg), big)
			if err != nil || small != "two, longer" {
				t.Fatalf("seed %d, %d requests: %q, %v", seed, p.count(), small, err)
			}
			p.breaks(nil)
			b := srv.Open(t, prefix, nil)
			if !bytes.Equal(object(t, b, shard), big) || string(object(t, b, "llama/run.json")) != small {
				t.Errorf("seed %d: the objects are not what was put", seed)
			}
			for o, err := range b.List(t.Context(), "") {
				base := o.Name[strings.LastIndexByte(o.Name, '/')+1:]
				if _, kind, hidden := plain.Parse(base); err != nil || o.Name != shard && o.Name != "llama/run.json" && o.Name != ".ckptd/target.id" && !(hidden && kind == plain.SidecarKind) {
					t.Errorf("seed %d: left: %s, %v", seed, o.Name, err)
				}
			}
			if n := srv.Uploads(t); n != 0 {
				t.Errorf("seed %d: %d uploads are left", seed, n)
			}
		})
	}
}

// TestServerAway: tries and time are bounded, the class is right, nothing is
// left, and the target works again when the server does.
func TestServerAway(t *testing.T) {
	srv := s3test.Start(t)
	p := startProxy(t, srv)
	opt := bucket.Options{Tries: 5, Pause: time.Millisecond}
	tg, err := s3.Open(t.Context(), p.bucket(t, srv, "away", opt), "s3", s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tier := tierOf(tg)
	p.breaks(func(int, *http.Request) fault { return busy })
	if _, err := tier.Put(t.Context(), "a", strings.NewReader("x"), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Put = %v, want ErrUnavailable", err)
	}
	if n := p.count(); n < 2 || n > 40 {
		t.Errorf("%d requests to a server that is busy", n)
	}
	for range 30 { // the budget ends, and with it the trying again
		_, _ = tg.Open(t.Context(), remotetier.Key{Blob: "a", Generation: 1})
	}
	p.breaks(func(int, *http.Request) fault { return busy })
	if _, err := tg.Open(t.Context(), remotetier.Key{Blob: "a", Generation: 1}); !errors.Is(err, catalog.ErrUnavailable) || p.count() != 1 {
		t.Errorf("without a budget: %v after %d requests, want one", err, p.count())
	}
	p.breaks(func(int, *http.Request) fault { return refused })
	if _, err := tg.Open(t.Context(), remotetier.Key{Blob: "a", Generation: 1}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "AWS_ACCESS_KEY_ID") || strings.Contains(err.Error(), s3test.SecretKey) || p.count() != 1 {
		t.Errorf("refused: %v after %d requests, want ErrInvalid that says where credentials are looked for", err, p.count())
	}
	p.breaks(nil)
	mustPut(t, tier, "a", []byte("x"))

	p.breaks(func(int, *http.Request) fault { return busy })
	late, err := s3.Open(t.Context(), p.bucket(t, srv, "late", opt), "late", s3.Options{})
	if err != nil {
		t.Fatalf("Open of a server that is away = %v, want a target that waits for it", err)
	}
	if _, err := late.Space(t.Context()); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Space = %v, want ErrUnavailable", err)
	}
	p.breaks(nil)
	mustPut(t, tierOf(late), "a", []byte("x"))
}

// TestCancel: a Put that is given up in the middle of an upload leaves nothing.
func TestCancel(t *testing.T) {
	srv := s3test.Start(t)
	p := startProxy(t, srv)
	tg, err := s3.Open(t.Context(), p.bucket(t, srv, "cancel", quick()), "s3", s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p.breaks(func(_ int, r *http.Request) fault {
		if r.URL.Query().Get("partNumber") == "2" {
			cancel()
		}
		return fine
	})
	if _, err := tierOf(tg).Put(ctx, shard, bytes.NewReader(random(3*bucket.MinPart, 7)), stripe.Layout{K: 1}); !errors.Is(err, context.Canceled) {
		t.Errorf("Put = %v, want context.Canceled", err)
	}
	p.breaks(nil)
	if n := srv.Uploads(t); n != 0 {
		t.Errorf("%d uploads are left", n)
	}
	for e, err := range tg.List(t.Context(), "") {
		t.Errorf("List gives %v, %v", e, err)
	}
}

// TestPromise1DiesAtEveryRequest: the process is gone from the n-th request on.
// Another finds the old or the new, and clears away the rest when it is stale.
func TestPromise1DiesAtEveryRequest(t *testing.T) {
	srv := s3test.Start(t)
	p := startProxy(t, srv)
	one := stripe.Layout{K: 1, Unit: 65536}
	b := random(70_000, 8)
	points := 0
	for n := 0; ; n++ {
		prefix := fmt.Sprint("dies", n)
		opt := bucket.Options{Tries: 1}
		p.breaks(nil)
		tg, err := s3.Open(t.Context(), p.bucket(t, srv, prefix, opt), "s3", s3.Options{})
		if err != nil {
			t.Fatal(err)
		}
		tier := tierOf(tg)
		if _, err := tier.PutSmall(t.Context(), "run/set.json", []byte("one"), 1); err != nil {
			t.Fatal(err)
		}
		p.breaks(func(i int, _ *http.Request) fault {
			switch {
			case i == n && n%2 == 1:
				return lost
			case i >= n:
				return broken
			}
			return fine
		})
		place, perr := tier.Put(t.Context(), "run/a", bytes.NewReader(b), one)
		var serr, rerr error
		if perr == nil {
			if _, serr = tier.PutSmall(t.Context(), "run/set.json", []byte("two, longer"), 1); serr == nil {
				rerr = tier.Remove(t.Context(), "run/a", nil)
			}
		}
		over := p.count() <= n
		p.breaks(nil)
		for _, stale := range []time.Duration{0, time.Nanosecond} {
			other, err := s3.Open(t.Context(), srv.Open(t, prefix, nil), "s3", s3.Options{Stale: stale, Trace: func(err error) { t.Errorf("request %d: %v", n, err) }})
			if err != nil {
				t.Fatal(err)
			}
			tier := tierOf(other)
			got, _, err := tier.GetSmall(t.Context(), "run/set.json")
			if s := string(got); err != nil || s != "two, longer" && (s != "one" || perr == nil && serr == nil) {
				t.Errorf("request %d: the record is %q, %v", n, s, err)
			}
			if perr == nil && serr != nil { // not being removed
				if err := tier.Verify(t.Context(), place); err != nil {
					t.Errorf("request %d: what was acknowledged: %v", n, err)
				}
			}
			columns := map[string]int{}
			for f, err := range tier.Scan(t.Context(), "") {
				if err != nil {
					t.Errorf("request %d: scan: %v", n, err)
				}
				columns[f.Place.Blob]++
			}
			if rerr == nil && perr == nil && serr == nil && columns["run/a"] > 0 {
				t.Errorf("request %d: what was removed is there", n)
			}
			if stale == 0 {
				continue
			}
			raw := srv.Open(t, prefix, nil)
			for o, err := range raw.List(t.Context(), "") {
				_, base := plain.Split(o.Name)
				key, kind, hidden := plain.Parse(base)
				if err != nil || strings.HasPrefix(o.Name, ".ckptd/notes/") || !hidden && columns[o.Name] == 0 && o.Name != ".ckptd/target.id" || hidden && kind == plain.DataKind && columns["run/"+key.Blob] == 0 {
					t.Errorf("request %d: nobody owns %s, %v", n, o.Name, err)
				}
			}
			if got := object(t, raw, "run/set.json"); columns["run/set.json"] == 1 && !bytes.Equal(got, mustSmall(t, tier)) {
				t.Errorf("request %d: the record's object is %q", n, got)
			}
		}
		if t.Failed() {
			return
		}
		if over {
			break
		}
		points++
	}
	t.Logf("%d requests failed in turn", points)
}

func mustSmall(t *testing.T, tier *remotetier.Tier) []byte {
	t.Helper()
	b, _, err := tier.GetSmall(t.Context(), "run/set.json")
	if err != nil {
		t.Error(err)
	}
	return b
}

// TestStaleUploads: those of our names, when they are old.
func TestStaleUploads(t *testing.T) {
	srv := s3test.Start(t)
	b := srv.Open(t, "stale", nil)
	for _, name := range []string{shard, "run/.x.g0000000000000001.c00.0000000f.data", "not a blob of ours"} {
		if _, err := b.Upload(t.Context(), name, 100<<20, nil); err != nil {
			t.Fatal(err)
		}
	}
	open(t, srv, "stale", s3.Options{})
	if n := srv.Uploads(t); n != 3 {
		t.Errorf("%d uploads, want the three that are young", n)
	}
	open(t, srv, "stale", s3.Options{Stale: time.Nanosecond})
	if n := srv.Uploads(t); n != 1 {
		t.Errorf("%d uploads, want the one that is not ours", n)
	}
}

// TestOneName: a bucket has one name for ever, which all nodes agree on.
func TestOneName(t *testing.T) {
	srv := s3test.Start(t)
	var wg sync.WaitGroup
	for range 4 {
		b := srv.Open(t, "named", nil)
		wg.Go(func() {
			if _, err := s3.Open(t.Context(), b, "one", s3.Options{}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := s3.Open(t.Context(), srv.Open(t, "named", nil), "other", s3.Options{}); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("another name got %v, want ErrConflict", err)
	}
	spec := srv.Open(t, "named", nil).Spec()
	spec.Bucket = "no-such-bucket"
	none, err := bucket.Open(spec, quick())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s3.Open(t.Context(), none, "one", s3.Options{}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "make the bucket first") {
		t.Errorf("no bucket: %v, want ErrInvalid that says what to do", err)
	}
}

// TestQuota: what does not fit is refused before a byte moves.
func TestQuota(t *testing.T) {
	srv := s3test.Start(t)
	spec := srv.Open(t, "quota", nil).Spec()
	spec.Quota = 200_000
	b, err := bucket.Open(spec, quick())
	if err != nil {
		t.Fatal(err)
	}
	tg, err := s3.Open(t.Context(), b, "s3", s3.Options{})
	if err != nil {
		t.Fatal(err)
	}
	tier := tierOf(tg)
	mustPut(t, tier, "a", random(100_000, 1))
	if _, err := tier.Put(t.Context(), "b", bytes.NewReader(random(100_000, 2)), stripe.Layout{K: 1}); !errors.Is(err, catalog.ErrNoSpace) {
		t.Errorf("Put = %v, want ErrNoSpace", err)
	}
	if err := tier.Remove(t.Context(), "a", nil); err != nil {
		t.Fatal(err)
	}
	mustPut(t, tier, "b", random(100_000, 2))
}
