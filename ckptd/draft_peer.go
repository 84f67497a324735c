package ckptd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/cloudwego/hertz/pkg/app"
	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Between daemons, for a commit of drafts of several nodes:
//
//	GET  /v1/peer/draft?run=…&step=N      what that node has of it
//	POST /v1/peer/draft                   a draftAsk: one step of a commit
//
// Every ask means the same when it comes twice.

// draftAsk asks for one step of a commit.
type draftAsk struct {
	Do    string      `json:"do"` // freeze, promise, make, thaw; leads: is the order under way
	Run   catalog.Run `json:"run"`
	Step  int64       `json:"step"`
	Order string      `json:"order"`
	Set   *draftSet   `json:"set,omitempty"` // of a promise
}

const (
	draftAskTime = 10 * time.Second
	maxDraftAsk  = 64 << 20 // bytes of an ask, or of an answer
)

// farDraft is another node's draft as a participant.
type farDraft struct {
	n    *Node
	addr string
	run  catalog.Run
	step int64
	part draftPart
}

func (f farDraft) name() string { return f.part.Node }

func (f farDraft) ask(ctx context.Context, do, order string, set *draftSet) (frozen, error) {
	b, err := json.Marshal(draftAsk{do, f.run, f.step, order, set})
	if err != nil {
		return frozen{}, err
	}
	short, cancel := context.WithTimeout(ctx, draftAskTime)
	defer cancel()
	body, err := f.n.peers.call(short, http.MethodPost, f.addr, "/v1/peer/draft", nil, b)
	if err != nil {
		return frozen{}, err
	}
	defer body.Close()
	var res frozen
	if err := json.NewDecoder(io.LimitReader(body, maxBody)).Decode(&res); err != nil {
		return res, fmt.Errorf("node %s: %w: its answer: %v", f.part.Node, catalog.ErrUnavailable, err)
	}
	return res, nil
}

func (f farDraft) freeze(ctx context.Context, order string) (frozen, error) {
	return f.ask(ctx, "freeze", order, nil)
}

func (f farDraft) promise(ctx context.Context, order string, set draftSet) error {
	_, err := f.ask(ctx, "promise", order, &set)
	return err
}

func (f farDraft) carryOut(ctx context.Context, order string) error {
	_, err := f.ask(ctx, "make", order, nil)
	return err
}

func (f farDraft) thaw(ctx context.Context, order string) error {
	_, err := f.ask(ctx, "thaw", order, nil)
	return err
}

// leaderOf is the node that leads a commit.
func leaderOf(order string) string {
	node, _, _ := strings.Cut(order, " ")
	return node
}

// orderOver says that a commit is no longer under way: who leads it has said
// so. One that cannot be asked is not over.
func (n *Node) orderOver(ctx context.Context, order string) bool {
	leader := leaderOf(order)
	if leader == n.cfg.Name {
		return !n.drafts.leads(order)
	}
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return false
	}
	for _, node := range nodes {
		if node.Name == leader && node.Addr != "" {
			res, err := (farDraft{n: n, addr: node.Addr, part: draftPart{Node: leader}}).ask(ctx, "leads", order, nil)
			return err == nil && !res.Ready
		}
	}
	return false
}

// farDrafts asks the other nodes for their drafts of a step. One that does not
// answer is an error, unless it is said how much there has to be.
func (n *Node) farDrafts(ctx context.Context, o commitOrder) ([]farDraft, error) {
	nodes, err := n.cat.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	found := make([]*farDraft, len(nodes))
	var g errgroup.Group
	g.SetLimit(16)
	for i, node := range nodes {
		if node.Name == n.cfg.Name || node.Addr == "" || !n.alive(node) {
			continue
		}
		g.Go(func() error {
			short, cancel := context.WithTimeout(ctx, draftAskTime)
			defer cancel()
			b, err := n.peers.get(short, node.Addr, "/v1/peer/draft", url.Values{"run": {string(o.Run)}, "step": {strconv.FormatInt(o.Step, 10)}}, maxDraftAsk)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			var part draftPart
			if err == nil {
				err = json.Unmarshal(b, &part)
			}
			if err == nil && part.Node != node.Name {
				err = fmt.Errorf("%w: it calls itself %.80q", catalog.ErrUnavailable, part.Node)
			}
			switch {
			case err == nil:
				found[i] = &farDraft{n: n, addr: node.Addr, run: o.Run, step: o.Step, part: part}
			case o.Alone || o.World > 0 || o.Nodes > 0:
				n.log.Warn("node not asked for its draft", "node", node.Name, "err", err)
			default:
				return wire.WithHint(fmt.Errorf("node %s: %w", node.Name, err), "it may have files of the set; say how many there must be (--world, or --nodes) to go on without asking it")
			}
			return nil
		})
	}
	err = g.Wait()
	var far []farDraft
	for _, f := range found {
		if f != nil {
			far = append(far, *f)
		}
	}
	return far, err
}

