package ckptd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/targettest"
)

// plug is a target that can be pulled out.
type plug struct {
	remotetier.Target
	of     *plug // the place that this is a way to; nil: it is the place
	mu     sync.Mutex
	away   bool
	closed bool
}

func (p *plug) Space(ctx context.Context) (remotetier.Space, error) {
	if p.of != nil {
		if s, err := p.of.Space(ctx); err != nil {
			return s, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.away {
		return remotetier.Space{}, fmt.Errorf("pulled out: %w", catalog.ErrUnavailable)
	}
	return p.Target.Space(ctx)
}

func (p *plug) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

// Idle lets a retired one be closed at once.
func (p *plug) Idle() time.Duration { return time.Hour }

func (p *plug) pull(away bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.away = away
}

// cluster is nodes that follow one target map, and targets that register in it.
type cluster struct {
	t     *testing.T
	fault *catalogtest.Fault
	cat   *catalog.Catalog
	nodes []*Node
	ctx   context.Context
	stop  func()

	mu    sync.Mutex
	there map[string]*plug // by address
	made  []*plug
	beats map[string]bool // targets whose process lives
}

func newCluster(t *testing.T, nodes int) *cluster {
	t.Helper()
	f := catalogtest.NewFault(catalogtest.Mem())
	c := &cluster{t: t, fault: f, cat: catalog.New(f, f), there: map[string]*plug{}, beats: map[string]bool{}}
	ctx, cancel := context.WithCancel(t.Context())
	c.ctx = ctx
	var wg sync.WaitGroup
	for i := range nodes {
		n, close := c.node(fmt.Sprintf("n%d", i+1), Targets{Follow: true, News: NewTargetNews(slog.New(slog.DiscardHandler))})
		defer func() { t.Cleanup(close) }()
		for _, duty := range []func(context.Context) error{
			n.cat.Run, n.followTargets, n.probeTargets, n.campaign,
			func(ctx context.Context) error { return n.loop(ctx, "heartbeat", n.kickBeat, n.cfg.Heartbeat, n.beat) },
		} {
			wg.Go(func() { _ = duty(ctx) })
		}
	}
	wg.Go(func() { c.heartbeats(ctx) })
	c.stop = func() {
		cancel()
		wg.Wait()
		for _, n := range c.nodes {
			if err := n.closeTargets(); err != nil {
				t.Error(err)
			}
		}
		for _, p := range c.made {
			if !p.closed {
				t.Errorf("target %s was left open", p.Name())
			}
		}
	}
	return c
}

func (c *cluster) node(name string, targets Targets) (*Node, func()) {
	c.t.Helper()
	local, err := localtier.Open(vfstest.New(vfstest.Options{}), localtier.Options{Dirs: []string{"/disk"}, Quota: 1 << 30})
	if err != nil {
		c.t.Fatal(err)
	}
	targets.Open, targets.Make = c.open, c.open
	n, err := New(Config{Name: name, Log: slog.New(slog.DiscardHandler)},
		Tiers{Catalog: catalog.New(c.fault, c.fault), Local: local, Remote: remotetier.New(nil, remotetier.Options{}), Targets: targets})
	if err != nil {
		c.t.Fatal(err)
	}
	c.nodes = append(c.nodes, n)
	return n, func() { _ = local.Close() }
}

// open is how a daemon gets at a target of the map.
func (c *cluster) open(_ context.Context, r catalog.TargetRecord) (OpenTarget, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.there[r.Addrs[0]]
	if at == nil {
		return nil, fmt.Errorf("%s: %w: no such place", r.Addrs[0], catalog.ErrInvalid)
	}
	p := &plug{Target: at.Target, of: at}
	c.made = append(c.made, p)
	return p, nil
}

// register lets a target's process start at an address.
func (c *cluster) register(name, addr string) *plug {
	c.t.Helper()
	c.mu.Lock()
	p := c.there[addr]
	if p == nil {
		p = &plug{Target: targettest.NewMem(name)}
		c.there[addr] = p
	}
	c.beats[name] = true
	c.mu.Unlock()
	c.change(func(m *catalog.TargetMap) error {
		return m.Register(catalog.TargetRecord{Name: name, Scheme: "tcp", Addrs: []string{addr}, ID: "id of " + name, Claim: addr}, false, time.Now())
	})
	return p
}

func (c *cluster) change(f func(*catalog.TargetMap) error) catalog.TargetMap {
	c.t.Helper()
	m, err := c.cat.UpdateTargets(c.t.Context(), f)
	if err != nil {
		c.t.Fatal(err)
	}
	return m
}

// heartbeats are those of all targets that live.
func (c *cluster) heartbeats(ctx context.Context) {
	for {
		m, err := c.cat.Targets(ctx)
		for _, r := range m.Targets {
			c.mu.Lock()
			lives := c.beats[r.Name]
			c.mu.Unlock()
			if err == nil && lives {
				_ = c.cat.PutTargetStatus(ctx, catalog.TargetStatus{Name: r.Name, Claim: r.Claim, Seen: time.Now(), Every: 5 * time.Second}) // the next one comes
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(5 * time.Second):
		}
	}
}

// kill ends a target's process; start is its end.
func (c *cluster) kill(name, addr string, dead bool) {
	c.mu.Lock()
	c.beats[name] = !dead
	p := c.there[addr]
	c.mu.Unlock()
	p.pull(dead)
}

// states tells what the map and each node's remote tier say of the targets.
func (c *cluster) states() string {
	c.t.Helper()
	m, err := c.cat.Targets(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	var all []string
	for _, r := range m.Targets {
		all = append(all, r.Name+" "+string(r.State))
	}
	said := strings.Join(all, ", ")
	for _, n := range c.nodes {
		all = all[:0]
		for _, s := range n.remote.Targets(c.t.Context()) {
			all = append(all, s.Name+" "+string(s.State))
		}
		if used := strings.Join(all, ", "); used != said {
			said += "; " + n.cfg.Name + " uses " + used
		}
	}
	return said
}

func (c *cluster) want(when, want string) {
	c.t.Helper()
	synctest.Wait()
	if got := c.states(); got != want {
		c.t.Errorf("%s: %s, want %s", when, got, want)
	}
}

func (c *cluster) version() int64 {
	m, err := c.cat.Targets(c.t.Context())
	if err != nil {
		c.t.Fatal(err)
	}
	return m.Version
}

// Members come, die, come back, move and go while three nodes run.
func TestTargetsFollowTheMap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.stop()
		late, end := c.node("late", Targets{Follow: true})
		if err := late.wholeRemote(); !errors.Is(err, catalog.ErrUnavailable) {
			t.Errorf("before the map is known, what is missing would count as gone: %v", err)
		}
		end()
		c.nodes = c.nodes[:3]
		c.register("a", "h:1")
		c.register("b", "h:2")
		c.want("two have registered", "a up, b up")
		for _, n := range c.nodes {
			if p := n.pool(""); p.Targets != 2 || n.defaultSpec("") != "1+1" {
				t.Errorf("%s: pool %+v, layout %s", n.cfg.Name, p, n.defaultSpec(""))
			}
		}
		time.Sleep(time.Minute)
		quiet := c.version()
		c.kill("a", "h:1", true)
		time.Sleep(20 * time.Second)
		c.want("20 s after a died", "a suspect, b up")
		time.Sleep(40 * time.Second)
		c.want("a minute after a died", "a down, b up")
		if n := c.nodes[0]; n.defaultSpec("") != "1+1" {
			t.Errorf("with one of two down the layout is %s: fewer may be lost", n.defaultSpec(""))
		}
		c.kill("a", "h:1", false)
		time.Sleep(20 * time.Second)
		c.want("after a came back", "a up, b up")
		if v := c.version(); v != quiet+3 {
			t.Errorf("%d versions for suspect, down and up", v-quiet)
		}
		old := slices.Clone(c.made)
		c.register("a", "h:3")
		c.want("after a moved", "a up, b up")
		time.Sleep(2 * time.Minute)
		for _, p := range old {
			p.mu.Lock()
			if p.Name() == "a" && !p.closed {
				t.Error("the old way to a is still open")
			}
			p.mu.Unlock()
		}
		c.change(func(m *catalog.TargetMap) error {
			return m.Find("b", "").SetState(catalog.TargetDraining, catalog.ByOperator, "", time.Now())
		})
		c.kill("b", "h:2", true)
		time.Sleep(5 * time.Minute)
		c.want("a dead one that is being drained", "a up, b draining")
		c.change(func(m *catalog.TargetMap) error { return m.Remove("b", "", true) })
		c.want("after b was taken out", "a up")
	})
}

// What only one node sees makes a target suspect, and never down.
func TestTargetCutFromTheCoordinator(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.stop()
		c.register("a", "h:1")
		time.Sleep(time.Minute)
		leader := slices.IndexFunc(c.nodes, func(n *Node) bool { return n.leader() == n.cfg.Name })
		if leader < 0 {
			t.Fatal("nobody leads")
		}
		c.nodes[leader].tgt.snapshot()[0].open.(*plug).pull(true)
		time.Sleep(5 * time.Minute)
		c.want("the coordinator alone is cut off", "a suspect")
		c.nodes[leader].tgt.snapshot()[0].open.(*plug).pull(false)
		time.Sleep(time.Minute)
		c.want("and no more", "a up")
	})
}

