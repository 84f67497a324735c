package ckptd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/cloudwego/hertz/pkg/app"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func (n *Node) postAttach(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.AttachRequest](c)
	if err != nil {
		return err
	}
	if q.World < 1 || q.World > catalog.MaxWorld {
		return fmt.Errorf("attach %s: %w: world size %d", q.Run, catalog.ErrInvalid, q.World)
	}
	if run := catalog.Run(q.Run); run.Reserved() { // what is no name at all is refused below
		if err := (catalog.SetID{Run: run, Step: 1, Attempt: 1}).CheckSaved(q.World, true); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
	}
	if q.Launch == "" {
		return wire.WithHint(fmt.Errorf("attach %s: %w: %d ranks need one launch name in common", q.Run, catalog.ErrInvalid, q.World),
			"pass launch=…, or set CKPTD_LAUNCH to a name that all ranks of this start share and no other start has; torchrun and SLURM are recognised by themselves")
	}
	r, err := n.cat.Attach(ctx, catalog.Run(q.Run), q.Launch, time.Now())
	if err != nil {
		return err
	}
	return reply(c, wire.AttachReply{Attempt: r.Attempt})
}

func (n *Node) getRuns(ctx context.Context, c *app.RequestContext) error {
	runs, err := n.cat.Runs(ctx)
	if err != nil {
		return err
	}
	sets, _ := n.cat.Known("")
	rows := make([]wire.Run, 0, len(runs))
	at := make(map[catalog.Run]int)
	for _, r := range runs {
		if r.Run.Reserved() {
			continue // the datasets' own
		}
		at[r.Run] = len(rows)
		rows = append(rows, wire.Run{Name: string(r.Run), Attempt: r.Attempt, Launch: r.Launch, Created: r.Created})
	}
	for _, s := range sets { // newest first within a run
		i, ok := at[s.Run]
		if !ok || s.State != catalog.Committed {
			continue
		}
		if rows[i].Sets++; rows[i].Latest == nil {
			latest := wire.SetOf(&s)
			rows[i].Latest = &latest
		}
		rows[i].Size += s.Size
	}
	return reply(c, map[string]any{"runs": rows})
}

func (n *Node) getSets(ctx context.Context, c *app.RequestContext) error {
	run, err := catalog.ParseRun(c.Query("run"))
	if err != nil {
		return err
	}
	sets, err := n.cat.Sets(ctx, run)
	if err != nil {
		return err
	}
	all := c.Query("all") == "true"
	rows := make([]wire.Set, 0, len(sets))
	for i := range sets {
		if all || sets[i].State == catalog.Committed {
			rows = append(rows, wire.SetOf(&sets[i]))
		}
	}
	return reply(c, map[string]any{"sets": rows})
}

// lookup resolves a reference; one that names an attempt finds sets in every
// state, and so does one to a set that is only being written.
func (n *Node) lookup(ctx context.Context, s string) (catalog.SetRecord, error) {
	ref, err := catalog.ParseRef(s)
	if err != nil {
		return catalog.SetRecord{}, err
	}
	rec, err := n.cat.Resolve(ctx, ref)
	if err == nil || ref.Step == catalog.Latest || ref.Level != catalog.LevelNone {
		return rec, err
	}
	sets, _ := n.cat.Known(ref.Run)
	for _, s := range sets { // newest first
		if s.Step == ref.Step && (ref.Attempt == 0 || s.Attempt == ref.Attempt) {
			return s, nil
		}
	}
	return rec, err
}

