package ckptd

import (
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"github.com/cloudwego/hertz/pkg/app/server"
	"github.com/cloudwego/hertz/pkg/protocol/http1/resp"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// routes registers handlers that return errors; the one place that writes them
// is handle.
type routes struct {
	n       *Node
	h       *server.Hertz
	network bool
}

type handler func(ctx context.Context, c *app.RequestContext) error

func (r routes) get(path string, f handler)  { r.h.GET(path, r.handle(f)) }
func (r routes) put(path string, f handler)  { r.h.PUT(path, r.handle(f)) }
func (r routes) post(path string, f handler) { r.h.POST(path, r.handle(f)) }

func (r routes) handle(f handler) app.HandlerFunc {
	return func(ctx context.Context, c *app.RequestContext) {
		defer func() {
			if p := recover(); p != nil {
				r.n.log.Error("handler panicked", "path", string(c.Path()), "panic", p)
				fail(c, fmt.Errorf("internal error: %v", p))
			}
		}()
		if r.network && r.n.cfg.Token != "" {
			got := strings.TrimPrefix(string(c.GetHeader("Authorization")), "Bearer ")
			if subtle.ConstantTimeCompare([]byte(got), []byte(r.n.cfg.Token)) != 1 {
				fail(c, fmt.Errorf("%w: wrong or missing token", wire.ErrUnauthorized))
				return
			}
		}
		if err := f(ctx, c); err != nil {
			fail(c, err)
		}
	}
}

func fail(c *app.RequestContext, err error) {
	e := wire.ErrorOf(err)
	b, _ := json.Marshal(map[string]*wire.Error{"error": e}) // strings only
	c.Data(e.Status(), "application/json", b)
}

func reply(c *app.RequestContext, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.Data(http.StatusOK, "application/json", b)
	return nil
}

// body decodes a request.
func body[T any](c *app.RequestContext) (T, error) {
	var v T
	b, err := c.Body()
	if err != nil {
		return v, fmt.Errorf("request body: %w: %v", catalog.ErrInvalid, err)
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return v, fmt.Errorf("request body: %w: %v", catalog.ErrInvalid, err)
	}
	return v, nil
}

// stream answers in lines of JSON as they come.
func stream(c *app.RequestContext, f func(line func(any) error) error) error {
	c.SetStatusCode(http.StatusOK)
	c.SetContentType("application/x-ndjson")
	c.Response.HijackWriter(resp.NewChunkedBodyWriter(&c.Response, c.GetWriter()))
	line := func(v any) error {
		b, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if _, err := c.Write(append(b, '\n')); err != nil {
			return err
		}
		return c.Flush()
	}
	if err := f(line); err != nil {
		return line(wire.Line{Error: wire.ErrorOf(err)}) // the status has been sent already
	}
	return nil
}

// long streams progress and then a result.
func long[T any](c *app.RequestContext, f func(progress func(wire.Progress)) (T, error)) error {
	return stream(c, func(line func(any) error) error {
		var last time.Time
		res, err := f(func(p wire.Progress) {
			if time.Since(last) > 200*time.Millisecond {
				last = time.Now()
				_ = line(wire.Line{Progress: &p}) // a client that left is noticed at the result
			}
		})
		if err != nil {
			return err
		}
		b, err := json.Marshal(res)
		if err != nil {
			return err
		}
		return line(wire.Line{Result: b})
	})
}

func (n *Node) routes(h *server.Hertz, network bool) {
	r := routes{n, h, network}
	r.get("/healthz", func(_ context.Context, c *app.RequestContext) error { return reply(c, map[string]bool{"ok": true}) })
	r.get("/readyz", n.getReady)
	r.get("/metrics", n.getMetrics)
	r.get("/v1/status", n.getStatus)
	r.get("/v1/runs", n.getRuns)
	r.get("/v1/sets", n.getSets)
	r.get("/v1/set", n.getSet)
	r.get("/v1/manifest", n.getManifest)
	r.get("/v1/why", n.getWhy)
	r.get("/v1/watch", n.getWatch)
	r.get("/v1/nodes", n.getNodes)
	r.get("/v1/targets", n.getTargets)
	r.get("/v1/policy", n.getPolicy)
	r.post("/v1/policy", n.postPolicy)
	r.post("/v1/attach", n.postAttach)
	r.post("/v1/wait", n.postWait)
	r.post("/v1/tag", n.postTag)
	r.post("/v1/pin", n.postPin)
	r.post("/v1/remove", n.postRemove)
	r.post("/v1/prune", n.postPrune)
	r.post("/v1/verify", n.postVerify)
	r.post("/v1/catalog/rebuild", n.postRebuild)
	r.post("/v1/catalog/fsck", n.postFsck)
	if network {
		n.peerRoutes(r)
	}
}

func (n *Node) getReady(ctx context.Context, c *app.RequestContext) error {
	if err := n.cat.Sync(ctx); err != nil {
		return err
	}
	return reply(c, map[string]bool{"ok": true})
}

func (n *Node) postAttach(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.AttachRequest](c)
	if err != nil {
		return err
	}
	if q.World < 1 || q.World > catalog.MaxWorld {
		return fmt.Errorf("attach %s: %w: world size %d", q.Run, catalog.ErrInvalid, q.World)
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
		at[r.Run] = len(rows)
		rows = append(rows, wire.Run{Name: string(r.Run), Attempt: r.Attempt, Created: r.Created})
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
	parts, err := n.cat.Parts(ctx, rec.SetID)
	if err != nil {
		return err
	}
	d.Shards = n.shardRows(rec, parts)
	if rec.State == catalog.Writing {
		d.Missing = catalog.MissingRanks(rec.World, parts)
	}
	if d.Events, err = n.cat.Events(ctx, rec.SetID); err != nil {
		return err
	}
	if c.Query("tensors") == "true" && rec.State == catalog.Committed {
		m, _, err := n.manifest(ctx, rec)
		if err != nil {
			return err
		}
		for _, s := range m.Shards {
			d.Tensors = append(d.Tensors, s.Tensors...)
		}
	}
	return reply(c, d)
}

func (n *Node) shardRows(rec catalog.SetRecord, parts []catalog.PartRecord) []wire.Shard {
	rows := []wire.Shard{}
	for rank, v := range catalog.Votes(rec.World, parts) {
		if v.Shard == nil {
			continue
		}
		row := wire.Shard{Rank: rank, Size: v.Shard.Size, Root: v.Shard.Root, Node: v.Node, Local: []string{},
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
			if st, err := n.local.Stat(rec.ShardName(rank)); err == nil {
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

// maxWait bounds one call of /v1/wait; the SDKs ask again.
const maxWait = time.Minute

func (n *Node) postWait(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.WaitRequest](c)
	if err != nil {
		return err
	}
	ref, err := catalog.ParseRef(q.Ref)
	if err != nil {
		return err
	}
	if ref.Level != catalog.LevelNone && q.Level == catalog.LevelNone {
		q.Level = ref.Level
	}
	ref.Level = catalog.LevelNone
	ctx, cancel := context.WithTimeout(ctx, min(max(time.Duration(q.Timeout*float64(time.Second)), 0), maxWait))
	defer cancel()
	rec, err := n.await(ctx, ref, q.Level)
	if err != nil {
		return err
	}
	return reply(c, wire.SetOf(&rec))
}

// await returns when the set is at the level, or has failed for good.
func (n *Node) await(ctx context.Context, ref catalog.Ref, level catalog.Level) (catalog.SetRecord, error) {
	wctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changes := n.cat.Watch(wctx, ref.Run, false)
	if err := n.cat.Sync(ctx); err != nil && !errors.Is(err, catalog.ErrUnavailable) && ctx.Err() == nil {
		return catalog.SetRecord{}, err
	}
	for {
		rec, err := n.cat.ResolveKnown(ref)
		if err == nil && rec.Level >= level {
			return rec, nil
		}
		if ref.Step != catalog.Latest && err != nil {
			sets, _ := n.cat.Known(ref.Run)
			for _, s := range sets {
				if s.Step == ref.Step && (ref.Attempt == 0 || s.Attempt == ref.Attempt) {
					if s.State == catalog.Aborted || s.State == catalog.Pruned {
						return s, fmt.Errorf("%v: %w: it was %s: %s", s.SetID, catalog.ErrConflict, s.State, s.Reason)
					}
					break
				}
			}
		}
		select {
		case _, ok := <-changes:
			if !ok && ctx.Err() == nil { // fell behind
				changes = n.cat.Watch(wctx, ref.Run, false)
			}
			if ok {
				continue
			}
		case <-n.stopping:
			return rec, fmt.Errorf("%v: %w: the daemon is stopping", ref, catalog.ErrUnavailable)
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, catalog.ErrIncomplete) {
				return rec, err
			}
			return rec, fmt.Errorf("%v: %w: want %v, it is at %v", ref, catalog.ErrIncomplete, level, rec.Level)
		}
	}
}

func (n *Node) postTag(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.TagRequest](c)
	if err != nil {
		return err
	}
	const maxTags, maxTag = 64, 1024
	return n.change(ctx, c, q.Ref, func(s *catalog.SetRecord) error {
		if s.State != catalog.Committed {
			return fmt.Errorf("tag: %w: it is %s", catalog.ErrConflict, s.State)
		}
		for k, v := range q.Tags {
			if k == "" || len(k) > maxTag || v != nil && len(*v) > maxTag {
				return fmt.Errorf("tag %q: %w: keys and values have at most %d bytes", k, catalog.ErrInvalid, maxTag)
			}
			if v == nil {
				delete(s.Tags, k)
				continue
			}
			if s.Tags == nil {
				s.Tags = make(map[string]string)
			}
			s.Tags[k] = *v
		}
		if len(s.Tags) > maxTags {
			return fmt.Errorf("%w: a set has at most %d tags", catalog.ErrInvalid, maxTags)
		}
		return nil
	})
}

func (n *Node) postPin(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PinRequest](c)
	if err != nil {
		return err
	}
	return n.change(ctx, c, q.Ref, func(s *catalog.SetRecord) error {
		if s.State != catalog.Committed {
			return fmt.Errorf("pin: %w: it is %s", catalog.ErrConflict, s.State)
		}
		if s.Pinned == q.Pinned {
			return catalog.ErrSame
		}
		s.Pinned = q.Pinned
		return nil
	})
}

func (n *Node) change(ctx context.Context, c *app.RequestContext, ref string, f func(*catalog.SetRecord) error) error {
	rec, err := n.lookup(ctx, ref)
	if err != nil {
		return err
	}
	if rec, err = n.cat.Update(ctx, rec.SetID, f); err != nil {
		return err
	}
	return reply(c, wire.SetOf(&rec))
}

func (n *Node) postRemove(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.RemoveRequest](c)
	if err != nil {
		return err
	}
	rec, err := n.lookup(ctx, q.Ref)
	if err != nil {
		return err
	}
	if rec.State == catalog.Writing {
		rec, err = n.cat.Abort(ctx, rec.SetID, "removed by request", time.Now())
	} else {
		rec, err = n.cat.Tombstone(ctx, rec.SetID, "removed by request", time.Now())
	}
	if err != nil {
		return err
	}
	n.event(ctx, rec.SetID, string(rec.State), "removed by request")
	return reply(c, wire.SetOf(&rec))
}

