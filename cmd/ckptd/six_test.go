package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// six is a daemon with its catalog inside and targets, 4+2, that join it there.
type six struct {
	t       *testing.T
	d       *daemon
	c       *ckpt.Client
	nats    string
	targets map[string]*targetProcess
	rnd     *rand.Rand
	steps   int64 // saved
}

// sixSizes are the shards of a set, by rank, in bytes of their tensor.
var sixSizes = []int{3<<20 + 123, 100_000, 6 << 20}

const sixRun = "six"

func startSix(t *testing.T, seed uint64, flags ...string) *six {
	t.Helper()
	s := &six{t: t, nats: freePort(t, "127.0.0.1:0"), targets: map[string]*targetProcess{}, rnd: rand.New(rand.NewPCG(seed, 6))}
	s.d = newDaemon(t, "n1", append([]string{"--nats-listen", s.nats, "--remote", "catalog", "--layout", "4+2", "--unit", "64KiB",
		"--target-probe", "300ms", "--target-down", "1500ms"}, flags...)...).start()
	s.c = s.d.dial()
	for i := range 6 {
		s.join(i)
	}
	s.allUp()
	if _, err := s.c.Attach(t.Context(), sixRun, "launch", len(sixSizes)); err != nil {
		t.Fatal(err)
	}
	return s
}

// join starts a new, empty target.
func (s *six) join(i int) {
	s.t.Helper()
	name := fmt.Sprintf("t%d", i)
	s.targets[name] = startTarget(s.t, name, "--nats", "nats://"+s.nats, "--heartbeat", "300ms", "--domain", fmt.Sprintf("rack%d", i))
}

// allUp waits until the daemon uses every target that lives.
func (s *six) allUp() {
	s.t.Helper()
	eventually(s.t, "all targets are up", func() error {
		m, err := s.c.Targets(s.t.Context())
		if err != nil {
			return err
		}
		for name, p := range s.targets {
			i := slices.IndexFunc(m.Targets, func(t wire.Target) bool { return t.Name == name })
			if i < 0 || (m.Targets[i].State == catalog.TargetUp && m.Targets[i].Trouble == "") != (p.cmd != nil) {
				return fmt.Errorf("%s lives = %v: %+v", name, p.cmd != nil, m.Targets)
			}
		}
		return nil
	})
}

// pair chooses two targets that live.
func (s *six) pair() (pair []string) {
	for name, p := range s.targets {
		if p.cmd != nil {
			pair = append(pair, name)
		}
	}
	slices.Sort(pair)
	s.rnd.Shuffle(len(pair), func(i, j int) { pair[i], pair[j] = pair[j], pair[i] })
	return pair[:2]
}

// kill kills both at once.
func (s *six) kill(pair []string) {
	var wg sync.WaitGroup
	for _, name := range pair {
		wg.Go(s.targets[name].kill)
	}
	wg.Wait()
}

// start starts both again, and waits until they can be read from. They may be
// suspect for a while: who comes and goes is not trusted at once.
func (s *six) start(pair []string) {
	s.t.Helper()
	for _, name := range pair {
		s.targets[name].start()
	}
	eventually(s.t, "both are back", func() error {
		res, err := s.c.Verify(s.t.Context(), sixRun+"@1", true, nil)
		if err == nil && len(res.Bad) > 0 {
			err = errors.New(res.Bad[0].Err)
		}
		return err
	})
}

// anew starts the daemon again. It has met no failure of a target then: one
// that was killed while it was written to would get no columns for half a
// minute, and others two, and of those not any two may die.
func (s *six) anew() {
	s.t.Helper()
	s.d.kill()
	s.c = s.d.start().dial()
	eventually(s.t, "the targets that live are in use", func() error {
		m, err := s.c.Targets(s.t.Context())
		if err != nil {
			return err
		}
		for _, row := range m.Targets {
			if p := s.targets[row.Name]; p != nil && p.cmd != nil && row.Trouble != "" {
				return fmt.Errorf("%s: %s", row.Name, row.Trouble)
			}
		}
		return nil
	})
}