func (n *Node) getSet(ctx context.Context, c *app.RequestContext) error {
	rec, err := n.lookup(ctx, c.Query("ref"))
	if err != nil {
		return err
	}
	d := wire.SetDetail{Set: wire.SetOf(&rec), Place: rec.Place, Shards: []wire.Shard{}}
	if c.Query("brief") == "true" { // nothing but the record, which the mirror has
		d.Events = []catalog.Event{}
		return reply(c, d)
	}
	parts, err := n.cat.Parts(ctx, rec.SetID)
	if errors.Is(err, catalog.ErrUnavailable) && rec.State == catalog.Committed {
		parts, err = n.parts(ctx, rec) // what is known here is enough to load it
	}
	if err != nil {
		return err
	}
	d.Shards = n.shardRows(rec, parts)
	if rec.State == catalog.Writing {
		d.Missing = catalog.MissingRanks(rec.World, parts)
	}
	if d.Events, err = n.cat.Events(ctx, rec.SetID); err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	tensors := c.Query("tensors") == "true"
	raw := slices.ContainsFunc(d.Shards, func(s wire.Shard) bool { return s.Raw })
	if (tensors || raw) && rec.State == catalog.Committed {
		m, _, err := n.manifest(ctx, rec)
		if err != nil && tensors {
			return err
		} else if err == nil {
			tellManifest(&d, m, tensors)
		}
	}
	return reply(c, d)
}

// tellManifest adds what the manifest alone says: of raw shards their files,
// and the tensors when they are asked for.
func tellManifest(d *wire.SetDetail, m *catalog.Manifest, tensors bool) {
	for i := range d.Shards {
		if s := &d.Shards[i]; s.Raw && s.Rank < len(m.Shards) {
			s.File, s.Meta = m.Shards[s.Rank].File, m.Shards[s.Rank].Meta
		}
	}
	if tensors {
		for _, s := range m.Shards {
			d.Tensors = append(d.Tensors, s.Tensors...)
		}
	}
}

func (n *Node) shardRows(rec catalog.SetRecord, parts []catalog.PartRecord) []wire.Shard {
	rows := []wire.Shard{}
	for rank, v := range catalog.Votes(rec.World, parts) {
		if v.Shard == nil {
			continue
		}
		row := wire.Shard{Rank: rank, Size: v.Shard.Size, Root: v.Shard.Root, Raw: v.Shard.Raw, Node: v.Node, Local: []string{},
			Level:  catalog.ShardLevel(rank, v.Shard.Root, parts),
			Sealed: v.Shard.Sealed, Durable: v.Shard.Durable}
		for _, p := range parts {
			for _, s := range p.Shards {
				if s.Rank != rank || s.Root != v.Shard.Root {
					continue
				}
				if s.Local {
					row.Local = append(row.Local, p.Node)
				}
				if s.Bad != "" {
					row.Bad = p.Node + ": " + s.Bad
				}
				if s.Remote != nil {
					row.Remote, row.Drained, row.Verified = s.Remote, s.Drained, s.Verified
				}
			}
		}
		if slices.Contains(row.Local, n.cfg.Name) {
			if st, err := n.local.Stat(v.Shard.BlobName(rec.SetID)); err == nil {
				row.Path = st.Path
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func (n *Node) getManifest(ctx context.Context, c *app.RequestContext) error {
	ref, err := catalog.ParseRef(c.Query("ref"))
	if err != nil {
		return err
	}
	rec, err := n.cat.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	_, b, err := n.manifest(ctx, rec)
	if err != nil {
		return n.offerOlder(ctx, rec, err)
	}
	c.Header("Ckptd-Set", rec.SetID.String())
	c.Data(http.StatusOK, "application/json", b)
	return nil
}

func (n *Node) getWatch(ctx context.Context, c *app.RequestContext) error {
	run := catalog.Run(c.Query("run"))
	if run != "" {
		if _, err := catalog.ParseRun(string(run)); err != nil {
			return err
		}
	}
	return stream(c, func(line func(any) error) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		beat := time.NewTicker(5 * time.Second)
		defer beat.Stop()
		changes := n.cat.Watch(ctx, run, false)
		for {
			select {
			case rec, ok := <-changes:
				if !ok {
					return fmt.Errorf("watch: %w: fell behind; watch again", catalog.ErrUnavailable)
				}
				if run == "" && rec.Run.Reserved() {
					continue // the datasets' own, as in the list of runs
				}
				if err := line(wire.SetOf(&rec)); err != nil {
					return nil
				}
			case <-beat.C: // an empty line finds out whether the client is there
				if _, err := c.Write([]byte("\n")); err != nil {
					return nil
				}
				if err := c.Flush(); err != nil {
					return nil
				}
			case <-n.stopping:
				return nil
			}
		}
	})
}