func (n *Node) postPrune(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PruneRequest](c)
	if err != nil {
		return err
	}
	run, err := catalog.ParseRun(q.Run)
	if err != nil {
		return err
	}
	r := q.Retention
	if r == nil {
		p, err := n.cat.Policy(ctx, run)
		if err != nil {
			return err
		}
		r = &p.Retention
	}
	if *r == (catalog.Retention{}) {
		return wire.WithHint(fmt.Errorf("prune %s: %w: no rule says what to keep", run, catalog.ErrInvalid), "give one, as --keep-last 3, or set the run's policy")
	}
	if err := r.Check(); err != nil {
		return fmt.Errorf("prune %s: %w", run, err)
	}
	keep, remove, err := n.prune(ctx, run, *r, q.DryRun)
	if err != nil {
		return err
	}
	out := wire.Prune{DryRun: q.DryRun, Keep: []wire.PruneItem{}, Remove: []wire.PruneItem{}}
	for _, v := range keep {
		out.Keep = append(out.Keep, wire.PruneItem{Set: wire.SetOf(&v.Set), Why: v.Why})
	}
	for _, v := range remove {
		out.Remove = append(out.Remove, wire.PruneItem{Set: wire.SetOf(&v.Set), Why: v.Why})
		out.Freed += v.Set.Size
	}
	return reply(c, out)
}

func (n *Node) getPolicy(ctx context.Context, c *app.RequestContext) error {
	run, err := catalog.ParseRun(c.Query("run"))
	if err != nil {
		return err
	}
	p, err := n.cat.Policy(ctx, run)
	if err != nil {
		return err
	}
	return reply(c, wire.PolicyRequest{Run: string(run), Policy: p})
}

func (n *Node) postPolicy(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.PolicyRequest](c)
	if err != nil {
		return err
	}
	if err := n.checkPolicy(q.Policy); err != nil {
		return fmt.Errorf("policy of %s: %w", q.Run, err)
	}
	if err := n.cat.SetPolicy(ctx, catalog.Run(q.Run), q.Policy, time.Now()); err != nil {
		return err
	}
	if err := n.cat.Sync(ctx); err == nil {
		err = n.copyRun(ctx, catalog.Run(q.Run), false)
		if err == nil && n.remote != nil {
			err = n.copyRun(ctx, catalog.Run(q.Run), true)
		}
		n.setTrouble("records", err)
	}
	return reply(c, q)
}