// save saves the next step, and returns when it is sealed.
func (s *six) save() (ref string) {
	s.t.Helper()
	s.steps++
	var g errgroup.Group
	for rank, size := range sixSizes {
		g.Go(func() error {
			_, err := save(s.t.Context(), s.c, sixRun, s.steps, 1, rank, len(sixSizes), size)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		s.t.Fatalf("save step %d: %v", s.steps, err)
	}
	return fmt.Sprintf("%s@%d", sixRun, s.steps)
}

// places are where the shards of a step are, by rank.
func (s *six) places(ref string) (all []*catalog.Place) {
	s.t.Helper()
	set, err := s.c.Set(s.t.Context(), ref, false)
	if err != nil {
		s.t.Fatal(err)
	}
	for _, shard := range set.Shards {
		all = append(all, shard.Remote)
	}
	return all
}

// killDuringRestore kills two while a set is read from the targets over and
// over: before, in the middle, and after.
func (s *six) killDuringRestore(ref string) {
	s.t.Helper()
	pair := s.pair()
	over := make(chan struct{})
	var reads sync.WaitGroup
	var loads int
	begun := make(chan struct{}, 1000)
	reads.Go(func() {
		for last := false; !last; loads++ {
			select {
			case <-over:
				last = true // one more, that begins with both dead
			default:
			}
			begun <- struct{}{}
			if err := load(s.t.Context(), s.c, ref, "remote"); err != nil {
				s.t.Errorf("%v killed: load %d of %s: %v", pair, loads, ref, err)
				return
			}
		}
	})
	<-begun
	<-begun                                                                 // the second one
	<-time.After(time.Duration(s.rnd.Int64N(int64(30 * time.Millisecond)))) // a random moment of it
	s.kill(pair)
	close(over)
	reads.Wait()
	s.t.Logf("%v killed during a restore of %s: %d times every byte was right", pair, ref, loads)
	s.start(pair)
}

// killDuringDrain kills two when the columns of a new step have begun to
// arrive. The set becomes remote without them.
func (s *six) killDuringDrain() (ref string, pair []string) {
	s.t.Helper()
	pair = s.pair()
	ref = s.save()
	eventually(s.t, "columns arrive", func() error {
		for _, p := range s.targets {
			if staged, err := os.ReadDir(filepath.Join(p.dir, "staging")); err == nil && len(staged) > 0 {
				return nil
			}
		}
		if set, err := s.c.Set(s.t.Context(), ref, false); err == nil && set.Level >= catalog.Remote {
			return nil // it was too fast
		}
		return errors.New("none yet")
	})
	<-time.After(time.Duration(s.rnd.Int64N(int64(20 * time.Millisecond)))) // a random moment
	s.kill(pair)
	mustWait(s.t, s.c, ref, catalog.Remote)
	mustLoad(s.t, s.c, ref)
	mustLoad(s.t, s.c, ref, "remote")
	s.t.Logf("%v killed during the drain of %s", pair, ref)
	return ref, pair
}

// loseOne takes a target that is dead out for ever, and its disk with it.
func (s *six) loseOne(name string) {
	s.t.Helper()
	if err := os.RemoveAll(s.targets[name].dir); err != nil {
		s.t.Fatal(err)
	}
	delete(s.targets, name)
}

// damage flips a byte in one column of a set and takes another away, of two
// shards, on targets that live.
func (s *six) damage(ref string) {
	s.t.Helper()
	for rank, hurt := range []func(path string) error{
		func(path string) error { flip(s.t, path, 4096+s.rnd.Int64N(10_000)); return nil },
		os.Remove,
	} {
		place := s.places(ref)[rank]
		for _, col := range s.rnd.Perm(len(place.Targets)) {
			p := s.targets[place.Targets[col]]
			if p == nil {
				continue
			}
			path := filepath.Join(p.dir, "columns", filepath.FromSlash(place.Blob), fmt.Sprintf("g%016x.c%02d.col", place.Generation, col))
			if err := hurt(path); err != nil {
				s.t.Fatal(err)
			}
			break
		}
	}
}

// recover waits until a repair, which nobody has ordered, has brought
// redundancy back, while scrubs run and sets are read.
func (s *six) recover(lost string) {
	s.t.Helper()
	ctx, cancel := context.WithCancel(s.t.Context())
	var beside sync.WaitGroup
	var scrubs atomic.Int64
	var bad, mended, loads int64
	beside.Go(func() {
		for ; ctx.Err() == nil; scrubs.Add(1) {
			res, err := s.c.Scrub(ctx, "", true, nil)
			if err != nil {
				if ctx.Err() == nil {
					s.t.Errorf("scrub: %v", err)
				}
				return
			}
			bad, mended = bad+res.Bad, mended+res.Mended
		}
	})
	beside.Go(func() {
		for ; ctx.Err() == nil; loads++ {
			ref := fmt.Sprintf("%s@%d", sixRun, 1+loads%s.steps)
			if err := load(ctx, s.c, ref, "remote"); err != nil && ctx.Err() == nil {
				s.t.Errorf("load %s during the repair: %v", ref, err)
				return
			}
			select { // restores without a pause would leave the others their floor
			case <-time.After(200 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	})
	from := time.Now()
	eventually(s.t, "redundancy is back", func() error {
		for step := range s.steps {
			for _, p := range s.places(fmt.Sprintf("%s@%d", sixRun, step+1)) {
				if slices.Contains(p.Targets, lost) {
					return fmt.Errorf("%s is on %v", p.Blob, p.Targets)
				}
			}
		}
		if scrubs.Load() == 0 {
			return errors.New("and no scrub has ended beside it")
		}
		return nil
	})
	cancel()
	beside.Wait()
	s.t.Logf("nothing was on %s any more after %v; beside that %d scrubs found %d bad columns and mended %d, and %d times a set was read", lost, time.Since(from), scrubs.Load(), bad, mended, loads)
	eventually(s.t, "a scrub finds nothing", func() error {
		res, err := s.c.Scrub(s.t.Context(), "", true, nil)
		if err == nil && (res.Bad > 0 || res.Extra > 0 || len(res.Left) > 0 || res.Columns == 0) {
			err = fmt.Errorf("it found %+v", res)
		}
		return err
	})
}

// TestSixTargets: the story of a cluster of six targets, 4+2. Sets are saved;
// any two targets are killed during restores and during drains, and every byte
// is right. One of them is lost with its disk, columns of others are damaged,
// a new, empty target joins, and a repair brings redundancy back while scrubs
// run. The end is read from the disks, column by column, by a reader that knows
// only the format.
func TestSixTargets(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	if v := os.Getenv("CKPTD_CRASH_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (CKPTD_CRASH_SEED)", seed)
	s := startSix(t, seed, "--repair-after", "1s", "--scrub-rate", "0", "--scrub-grace", "100ms")
	first := s.save()
	mustWait(t, s.c, first, catalog.Verified)
	for rank, p := range s.places(first) {
		if n := len(slices.Compact(slices.Sorted(slices.Values(p.Targets)))); p.Layout != "4+2" || n != 6 {
			t.Errorf("rank %d is on %v as %s, want six targets", rank, p.Targets, p.Layout)
		}
	}
	for range 4 {
		s.killDuringRestore(first)
	}
	for range 2 {
		s.anew()
		ref, pair := s.killDuringDrain()
		s.start(pair)
		mustWait(t, s.c, ref, catalog.Verified)
	}
	s.anew()
	ref, pair := s.killDuringDrain()
	lost := pair[0]
	s.loseOne(lost)
	s.targets[pair[1]].start()
	s.join(6)
	s.anew()
	s.damage(first)
	s.recover(lost)
	defer func() {
		if t.Failed() {
			t.Log(why(t, s.c, ref), s.d.grep("duty failed", "verif", "mend"))
		}
	}()
	mustWait(t, s.c, ref, catalog.Verified)
	s.mustBeWhole()
	s.killDuringRestore(first)
	s.mustBeWhole()
}

// mustBeWhole reads every target's disk: the columns of each shard are where
// the catalog says, all of them, whole, and give the bytes that this node has.
func (s *six) mustBeWhole() {
	s.t.Helper()
	dirs := map[string]string{}
	for name, p := range s.targets {
		if p.cmd != nil {
			dirs[name] = p.dir
		}
	}
	var found map[string][]*formatColumn
	eventually(s.t, "nothing is being written any more, and records are whole", func() (err error) {
		if found, err = findFormat(dirs); err != nil {
			return err
		}
		return onlyFormat(found)
	})
	columns := 0
	for step := range s.steps {
		ref := fmt.Sprintf("%s@%d", sixRun, step+1)
		for rank, place := range s.places(ref) {
			want, err := os.ReadFile(shardFile(s.t, s.d, ref+"#1", rank))
			if err != nil {
				s.t.Fatal(err)
			}
			var cols []*formatColumn
			for _, c := range found[place.Blob] {
				name := filepath.Base(c.path[:strings.Index(c.path, "/columns/")])
				switch {
				case c.generation == place.Generation && place.Targets[c.col] == name:
					cols = append(cols, c)
				default:
					s.t.Errorf("%s rank %d: %s has column %d of generation %d, which the catalog does not know: %+v", ref, rank, name, c.col, c.generation, place)
				}
			}
			if len(cols) == 0 {
				s.t.Errorf("%s rank %d has no columns: %+v", ref, rank, place)
				continue
			}
			if got, err := joinFormat(cols, s.rnd); err != nil || !bytes.Equal(got, want) {
				s.t.Errorf("%s rank %d: equal = %v, %v", ref, rank, bytes.Equal(got, want), err)
			}
			columns += len(cols)
		}
	}
	s.t.Logf("%d columns of %d sets are whole", columns, s.steps)
}
