package catalog_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
)

// witness keeps every swap that took effect, in order.
type witness struct {
	catalog.Driver
	mu      sync.Mutex
	history []catalog.Record
}

func (w *witness) Swap(ctx context.Context, key string, rev uint64, value []byte) (uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next, err := w.Driver.Swap(ctx, key, rev, value)
	if err == nil {
		w.history = append(w.history, catalog.Record{Key: key, Value: value, Rev: next})
	}
	return next, err
}

// story is what the clients of one run know together.
type story struct {
	t        *testing.T
	seed     uint64
	attached atomic.Int64 // the newest attempt that any Attach has returned
	gone     [4]atomic.Bool
	reads    atomic.Int64
}

// TestStory lets several nodes attach, begin, vote, commit, abort, read and
// prune at once, over a store that fails before and after it did what it was
// asked, and then holds the history of the records to promises 1, 3, 4 and 6.
func TestStory(t *testing.T) {
	seed := rand.Uint64()
	commits, reads, prunes := 0, int64(0), 0
	for n := range uint64(150) {
		w := &witness{Driver: catalogtest.Mem()}
		f := catalogtest.NewFault(w)
		rnd := rand.New(rand.NewPCG(seed, n))
		outcomes := make([]catalogtest.Outcome, 997)
		for i := range outcomes {
			if p := rnd.IntN(10); p < 2 {
				outcomes[i] = []catalogtest.Outcome{catalogtest.FailBefore, catalogtest.FailAfter}[p]
			}
		}
		f.Decide(func(op int, _, _ string) catalogtest.Outcome { return outcomes[op%len(outcomes)] })
		s := &story{t: t, seed: seed}
		var wg sync.WaitGroup
		for client := range 4 {
			r := rand.New(rand.NewPCG(seed, n<<8+uint64(client)))
			wg.Go(func() { s.live(catalog.New(f, f), fmt.Sprintf("n%d", client), r) })
		}
		wg.Wait()
		c, p := s.judge(w.history)
		commits, prunes, reads = commits+c, prunes+p, reads+s.reads.Load()
		if t.Failed() {
			t.Fatalf("seed %d, story %d", seed, n)
		}
	}
	t.Logf("%d commits, %d prunes, %d reads", commits, prunes, reads)
	if commits == 0 || prunes == 0 || reads == 0 {
		t.Error("the stories tell nothing")
	}
}

func (s *story) set(i int) catalog.SetID {
	return catalog.SetID{Run: "r", Step: int64(i % 2), Attempt: 1 + i/2%2}
}

// live does random things as one node.
func (s *story) live(c *catalog.Catalog, node string, r *rand.Rand) {
	ctx := s.t.Context()
	for range 120 {
		i := r.IntN(len(s.gone))
		id := s.set(i)
		var err error
		switch r.IntN(9) {
		case 0:
			var rec catalog.RunRecord
			if rec, err = c.Attach(ctx, "r", fmt.Sprintf("job-%d", r.IntN(3)), t0); err == nil {
				for old := s.attached.Load(); old < int64(rec.Attempt) && !s.attached.CompareAndSwap(old, int64(rec.Attempt)); old = s.attached.Load() {
				}
			}
		case 1, 2:
			newest := s.attached.Load()
			if _, err = c.Begin(ctx, id, 2, nil, t0); err == nil && int64(id.Attempt) < newest {
				s.t.Errorf("%v was begun after attempt %d had attached", id, newest)
			}
		case 3, 4:
			rank := r.IntN(2)
			_, err = c.UpdatePart(ctx, id, node, func(p *catalog.PartRecord) error {
				if slices.ContainsFunc(p.Shards, func(s catalog.PartShard) bool { return s.Rank == rank }) {
					return catalog.ErrSame
				}
				p.Shards = append(p.Shards, part(id, node, rank).Shards...)
				return nil
			})
		case 5:
			var parts []catalog.PartRecord
			if parts, err = c.Parts(ctx, id); err == nil {
				_, err = c.Commit(ctx, id, catalog.Digest{node[1]}, 2, []string{node}, parts, t0)
			}
		case 6:
			if r.IntN(3) == 0 {
				_, err = c.Abort(ctx, id, "tired", t0)
			} else {
				_, err = c.Tombstone(ctx, id, "old", t0)
			}
		case 7:
			err = s.collect(c, i)
		case 8:
			err = s.read(c, i, node)
		}
		if err != nil && catalog.ClassOf(err) == nil {
			s.t.Errorf("%v: an error without class: %v", id, err)
		}
		if errors.Is(err, catalog.ErrCorrupt) || errors.Is(err, catalog.ErrInvalid) && !strings.Contains(err.Error(), "never attached") {
			s.t.Errorf("%v: %v", id, err)
		}
	}
}