// While the catalog is away nobody is heard, and that says nothing about
// targets; nodes go on with the map they know.
func TestTargetsWhileTheCatalogIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 2)
		defer c.stop()
		c.register("a", "h:1")
		time.Sleep(time.Minute)
		before := c.version()
		c.fault.SetDown(true)
		time.Sleep(10 * time.Minute)
		for _, n := range c.nodes {
			if s := n.remote.Targets(t.Context()); len(s) != 1 || s[0].State != catalog.TargetUp {
				t.Errorf("%s uses %+v", n.cfg.Name, s)
			}
		}
		c.fault.SetDown(false)
		time.Sleep(time.Minute)
		c.want("after the catalog came back", "a up")
		if v := c.version(); v != before {
			t.Errorf("the map changed %d times", v-before)
		}
	})
}

// The flags' targets are entered in the map, also in a new one; one that is
// taken out is not used any more.
func TestGivenTargetsAreEntered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 0)
		p := &plug{Target: targettest.NewMem("t0")}
		q := &plug{Target: targettest.NewMem("t1")}
		n, close := c.node("n1", Targets{Given: []GivenTarget{
			{catalog.TargetRecord{Name: "t0", Scheme: "dir", Addrs: []string{"/t0"}, Node: "n1", By: "n1"}, p},
			{catalog.TargetRecord{Name: "t1", Scheme: "dir", Addrs: []string{"/t1"}, Node: "n1", By: "n1"}, q},
		}})
		defer close()
		if p := n.pool(""); p.Targets != 2 {
			t.Errorf("before the map is known: %+v", p)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { _ = n.cat.Run(ctx) })
		wg.Go(func() { _ = n.followTargets(ctx) })
		defer func() { cancel(); wg.Wait(); c.stop() }()
		c.want("after the start", "t0 up, t1 up")
		c.change(func(m *catalog.TargetMap) error { return m.Remove("t0", "n1", true) })
		time.Sleep(time.Minute)
		c.want("after one was taken out", "t1 up")
		rec, err := c.fault.Get(t.Context(), "targets")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.fault.Swap(t.Context(), "targets", rec.Rev, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c.want("after the catalog was lost", "t0 up, t1 up")
		if p.closed || q.closed {
			t.Error("a target of the flags was closed by the node")
		}
	})
}

