package ckptd

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/sdk/wire"
)

// getTargets lists the members of the map, and what this node uses besides.
func (n *Node) getTargets(ctx context.Context, c *app.RequestContext) error {
	m, err := n.cat.Targets(ctx)
	if err != nil { // what this node knows is better than nothing
		m, _, _ = n.cat.KnownTargets()
	}
	rows := n.usedRows(ctx)
	said := n.said()
	for i := range m.Targets {
		r := &m.Targets[i]
		if slices.ContainsFunc(rows, func(t wire.Target) bool { return t.Name == r.Name && t.Node == r.Node }) {
			continue
		}
		row := n.row(*r, said)
		n.tgt.mu.Lock()
		if refused := n.tgt.mu.refused[r.Name]; refused != nil && (r.Node == "" || r.Node == n.cfg.Name) {
			row.Err = refused.Error()
		}
		n.tgt.mu.Unlock()
		row.Trouble = troubleOf(&row, r.Beats(), said[[2]string{r.Name, r.Node}])
		rows = append(rows, row)
	}
	scrubs, err := n.cat.Scrubs(ctx)
	if err != nil {
		n.log.Debug("scrubs not known", "err", err)
	}
	for _, s := range scrubs {
		for i := range rows {
			if rows[i].Name == s.Target && rows[i].Node == s.Node {
				rows[i].Scrubbed = s.Finished
			}
		}
	}
	slices.SortFunc(rows, func(a, b wire.Target) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
	})
	return reply(c, wire.Targets{Version: m.Version, Targets: rows})
}

// said gathers what was said last of each target, by itself or by the node
// whose flags name it.
func (n *Node) said() map[[2]string]catalog.TargetStatus {
	said := make(map[[2]string]catalog.TargetStatus)
	for _, o := range n.cat.KnownNodes() {
		for _, s := range o.Targets {
			said[[2]string{s.Name, s.Node}] = s
		}
	}
	for _, s := range n.cat.KnownTargetStatuses() {
		said[[2]string{s.Name, s.Node}] = s
	}
	return said
}

// usedRows asks the targets that this node uses how they are.
func (n *Node) usedRows(ctx context.Context) []wire.Target {
	rows := []wire.Target{}
	if n.remote == nil {
		return rows
	}
	said := n.said()
	m, _, _ := n.cat.KnownTargets()
	used := map[string]catalog.TargetRecord{}
	for _, t := range n.tgt.snapshot() {
		used[t.Name] = t.TargetRecord
	}
	for _, t := range n.remote.Targets(ctx) {
		r, ok := used[t.Name]
		if !ok {
			r = catalog.TargetRecord{Name: t.Name, Domain: t.Domain, Pool: t.Pool, State: t.State}
		}
		if member := m.Find(r.Name, n.cfg.Name); member != nil && member.Node == r.Node {
			r.Since, r.Reason, r.Added, r.Claim = member.Since, member.Reason, member.Added, member.Claim
		}
		row := n.row(r, said)
		row.Domain = cmp.Or(row.Domain, t.Domain)
		v, seen := n.view(t.Name)
		if seen {
			row.Latency = v.latency.Seconds()
		}
		if t.Err != nil {
			row.Err = t.Err.Error()
		} else {
			row.Total, row.Free = t.Space.Total, t.Space.Free
			v.space, v.err = t.Space, nil
			if !seen {
				v.fullAt = -1
			}
			if row.Full = v.full() || t.Full; !r.Beats() {
				row.Seen = time.Now()
			}
		}
		row.Trouble = troubleOf(&row, r.Beats(), said[[2]string{r.Name, r.Node}])
		if t.Err == nil && t.State != t.Given { // it answers, and does not do what it is asked
			row.Trouble = strings.TrimPrefix(fmt.Sprintf("%s; this node avoids it: %d operations failed, the last: %v", row.Trouble, t.Errors, t.Failed), "; ")
		}
		rows = append(rows, row)
	}
	return rows
}

// row shows a member with what was said of it.
func (n *Node) row(r catalog.TargetRecord, said map[[2]string]catalog.TargetStatus) wire.Target {
	row := wire.Target{
		Name: r.Name, Node: r.Node, State: r.State.OrUp(), Since: r.Since, Reason: r.Reason, Domain: r.Domain, Pool: r.Pool,
		Scheme: r.Scheme, Addrs: slices.Clone(r.Addrs), Weight: cmp.Or(r.Weight, 1), Columns: -1,
	}
	if row.Addrs == nil {
		row.Addrs = []string{}
	}
	if s, ok := said[[2]string{r.Name, r.Node}]; ok && s.Claim == r.Claim {
		row.Seen, row.Total, row.Free, row.Columns, row.Errors, row.Latency = s.Seen, s.Total, s.Free, s.Columns, s.Errors, s.Latency.Seconds()
		row.Full = s.Total > 0 && s.Free < s.Total/fullShare
	}
	return row
}