// collect removes the bytes of a pruned set, as a node does, and its records.
func (s *story) collect(c *catalog.Catalog, i int) error {
	ctx, id := s.t.Context(), s.set(i)
	rec, err := c.Set(ctx, id)
	if err != nil || rec.State != catalog.Pruned {
		return err
	}
	holders, err := c.Leases(ctx, id, t0)
	if err != nil || len(holders) > 0 {
		return err
	}
	s.gone[i].Store(true)
	return nil
}

// read holds a set for a moment.
func (s *story) read(c *catalog.Catalog, i int, node string) error {
	ctx, id := s.t.Context(), s.set(i)
	if err := c.Lease(ctx, id, node, t0.Add(time.Hour)); err != nil {
		return err
	}
	for range 3 {
		if _, err := c.Set(ctx, id); err != nil && !errors.Is(err, catalog.ErrUnavailable) {
			s.t.Errorf("%v, leased: %v", id, err)
		}
		if s.gone[i].Load() {
			s.t.Errorf("%v: its bytes went while %s held it", id, node)
		}
	}
	s.reads.Add(1)
	return c.Unlease(ctx, id, node)
}

// judge replays the history and holds it to the promises.
func (s *story) judge(history []catalog.Record) (commits, prunes int) {
	sets := make(map[string]catalog.SetRecord)
	durable := make(map[catalog.SetID]map[int]bool)
	var run catalog.RunRecord
	for _, rec := range history {
		kind, _, _ := strings.Cut(rec.Key, ".")
		switch {
		case kind == "run":
			var next catalog.RunRecord
			s.decode(rec, &next)
			if next.Attempt != run.Attempt+1 || next.Launch == run.Launch || slices.Contains(run.Launches, next.Launch) {
				s.t.Errorf("promise 3: attempt %d (%s) follows %d (%s, before %v)", next.Attempt, next.Launch, run.Attempt, run.Launch, run.Launches)
			}
			run = next
		case kind == "part" && rec.Value != nil:
			var p catalog.PartRecord
			s.decode(rec, &p)
			for _, shard := range p.Shards {
				if durable[p.Set] == nil {
					durable[p.Set] = make(map[int]bool)
				}
				durable[p.Set][shard.Rank] = true
			}
		case kind == "set":
			var next catalog.SetRecord
			s.decode(rec, &next)
			was, begun := sets[rec.Key]
			sets[rec.Key] = next
			switch change := string(was.State) + ">" + string(next.State); change {
			case ">writing":
				if begun {
					s.t.Errorf("%v was begun twice", next.SetID)
				}
			case "writing>committed":
				commits++
				if len(durable[next.SetID]) != next.World {
					s.t.Errorf("promise 1: %v was committed with the ranks %v", next.SetID, durable[next.SetID])
				}
			case "committed>pruned":
				prunes++
				fallthrough
			case "committed>committed":
				if next.Manifest != was.Manifest {
					s.t.Errorf("promise 4: the manifest of %v changed", next.SetID)
				}
			case "writing>aborted", "writing>writing":
			default:
				s.t.Errorf("promise 4: %v went %s", next.SetID, change)
			}
			if begun && next.Version != was.Version+1 {
				s.t.Errorf("%v: version %d follows %d", next.SetID, next.Version, was.Version)
			}
		}
	}
	return commits, prunes
}

func (s *story) decode(rec catalog.Record, v any) {
	if err := json.Unmarshal(rec.Value, v); err != nil {
		s.t.Errorf("record %s: %v", rec.Key, err)
	}
}

// A set that was forgotten may be begun again: its name is free.
func TestForgottenNameIsFree(t *testing.T) {
	c, _ := open(t)
	committed(t, c, id)
	must(c.Tombstone(t.Context(), id, "old", t0))(t)
	if err := c.Forget(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	_, err := c.Set(t.Context(), id)
	wantClass(t, "a forgotten set", err, fs.ErrNotExist)
	if s := committed(t, c, id); s.State != catalog.Committed {
		t.Errorf("saved again it is %s", s.State)
	}
}
