package ckptd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// A draft becomes a set in four steps, on every node that has files of it:
//
//  1. freeze: nothing is open for writing, and nothing changes any more; the
//     files are made durable, and read once for their seals;
//  2. promise: the note says which set it is to become, durably;
//  3. decide: the catalog has the set's record, of the newest attempt. Without
//     it a promise is void: the draft thaws and is as it was;
//  4. make: each file becomes a shard, the shards are voted for, and the set is
//     committed by the last vote, as any other.
//
// Whoever dies between two steps finds in note and catalog what to do.

// summing is how far a frozen draft's files have been read.
type summing struct {
	done  *atomic.Int64
	total int64
	ended bool
	err   error
}

// frozen tells how a freeze is going.
type frozen struct {
	Done  int64 `json:"done"` // bytes
	Total int64 `json:"total"`
	Ready bool  `json:"ready"`
}

// participant is a node that takes part in a commit.
type participant interface {
	name() string
	freeze(ctx context.Context, order string) (frozen, error) // again until it is Ready
	promise(ctx context.Context, order string, set draftSet) error
	carryOut(ctx context.Context, order string) error
	thaw(ctx context.Context, order string) error
}

// commitDrafts makes the drafts of a step one set and returns when it is
// committed. Until the set is begun an error leaves the drafts as they were.
func (n *Node) commitDrafts(ctx context.Context, o commitOrder, tell func(wire.Progress)) (catalog.SetRecord, error) {
	rec, decided, err := n.commitAll(ctx, o, tell)
	if err != nil && !decided && wire.ErrorOf(err).Hint == "" {
		err = wire.WithHint(err, "the draft is as it was; `ckpt status` on each node tells of its own")
	}
	return rec, err
}

func (n *Node) commitAll(ctx context.Context, o commitOrder, tell func(wire.Progress)) (rec catalog.SetRecord, decided bool, err error) {
	parts, who, err := n.gatherDrafts(ctx, o)
	if err != nil {
		return rec, decided, err
	}
	world, ranks, err := planDraft(o, parts)
	if err != nil {
		return rec, decided, err
	}
	order := n.cfg.Name + " " + rand.Text()
	defer n.drafts.lead(order)()
	defer func() {
		if decided {
			return
		}
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		for _, p := range who {
			if terr := p.thaw(short, order); terr != nil {
				n.log.Warn("draft not thawed yet", "node", p.name(), "err", terr)
			}
		}
	}()
	if err := freezeAll(ctx, who, order, tell); err != nil {
		return rec, decided, err
	}
	// The files may have changed before they were frozen.
	again, _, err := n.gatherDrafts(ctx, o)
	if err != nil {
		return rec, decided, err
	}
	if !slices.EqualFunc(parts, again, func(a, b draftPart) bool { return a.Node == b.Node && slices.Equal(a.Files, b.Files) }) {
		return rec, false, fmt.Errorf("%w: its files changed while it was committed", catalog.ErrConflict)
	}
	run, err := n.cat.Attach(ctx, o.Run, cmp.Or(o.Launch, "draft by "+order), time.Now())
	if err != nil {
		return rec, decided, err
	}
	set := draftSet{ID: catalog.SetID{Run: o.Run, Step: o.Step, Attempt: run.Attempt}, World: world, Sealed: time.Now(), Metrics: o.Metrics, Order: order, Prepared: time.Now()}
	for _, p := range who {
		set.Ranks = ranks[p.name()]
		if err := p.promise(ctx, order, set); err != nil {
			return rec, decided, err
		}
	}
	if time.Since(set.Prepared) > decideTime {
		return rec, false, fmt.Errorf("%w: the nodes took too long to answer", catalog.ErrUnavailable)
	}
	if rec, err = n.cat.Begin(ctx, set.ID, world, o.Metrics, time.Now()); err != nil {
		// Perhaps it was begun, and only the answer is missing: then the promises hold.
		decided = errors.Is(err, catalog.ErrUnavailable) || ctx.Err() != nil
		return rec, decided, err
	}
	decided = true
	n.event(ctx, set.ID, "draft", "%d files on %s are made its shards", world, nodesOf(parts))
	for _, p := range who {
		if err := p.carryOut(ctx, order); err != nil {
			n.log.Warn("draft will be made a set by its own node", "node", p.name(), "err", err)
		}
	}
	rec, err = n.await(ctx, set.ID.Ref(), catalog.Local)
	return rec, true, err
}