// A member that this daemon cannot open is no reason not to use the others.
func TestTargetThatCannotBeOpened(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.stop()
		c.register("a", "h:1")
		c.change(func(m *catalog.TargetMap) error {
			return m.Add(catalog.TargetRecord{Name: "odd", Scheme: "posix", Addrs: []string{"/nowhere"}}, time.Now())
		})
		time.Sleep(time.Minute)
		n := c.nodes[0]
		if p := n.pool(""); p.Targets != 1 {
			t.Errorf("pool %+v", p)
		}
		if said := strings.Join(n.troubles(), "\n"); !strings.Contains(said, "odd") {
			t.Errorf("trouble: %s", said)
		}
		if err := n.wholeRemote(); !errors.Is(err, catalog.ErrUnavailable) || !strings.Contains(err.Error(), "odd") {
			t.Errorf("what is missing would count as gone: %v", err)
		}
		c.change(func(m *catalog.TargetMap) error { return m.Remove("odd", "", true) })
		synctest.Wait()
		if err := n.wholeRemote(); err != nil {
			t.Errorf("with all that there are: %v", err)
		}
		if err := n.checkPolicy(catalog.Policy{Layout: "8+2"}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "needs 10 targets") {
			t.Errorf("a layout that is too wide: %v", err)
		}
		if err := n.checkPolicy(catalog.Policy{Remote: "nowhere"}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("a pool that is not there: %v", err)
		}
	})
}