// troubleOf says in a sentence what is wrong with a target, or what was
// ordered of it.
func troubleOf(t *wire.Target, beats bool, s catalog.TargetStatus) string {
	var said []string
	add := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	switch t.State {
	case catalog.TargetSuspect, catalog.TargetDown:
		if t.Reason != "" {
			add("%s: %s", t.State, t.Reason)
		} else {
			add("%s", t.State)
		}
	case catalog.TargetDraining:
		add("draining: its columns move away")
	case catalog.TargetDrained:
		add("drained: it may be removed")
	}
	if t.Err != "" && !strings.Contains(t.Reason, t.Err) {
		add("this node cannot use it: %s", t.Err)
	}
	if silence := time.Since(t.Seen); beats && t.State == catalog.TargetUp && !s.Seen.IsZero() && silence > 2*beatsMissed*max(s.Every, time.Second) {
		add("no heartbeat for %v", silence.Round(time.Second))
	}
	if t.Full {
		add("full: new columns go elsewhere")
	}
	if s.Trouble != "" && t.Err == "" {
		add("%s", s.Trouble)
	}
	return strings.Join(said, "; ")
}

// postTargetAdd enters a target by hand. One over the network says its name,
// and whether it is there at all.
func (n *Node) postTargetAdd(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.TargetAddRequest](c)
	if err != nil {
		return err
	}
	r, err := catalog.ParseTarget(q.Spec)
	if err != nil {
		return err
	}
	if n.tgt.Make == nil {
		return fmt.Errorf("add a target: %w: this node has no remote tier; ask one that has", catalog.ErrInvalid)
	}
	if r.Scheme == "dir" {
		if r.Node = n.cfg.Name; r.Name == "" {
			return fmt.Errorf("add %s: %w: a directory needs a name; give name=", q.Spec, catalog.ErrInvalid)
		}
		if !n.tgt.Follow {
			return wire.WithHint(fmt.Errorf("add %s: %w: this node uses only the targets of its flags", q.Spec, catalog.ErrInvalid), "give it to --remote, or start the daemon with --remote catalog")
		}
	}
	if r, err = n.meet(ctx, r); err != nil {
		return fmt.Errorf("add %s: %w", q.Spec, err)
	}
	m, err := n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error { return m.Add(r, time.Now()) })
	if err != nil {
		return err
	}
	row := n.row(*m.Find(r.Name, n.cfg.Name), nil)
	return reply(c, row)
}

// meet opens a target once, to see that it is there and what it is called.
func (n *Node) meet(ctx context.Context, r catalog.TargetRecord) (catalog.TargetRecord, error) {
	short, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	t, err := n.tgt.Make(short, r)
	if err != nil {
		return r, err
	}
	defer t.Close()
	if _, err := t.Space(short); err != nil {
		return r, err
	}
	r.Name = t.Name()
	if d, ok := remotetier.Target(t).(interface{ Domain() string }); ok {
		r.Domain = cmp.Or(r.Domain, d.Domain())
	}
	return r, nil
}

// postTargetRemove takes a target out of the map.
func (n *Node) postTargetRemove(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.TargetRemoveRequest](c)
	if err != nil {
		return err
	}
	var was catalog.TargetRecord
	node := cmp.Or(q.Node, n.cfg.Name)
	if !q.Force {
		m, err := n.cat.Targets(ctx)
		if err != nil {
			return err
		}
		if r := m.Find(q.Name, node); r != nil && r.State == catalog.TargetDrained {
			if err := n.mayTakeOut(ctx, *r); err != nil {
				return err
			}
		}
	}
	_, err = n.cat.UpdateTargets(ctx, func(m *catalog.TargetMap) error {
		r := m.Find(q.Name, node)
		if r == nil {
			return n.unknownTarget(m, q.Name)
		}
		was = *r
		return m.Remove(was.Name, was.Node, q.Force)
	})
	if err != nil {
		return err
	}
	if err := n.cat.DropTargetStatus(ctx, was.Name, was.Node); err != nil {
		n.log.Debug("status left behind", "target", was.Name, "err", err)
	}
	if err := n.cat.DropScrub(ctx, was.Name, was.Node); err != nil {
		n.log.Debug("scrub left behind", "target", was.Name, "err", err)
	}
	n.log.Warn("target taken out", "target", was.Name, "node", was.Node, "forced", q.Force)
	return reply(c, n.row(was, nil))
}

// unknownTarget says that there is no such member, or on which nodes.
func (n *Node) unknownTarget(m *catalog.TargetMap, name string) error {
	var nodes []string
	for _, r := range m.Targets {
		if r.Name == name {
			nodes = append(nodes, r.Node)
		}
	}
	if len(nodes) > 0 {
		return fmt.Errorf("target %s: %w: it belongs to another node alone; give --node %s", name, fs.ErrNotExist, strings.Join(nodes, " or --node "))
	}
	return fmt.Errorf("target %.80q: %w: it is no member", name, fs.ErrNotExist)
}