// gatherDrafts finds the drafts of a step on this node and on those it reaches.
func (n *Node) gatherDrafts(ctx context.Context, o commitOrder) (parts []draftPart, who []participant, err error) {
	if d, derr := n.draftOf(o.Run, o.Step); derr == nil {
		parts, who = append(parts, d.part()), append(who, nearDraft{d})
	} else if o.Alone {
		return nil, nil, derr
	}
	far, err := n.farDrafts(ctx, o)
	if err != nil && !o.Alone {
		return nil, nil, err
	}
	for _, f := range far {
		parts, who = append(parts, f.part), append(who, f)
	}
	if len(parts) == 0 {
		return nil, nil, fmt.Errorf("draft %s: %w on any node", draftName(o.Run, o.Step), fs.ErrNotExist)
	}
	return parts, who, nil
}

// freezeAll returns when all files of all nodes have been read.
func freezeAll(ctx context.Context, who []participant, order string, tell func(wire.Progress)) error {
	waiting := slices.Clone(who)
	state := make(map[string]frozen)
	for {
		var still []participant
		for _, p := range waiting {
			f, err := p.freeze(ctx, order)
			if err != nil {
				return err
			}
			if state[p.name()] = f; !f.Ready {
				still = append(still, p)
			}
		}
		if tell != nil {
			sum := wire.Progress{What: "read", Unit: "bytes"}
			for _, f := range state {
				sum.Done, sum.Total = sum.Done+f.Done, sum.Total+f.Total
			}
			tell(sum)
		}
		if waiting = still; len(waiting) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (d *draft) part() draftPart {
	p := draftPart{Node: d.n.cfg.Name, Files: []draftPartFile{}}
	for _, f := range d.area.Files() {
		p.Files = append(p.Files, draftPartFile{f.Name, f.Size})
	}
	return p
}

// nearDraft is this node's draft as a participant.
type nearDraft struct{ *draft }

func (d nearDraft) name() string { return d.n.cfg.Name }

// freeze is asked again and again, so that who asks may die.
func (d nearDraft) freeze(ctx context.Context, order string) (frozen, error) {
	d.mu.Lock()
	last, promised := d.mu.order, d.mu.note.Set != nil
	d.mu.Unlock()
	if last != "" && last != order && !promised && d.n.orderOver(ctx, last) { // whoever froze it has died
		if err := d.thaw(ctx, last); err != nil {
			return frozen{}, err
		}
	}
	// The kernel tells of a close(2) a little after it has returned.
	for end := time.Now().Add(closeWait); ; {
		f, err := d.tryFreeze(order)
		if !errors.Is(err, catalog.ErrConflict) || time.Now().After(end) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return f, ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// closeWait is how long a commit waits for files to be closed.
const closeWait = time.Second

func (d nearDraft) tryFreeze(order string) (frozen, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.mu.order != "" && d.mu.order != order, d.mu.note.Set != nil:
		return frozen{}, fmt.Errorf("draft %s: %w: it is being committed already", d.area.Name(), catalog.ErrConflict)
	case d.mu.order == "":
		if err := d.area.Freeze(); err != nil {
			return frozen{}, err
		}
		d.mu.order = order
		d.mu.sum = summing{done: new(atomic.Int64), total: d.area.Info().Bytes}
		d.n.finishing.Go(func() { d.sumAll(order) })
	}
	d.mu.asked = time.Now()
	s := d.mu.sum
	return frozen{Done: s.done.Load(), Total: max(s.total, s.done.Load()), Ready: s.ended && s.err == nil}, s.err
}

// sumAll reads the files for their seals, while the draft is frozen by order.
func (d *draft) sumAll(order string) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	d.mu.Lock()
	done := d.mu.sum.done
	d.mu.Unlock()
	var g errgroup.Group
	g.SetLimit(sumsAtOnce)
	for _, f := range d.area.Files() {
		g.Go(func() error {
			return d.area.Sum(ctx, f.Name, func(k int64) {
				done.Add(k)
				if !d.frozenBy(order) {
					cancel()
				}
			})
		})
	}
	stop := make(chan struct{})
	defer close(stop)
	d.n.finishing.Go(func() {
		select {
		case <-d.n.stopping:
			cancel()
		case <-stop:
		}
	})
	err := g.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.order == order {
		d.mu.sum.ended, d.mu.sum.err = true, err
	}
}

// sumsAtOnce is how many files of a draft are read at a time.
const sumsAtOnce = 4

func (d *draft) frozenBy(order string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.order == order
}

func (d nearDraft) promise(_ context.Context, order string, set draftSet) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.order != order || !d.mu.sum.ended || d.mu.sum.err != nil {
		return fmt.Errorf("draft %s: %w: it thawed meanwhile", d.area.Name(), catalog.ErrConflict)
	}
	for _, f := range d.area.Files() {
		if _, ok := set.Ranks[f.Name]; !ok {
			return fmt.Errorf("draft %s: %w: %s has no rank", d.area.Name(), catalog.ErrConflict, f.Name)
		}
	}
	note := d.mu.note
	note.Set = &set
	if err := d.setNote(note); err != nil {
		return err
	}
	d.mu.asked = time.Now()
	return nil
}

func (d nearDraft) thaw(_ context.Context, order string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.mu.order != order {
		return nil
	}
	return d.thawNow()
}

// thawNow makes it a draft as any other. draft.mu is held.
func (d *draft) thawNow() error {
	if d.mu.note.Set != nil {
		note := d.mu.note
		note.Set = nil
		if err := d.setNote(note); err != nil {
			return err
		}
	}
	d.mu.order, d.mu.hidden = "", false
	d.area.Thaw()
	return nil
}

// carryOut begins to make the shards, and does not wait for them.
func (d nearDraft) carryOut(_ context.Context, order string) error {
	if !d.frozenBy(order) {
		return nil
	}
	d.n.finishing.Go(func() {
		if err := d.makeSet(context.Background()); err != nil {
			d.n.log.Error("draft not made a set yet", "draft", d.area.Name(), "err", err)
			d.n.setTrouble("drafts", err)
		}
	})
	return nil
}

// makeSet makes the files shards and has them voted for. What fails is tried
// again by the duty.
func (d *draft) makeSet(ctx context.Context) error {
	d.mu.Lock()
	set := d.mu.note.Set
	if set == nil || d.mu.adopts {
		d.mu.Unlock()
		return nil
	}
	d.mu.adopts, d.mu.hidden = true, true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.mu.adopts = false
		d.mu.Unlock()
	}()
	n, id := d.n, set.ID
	if err := d.area.Freeze(); err != nil && !d.area.Info().Frozen {
		return err
	}
	n.inv.enter(id)
	defer n.kickVote.now()
	defer n.inv.leave(id)
	names := slices.SortedFunc(maps.Keys(set.Ranks), func(a, b string) int { return cmp.Compare(set.Ranks[a], set.Ranks[b]) })
	for _, name := range names {
		if err := d.makeShard(ctx, set, name); err != nil {
			return err
		}
	}
	if err := d.area.Discard(); err != nil {
		return err
	}
	n.log.Info("draft made a set", "set", id.String(), "files", len(names))
	if n.local.Usage().High {
		n.kickEvict.now()
	}
	return nil
}

func (d *draft) makeShard(ctx context.Context, set *draftSet, name string) error {
	info := catalog.ShardInfo{Set: set.ID, Rank: set.Ranks[name], World: set.World, Sealed: set.Sealed, Fence: true, Metrics: set.Metrics, File: name}
	if err := info.Check(); err != nil {
		return err
	}
	blob := info.BlobName()
	b, err := json.Marshal(info)
	if err != nil {
		return err
	}
	if _, err := d.area.Lookup(name); err == nil {
		if err := d.area.Adopt(ctx, name, blob, b); err != nil {
			return err
		}
		d.n.stats.Saves.Add(1)
	}
	s, err := d.n.stockOf(set.ID, blob)
	if err != nil { // a shard that was made before the restart, and evicted or dropped since
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	d.n.inv.add(set.ID, s)
	return nil
}