// A target that refused a column for want of room is full until it has room
// again: status says so, and default layouts do without it.
func TestTargetFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.stop()
		n := c.nodes[0]
		var mems []*targettest.Mem
		for i := range 6 {
			p := c.register(fmt.Sprintf("t%d", i), fmt.Sprintf("h:%d", i))
			mem := p.Target.(*targettest.Mem)
			mem.SetTotal(1 << 30)
			mems = append(mems, mem)
		}
		time.Sleep(time.Minute)
		if got := n.defaultSpec(""); got != "4+2" {
			t.Errorf("six with room: %s", got)
		}
		full := func() (names []string) {
			for _, r := range n.usedRows(t.Context()) {
				if r.Full && strings.Contains(r.Trouble, "full") {
					names = append(names, r.Name)
				}
			}
			return names
		}
		n.tgt.News.Trace().TargetFailed("t3", "blob", fmt.Errorf("create: %w", catalog.ErrNoSpace))
		time.Sleep(10 * time.Second)
		if got := full(); len(got) != 1 || got[0] != "t3" || n.defaultSpec("") != "3+2" {
			t.Errorf("after t3 refused a column: full are %v, layout %s", got, n.defaultSpec(""))
		}
		mems[3].SetTotal(2 << 30)
		time.Sleep(10 * time.Second)
		if got := full(); len(got) != 0 || n.defaultSpec("") != "4+2" {
			t.Errorf("after it got room: full are %v, layout %s", got, n.defaultSpec(""))
		}
	})
}

// A target that answers and fails what it is asked to do is suspect until a
// minute has passed without; what is wrong with a column is not its fault.
func TestTargetSick(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.stop()
		c.register("a", "h:1")
		c.register("b", "h:2")
		time.Sleep(time.Minute)
		trace := c.nodes[0].tgt.News.Trace()
		for range 9 {
			trace.Degraded("blob", 0, "b", fmt.Errorf("column: %w", catalog.ErrCorrupt))
			trace.TargetFailed("b", "blob", fmt.Errorf("put: %w", context.Canceled))
			trace.TargetFailed("a", "blob", errors.New("input/output error"))
		}
		time.Sleep(20 * time.Second)
		c.want("a fails", "a suspect, b up")
		time.Sleep(2 * time.Minute)
		c.want("a fails no more", "a up, b up")
	})
}

func TestBeatSeenCountsErrors(t *testing.T) {
	now := time.Unix(1e9, 0)
	b := beatSeen{since: now}
	for i, c := range []struct {
		after  time.Duration
		errors int64
		want   int64
	}{{time.Second, 0, 0}, {time.Second, 2, 2}, {time.Second, 5, 5}, {time.Minute, 6, 0}, {time.Second, 7, 1}, {time.Second, 1, 0}, {time.Second, 4, 3}} {
		now = now.Add(c.after)
		if got := b.hear(&catalog.TargetStatus{Beat: int64(i + 1), Errors: c.errors}, now); got != c.want || b.at != now {
			t.Errorf("step %d: %d errors, want %d", i, got, c.want)
		}
	}
}

// Two nodes whose flags give one name to two directories are told.
func TestTargetsOfOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 0)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for _, name := range []string{"n1", "n2"} {
			n, close := c.node(name, Targets{Given: []GivenTarget{
				{catalog.TargetRecord{Name: "t0", Scheme: "dir", Addrs: []string{"/t0"}, Node: name, By: name}, &plug{Target: targettest.NewMem("t0")}},
			}})
			defer close()
			wg.Go(func() { _ = n.cat.Run(ctx) })
			wg.Go(func() { _ = n.followTargets(ctx) })
		}
		defer func() { cancel(); wg.Wait(); c.stop() }()
		time.Sleep(time.Minute)
		for _, n := range c.nodes {
			if said := strings.Join(n.troubles(), "\n"); !strings.Contains(said, "cannot tell them apart") {
				t.Errorf("%s: trouble: %s", n.cfg.Name, said)
			}
		}
	})
}
