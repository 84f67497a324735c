package main

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
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

// TestSixTargets: the story of a cluster of six targets, 4+2. Sets are saved;
// any two targets are killed during restores and during drains, and every byte
// is right; the end is read from the disks, column by column, by a reader that
// knows only the format.
func TestSixTargets(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("CKPTD_CRASH_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("seed %d (CKPTD_CRASH_SEED)", seed)
	s := startSix(t, seed)
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
	for range 3 {
		ref, pair := s.killDuringDrain()
		s.start(pair)
		mustWait(t, s.c, ref, catalog.Verified)
	}
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
	eventually(s.t, "nothing is being written any more", func() (err error) {
		found, err = findFormat(dirs)
		return err
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
