package ckptd

import (
	"fmt"
	"strings"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

// layout is how a run's shards are striped, and over which pool of targets.
func (n *Node) layout(run catalog.Run) (l stripe.Layout, pool string, err error) {
	r, _ := n.cat.KnownRun(run)
	pool = r.Policy.Remote
	spec, unit := r.Policy.Layout, r.Policy.Unit
	if spec == "" {
		spec = n.defaultSpec(pool)
	}
	if unit == 0 {
		unit = n.cfg.Unit
	}
	if l, err = stripe.Parse(spec); err != nil {
		return l, pool, fmt.Errorf("layout of run %s: %w", run, err)
	}
	l.Unit = unit
	return l, pool, nil
}

// defaultSpec is the layout of what no policy speaks about.
func (n *Node) defaultSpec(pool string) string {
	p := n.pool(pool)
	if l, err := stripe.Parse(n.cfg.Layout); err == nil && (pool == "" || l.Columns() <= p.Targets) {
		return n.cfg.Layout
	}
	k, m := defaultLayout(p.Targets, p.Domains)
	k, m = narrow(k, m, n.usable(p))
	return fmt.Sprintf("%d+%d", k, m)
}

// defaultLayout by the number of targets: as wide as they allow while any one
// (two from six on) may be lost; and so that any one failure domain may be
// lost, where there are several.
func defaultLayout(targets, domains int) (k, m int) {
	switch {
	case targets >= 10:
		k, m = 8, 2
	case targets >= 6:
		k, m = 4, 2
	case targets >= 3:
		k, m = 2, 1
	case targets == 2:
		k, m = 1, 1
	default:
		return 1, 0
	}
	for domains > 1 && k > 1 && (k+m+domains-1)/domains > m { // columns of the fullest domain
		k--
	}
	return k, m
}

// narrow makes a default layout fit the targets that can be written now: with
// fewer data columns, never with fewer to lose. Without room for that it stays
// as it is, and blobs wait.
func narrow(k, m, usable int) (int, int) {
	if k+m > usable && usable > m {
		k = usable - m
	}
	return k, m
}

// usable counts the targets of a pool that can take a column now.
func (n *Node) usable(p remotetier.PoolInfo) int {
	if !n.tgt.dynamic() {
		return p.Targets
	}
	count := 0
	for _, t := range n.tgt.snapshot() {
		state := t.State.OrUp()
		v, seen := n.view(t.Name)
		if t.Pool == p.Name && t.Weight >= 0 && (state == catalog.TargetUp || state == catalog.TargetSuspect) && (!seen || v.misses < missesFail && !v.full()) {
			count++
		}
	}
	return count
}

// checkPolicy refuses what could never be carried out.
func (n *Node) checkPolicy(p catalog.Policy) error {
	pool, err := n.checkPool(p.Remote)
	if err != nil {
		return err
	}
	if p.Layout != "" {
		l, err := stripe.Parse(p.Layout)
		if err != nil {
			return err
		}
		if n.remote != nil && l.Columns() > pool.Targets {
			where := "there are"
			if p.Remote != "" {
				where = "pool " + p.Remote + " has"
			}
			return fmt.Errorf("layout %s: %w: it needs %d targets, %s %d; choose a narrower one, or add targets first (`ckptd target --nats`, `ckpt target add`)",
				p.Layout, catalog.ErrInvalid, l.Columns(), where, pool.Targets)
		}
		if p.Unit != 0 {
			l.Unit = p.Unit
			if err := l.Check(); err != nil {
				return err
			}
		}
	}
	if p.Replicas != 0 {
		return fmt.Errorf("replicas: %w: copies on other nodes are not made yet; leave it 0", catalog.ErrInvalid)
	}
	return p.Check()
}

// checkPool finds the pool that a policy names.
func (n *Node) checkPool(name string) (remotetier.PoolInfo, error) {
	if n.remote == nil {
		if name != "" {
			return remotetier.PoolInfo{}, fmt.Errorf("remote %s: %w: this node has no remote tier", name, catalog.ErrInvalid)
		}
		return remotetier.PoolInfo{}, nil
	}
	var names []string
	for _, p := range n.remote.Pools() {
		if p.Name == name || name == "" && p.Default {
			return p, nil
		}
		if p.Name != "" {
			names = append(names, p.Name)
		}
	}
	if name == "" { // no targets yet
		return remotetier.PoolInfo{}, nil
	}
	return remotetier.PoolInfo{}, fmt.Errorf("remote %.80q: %w: no target is in such a pool; there are: %s", name, catalog.ErrInvalid, strings.Join(append(names, `"" (the default)`), ", "))
}
