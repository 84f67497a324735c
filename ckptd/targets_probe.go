package ckptd

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// probeView is what this node saw of a target it uses.
type probeView struct {
	at      time.Time // of the last answer, or of its absence
	err     error     // nil: it answered
	misses  int       // in a row
	space   remotetier.Space
	latency time.Duration
	fullAt  int64 // bytes that were free when it refused a column for want of room; -1: it did not
	sick    bool  // it answers, and fails what it is asked to do
}

// Limits of probing.
const (
	probeAtOnce = 64
	probeMost   = 5 * time.Second // for one answer
	missesFail  = 2               // probes in a row without an answer
	fullShare   = 50              // a target of which less than one part in so many is free is full
)

// probeTargets asks every target in use how it is, every so often, until ctx ends.
func (n *Node) probeTargets(ctx context.Context) error {
	if n.remote == nil || !n.tgt.dynamic() {
		return nil
	}
	for {
		if n.probeOnce(ctx) {
			n.tgt.kick.now()
			n.kickBeat.now() // the coordinator counts who reaches what
		}
		every := n.cfg.Probe
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every - every/8 + rand.N(every/4+1)): // nodes do not ask all at the same time
		}
	}
}

// probeOnce says whether another target fails, or fails no more, in this
// node's eyes.
func (n *Node) probeOnce(ctx context.Context) (changed bool) {
	used := n.tgt.snapshot()
	views := make([]probeView, len(used))
	slots := make(chan struct{}, probeAtOnce)
	var wg sync.WaitGroup
	for i, t := range used {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			short, cancel := context.WithTimeout(ctx, min(probeMost, max(n.cfg.Probe, time.Second)))
			defer cancel()
			begin := time.Now()
			v := &views[i]
			v.space, v.err = t.open.Space(short)
			v.at, v.latency = time.Now(), time.Since(begin)
			if v.err != nil && short.Err() != nil {
				v.err = fmt.Errorf("%w: no answer within %v", catalog.ErrUnavailable, v.latency.Round(time.Millisecond))
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return false
	}
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	next := make(map[string]*probeView, len(used))
	for i, t := range used {
		v, last := &views[i], n.tgt.mu.views[t.Name]
		if last == nil {
			last = &probeView{fullAt: -1}
		}
		if v.fullAt = last.fullAt; v.err != nil {
			v.misses, v.space = last.misses+1, last.space
		} else {
			n.judgeRoom(t.Name, v)
		}
		v.sick = n.tgt.News.sick(t.Name)
		changed = changed || last.failing() != v.failing()
		next[t.Name] = v
	}
	n.tgt.mu.views = next
	return changed
}

// judgeRoom follows a target that refused a column until it has room again.
func (n *Node) judgeRoom(name string, v *probeView) {
	switch {
	case v.fullAt < 0 && n.tgt.News.isFull(name):
		v.fullAt = v.space.Free
	case v.fullAt >= 0 && v.space.Free > v.fullAt+v.space.Total/fullShare:
		v.fullAt = -1
		n.tgt.News.setFull(name, false)
	}
}

// full says whether new columns find no room.
func (v *probeView) full() bool {
	return v.err == nil && v.space.Total > 0 && (v.fullAt >= 0 || v.space.Free < v.space.Total/fullShare)
}

// failing says that this node had better not write there.
func (v *probeView) failing() bool { return v.misses >= missesFail || v.sick }

// view is what this node saw of a target last; false: nothing yet.
func (n *Node) view(name string) (probeView, bool) {
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	if v := n.tgt.mu.views[name]; v != nil {
		return *v, true
	}
	return probeView{}, false
}

// failing says that this node cannot reach a target it uses, or that it fails.
func (n *Node) failing(name string) bool {
	v, ok := n.view(name)
	return ok && v.failing()
}

// maxUnreached bounds the names of targets in a node's record.
const maxUnreached = 64

// tellTargets adds to the node's record what it saw of its targets.
func (n *Node) tellTargets(r *catalog.NodeRecord) {
	used := n.tgt.snapshot()
	n.tgt.mu.Lock()
	defer n.tgt.mu.Unlock()
	r.Follows = n.tgt.mu.version
	for _, t := range used {
		v := n.tgt.mu.views[t.Name]
		if v == nil {
			continue
		}
		if t.given { // it may have no process that speaks for it
			s := catalog.TargetStatus{
				Name: t.Name, Node: t.Node, Started: n.started, Seen: v.at, Every: n.cfg.Heartbeat,
				Total: v.space.Total, Free: v.space.Free, Columns: -1, Latency: v.latency,
			}
			if v.err != nil {
				s.Trouble = fmt.Sprintf("%.200s", v.err)
			}
			r.Targets = append(r.Targets, s)
		}
		if v.err != nil {
			r.Unreached = append(r.Unreached, t.Name)
		}
	}
	for name := range n.tgt.mu.refused {
		r.Unreached = append(r.Unreached, name)
	}
	if more := len(r.Unreached) - maxUnreached; more > 0 {
		r.Unreached, r.UnreachedMore = r.Unreached[:maxUnreached], more
	}
}
