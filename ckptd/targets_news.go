package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
)

// TargetNews listens to a remote tier for what a node says about its targets.
type TargetNews struct {
	log *slog.Logger
	mu  struct {
		sync.Mutex
		full   map[string]bool        // refused a column for want of room
		failed map[string][]time.Time // operations that it failed lately, at most enough to be sick
	}
}

// A target that answers, and fails what it is asked to do, is sick: so many
// failures within so long.
const (
	sickFailures = 3
	sickWithin   = time.Minute
)

// NewTargetNews makes a TargetNews.
func NewTargetNews(log *slog.Logger) *TargetNews {
	n := &TargetNews{log: log}
	n.mu.full = make(map[string]bool)
	n.mu.failed = make(map[string][]time.Time)
	return n
}

// Trace is what to give the tier.
func (n *TargetNews) Trace() remotetier.Trace {
	return remotetier.Trace{
		TargetFailed: func(target, blob string, err error) {
			n.log.Warn("a target was given up for a blob", "target", target, "blob", blob, "err", err)
			if errors.Is(err, catalog.ErrNoSpace) {
				n.setFull(target, true)
			} else {
				n.count(target, err)
			}
		},
		Replanned: func(blob string, column int, from, to string, err error) {
			n.log.Info("a column goes to another target", "blob", blob, "column", column, "from", from, "to", to, "err", err)
		},
		Crowded: func(target, blob string) {
			n.log.Warn("a target got several columns of a blob, for want of others", "target", target, "blob", blob)
		},
		Degraded: func(blob string, column int, target string, err error) {
			n.log.Warn("a column is missing or bad; the others are read", "blob", blob, "column", column, "target", target, "err", err)
			n.count(target, err)
		},
		Leftover: func(target, blob string, err error) {
			n.log.Info("a column that should be gone is left for later", "target", target, "blob", blob, "err", err)
		},
	}
}

// count notes a failure that is the target's: of its disk, say. What is not
// there or damaged is the column's, and a caller may give up.
func (n *TargetNews) count(target string, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || catalog.ClassOf(err) != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	all := append(n.mu.failed[target], time.Now())
	n.mu.failed[target] = all[max(0, len(all)-sickFailures):]
}

// sick says that a target failed too much lately.
func (n *TargetNews) sick(target string) bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	all := n.mu.failed[target]
	return len(all) == sickFailures && time.Since(all[0]) < sickWithin
}

func (n *TargetNews) setFull(target string, full bool) {
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if full {
		n.mu.full[target] = true
	} else {
		delete(n.mu.full, target)
	}
}

func (n *TargetNews) isFull(target string) bool {
	if n == nil {
		return false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.full[target]
}

// targetMetrics writes what this node saw of each target it uses, in the
// Prometheus text format.
func (n *Node) targetMetrics(w io.Writer) {
	used := n.tgt.snapshot()
	for _, metric := range []struct {
		name, help string
		of         func(*usedTarget, *probeView) any
	}{
		{"ckptd_target_up", "1 for a target that is up and answers this node.", func(t *usedTarget, v *probeView) any {
			if t.State.OrUp() == catalog.TargetUp && v.err == nil {
				return 1
			}
			return 0
		}},
		{"ckptd_target_full", "1 for a target that new columns find no room on.", func(_ *usedTarget, v *probeView) any {
			if v.full() {
				return 1
			}
			return 0
		}},
		{"ckptd_target_free_bytes", "Bytes that are free on a target.", func(_ *usedTarget, v *probeView) any { return v.space.Free }},
		{"ckptd_target_total_bytes", "Bytes of a target.", func(_ *usedTarget, v *probeView) any { return v.space.Total }},
		{"ckptd_target_latency_seconds", "Time that a target took for the last small question.", func(_ *usedTarget, v *probeView) any { return v.latency.Seconds() }},
	} {
		fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s gauge\n", metric.name, metric.help, metric.name)
		for _, t := range used {
			if v, ok := n.view(t.Name); ok {
				fmt.Fprintf(w, "%s{target=%q} %v\n", metric.name, t.Name, metric.of(t, &v))
			}
		}
	}
}
