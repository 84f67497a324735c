package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// leaseSkew is how far the clocks of two nodes may differ before a reader's
// lease ends early.
const leaseSkew = time.Minute

type leaseRecord struct {
	Holder string    `json:"holder"`
	Until  time.Time `json:"until"`
}

// Lease keeps a committed set's bytes from being pruned until the given time,
// on behalf of holder. The record is written before the set is looked at once
// more, and a pruner looks for leases after its tombstone: one of the two sees
// the other. A condemned set gets no new lease. Lease renews too; when that fails because the set is pruned, what
// was left of the lease stays, so that the reader can finish.
func (c *Catalog) Lease(ctx context.Context, id SetID, holder string, until time.Time) error {
	if err := checkHolder(holder); err != nil {
		return err
	}
	key := leaseKey(id, holder)
	var before leaseRecord
	_, err := update(ctx, c.records, key, func(l *leaseRecord, _ bool) error {
		before = *l
		*l = leaseRecord{holder, until}
		return nil
	})
	if err != nil {
		return fmt.Errorf("lease %v: %w", id, err)
	}
	s, err := read[SetRecord](ctx, c.records, setKey(id))
	if err == nil && s.State != Committed {
		err = fmt.Errorf("it is %s: %w", s.State, fs.ErrNotExist)
	} else if err == nil && !s.Condemned.IsZero() && before.Until.IsZero() {
		err = fmt.Errorf("it is about to be pruned: %w", fs.ErrNotExist)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("lease %v: %w", id, err), c.unrenew(ctx, key, before))
	}
	return nil
}

// unrenew puts a lease back to what it was before; the zero lease is none.
func (c *Catalog) unrenew(ctx context.Context, key string, before leaseRecord) error {
	if before.Until.IsZero() {
		return remove(ctx, c.records, key)
	}
	_, err := update(ctx, c.records, key, func(l *leaseRecord, exists bool) error {
		if !exists || l.Until.Before(before.Until) {
			return errSame
		}
		*l = before
		return nil
	})
	return err
}

// Unlease ends a lease early.
func (c *Catalog) Unlease(ctx context.Context, id SetID, holder string) error {
	return remove(ctx, c.records, leaseKey(id, holder))
}

// Leases lists who holds the set now, and drops leases that have run out.
func (c *Catalog) Leases(ctx context.Context, id SetID, now time.Time) ([]string, error) {
	var holders []string
	for rec, err := range c.records.List(ctx, leasePrefix(id)) {
		if err != nil {
			return nil, fmt.Errorf("leases of %v: %w", id, err)
		}
		var l leaseRecord
		if json.Unmarshal(rec.Value, &l) == nil && now.Before(l.Until.Add(leaseSkew)) {
			holders = append(holders, l.Holder)
			continue
		}
		if _, err := c.records.Swap(ctx, rec.Key, rec.Rev, nil); err != nil && !errors.Is(err, ErrConflict) {
			return nil, fmt.Errorf("leases of %v: %w", id, err)
		}
	}
	return holders, nil
}

type coordRecord struct {
	Holder string `json:"holder"`
	Term   int64  `json:"term"`
	Beat   int64  `json:"beat"`
}

// Elector takes part in choosing the coordinator. It trusts no clock but its
// own: a lease has run out when its record has not changed for TTL as this
// node measured it. Two coordinators at once are harmless, because Commit is a
// compare-and-swap; the lease only spares double work.
type Elector struct {
	Catalog *Catalog
	Node    string
	TTL     time.Duration // call Tick about three times in this time

	rev     uint64
	changed time.Time
	leader  string
}

// Tick renews or tries to take the lease and says whether this node has it.
func (e *Elector) Tick(ctx context.Context, now time.Time) (bool, error) {
	d := e.Catalog.records
	rec, err := d.Get(ctx, coordKey)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.leader = ""
		return false, fmt.Errorf("coordinator's lease: %w", err)
	}
	var cur coordRecord
	if err == nil {
		if json.Unmarshal(rec.Value, &cur) != nil {
			cur = coordRecord{} // damaged: anyone may take it
		}
		if rec.Rev != e.rev {
			e.rev, e.changed = rec.Rev, now
		}
		if cur.Holder != "" && cur.Holder != e.Node && now.Sub(e.changed) < e.TTL {
			e.leader = cur.Holder
			return false, nil
		}
	}
	next := coordRecord{Holder: e.Node, Term: cur.Term, Beat: cur.Beat + 1}
	if cur.Holder != e.Node {
		next.Term++
	}
	b, _ := json.Marshal(next) // a struct of plain fields
	rev, err := d.Swap(ctx, coordKey, rec.Rev, b)
	if errors.Is(err, ErrConflict) {
		e.leader = "" // another node took it between our look and our swap
		return false, nil
	} else if err != nil {
		e.leader = ""
		return false, fmt.Errorf("coordinator's lease: %w", err)
	}
	e.rev, e.changed, e.leader = rev, now, e.Node
	return true, nil
}

// Leader is the coordinator as of the last Tick, "" when not known.
func (e *Elector) Leader() string { return e.leader }

// Resign gives the lease up, so that another node need not wait for it to run out.
func (e *Elector) Resign(ctx context.Context) error {
	if e.leader != e.Node {
		return nil
	}
	e.leader = ""
	rec, err := e.Catalog.records.Get(ctx, coordKey)
	if err != nil {
		return err
	}
	var cur coordRecord
	if json.Unmarshal(rec.Value, &cur) != nil || cur.Holder != e.Node {
		return nil
	}
	cur.Holder = ""
	b, _ := json.Marshal(cur)
	_, err = e.Catalog.records.Swap(ctx, coordKey, rec.Rev, b)
	return err
}