// draftRoutes are the other side.
func (n *Node) draftRoutes(r routes) {
	r.get("/v1/peer/draft", func(_ context.Context, c *app.RequestContext) error {
		step, err := strconv.ParseInt(c.Query("step"), 10, 64)
		if err != nil {
			return fmt.Errorf("step %.40q: %w", c.Query("step"), catalog.ErrInvalid)
		}
		d, err := n.draftOf(catalog.Run(c.Query("run")), step)
		if err != nil {
			return err
		}
		return reply(c, d.part())
	})
	r.post("/v1/peer/draft", func(ctx context.Context, c *app.RequestContext) error {
		q, err := body[draftAsk](c)
		if err != nil {
			return err
		}
		if q.Order == "" {
			return fmt.Errorf("draft: %w: the commit has no name", catalog.ErrInvalid)
		}
		if q.Do == "leads" {
			return reply(c, frozen{Ready: n.drafts.leads(q.Order)})
		}
		found, err := n.draftOf(q.Run, q.Step)
		if errors.Is(err, fs.ErrNotExist) && (q.Do == "thaw" || q.Do == "make") {
			return reply(c, frozen{}) // it came before
		}
		if err != nil {
			return err
		}
		d := nearDraft{found}
		var res frozen
		switch q.Do {
		case "freeze":
			res, err = d.freeze(ctx, q.Order)
		case "promise":
			if err := checkPromise(q); err != nil {
				return err
			}
			set := *q.Set
			set.Prepared = time.Now() // by this node's clock, which judges it
			err = d.promise(ctx, q.Order, set)
		case "make":
			err = d.carryOut(ctx, q.Order)
		case "thaw":
			err = d.thaw(ctx, q.Order)
		default:
			return fmt.Errorf("draft: %w: do %.40q", catalog.ErrInvalid, q.Do)
		}
		if err != nil {
			return err
		}
		return reply(c, res)
	})
}

// checkPromise refuses a promise that could not be kept.
func checkPromise(q draftAsk) error {
	bad := func(why string) error { return fmt.Errorf("draft: %w: a promise of %s", catalog.ErrInvalid, why) }
	if q.Set == nil || q.Set.ID.Run != q.Run || q.Set.ID.Step != q.Step || q.Set.ID.Check() != nil {
		return bad("another set")
	}
	taken := make(map[int]bool)
	for name, rank := range q.Set.Ranks {
		info := catalog.ShardInfo{Set: q.Set.ID, Rank: rank, World: q.Set.World, File: name}
		if err := info.Check(); err != nil {
			return bad(err.Error())
		}
		if taken[rank] {
			return bad(fmt.Sprintf("two files of rank %d", rank))
		}
		taken[rank] = true
	}
	return nil
}

// postCommit commits drafts and answers when their set is visible.
func (n *Node) postCommit(ctx context.Context, c *app.RequestContext) error {
	q, err := body[wire.CommitRequest](c)
	if err != nil {
		return err
	}
	ref, err := catalog.ParseRef(q.Ref)
	if err != nil {
		return err
	}
	if ref.Step == catalog.Latest || ref.Attempt != 0 || ref.Level != catalog.LevelNone {
		return fmt.Errorf("commit %.200q: %w: want RUN@STEP", q.Ref, catalog.ErrInvalid)
	}
	if q.World < 0 || q.Nodes < 0 {
		return fmt.Errorf("commit %s: %w: world or nodes is negative", q.Ref, catalog.ErrInvalid)
	}
	return long(c, func(progress func(wire.Progress)) (wire.Set, error) {
		rec, err := n.commitDrafts(ctx, commitOrder{Run: ref.Run, Step: ref.Step, World: q.World, Nodes: q.Nodes, Launch: q.Launch, Metrics: q.Metrics}, progress)
		if err != nil {
			return wire.Set{}, err
		}
		return wire.SetOf(&rec), nil
	})
}
