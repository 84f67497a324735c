package catalog

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// TargetState is how the cluster treats a target of the remote tier.
type TargetState string

const (
	TargetUp       TargetState = "up"       // read and written; "" means the same
	TargetSuspect  TargetState = "suspect"  // read; written only when there is no better one
	TargetDown     TargetState = "down"     // not written, read last; its columns are rebuilt elsewhere
	TargetDraining TargetState = "draining" // read, takes no new columns: they move away
	TargetDrained  TargetState = "drained"  // nothing is left on it; it may be removed
)

// OrUp is the state, with "" told as what it means.
func (s TargetState) OrUp() TargetState { return cmp.Or(s, TargetUp) }

// Kept says that somebody ordered the state: probes leave it alone.
func (s TargetState) Kept() bool { return s == TargetDraining || s == TargetDrained }

// TargetActor is who changes a target's state.
type TargetActor int

const (
	ByHealth   TargetActor = iota // probes and heartbeats, judged by the coordinator
	ByOperator                    // a person
	ByDrain                       // the duty that moves columns away
)

// mayBecome says which states an actor may put after s.
func (s TargetState) mayBecome(next TargetState, by TargetActor) bool {
	healthy := func(s TargetState) bool { return s == TargetUp || s == TargetSuspect || s == TargetDown }
	s, next = s.OrUp(), next.OrUp()
	switch by {
	case ByHealth:
		return healthy(s) && healthy(next)
	case ByOperator: // begins a drain, or takes it back
		return healthy(s) && next == TargetDraining || s.Kept() && next == TargetUp
	case ByDrain:
		return s == TargetDraining && next == TargetDrained || s == TargetDrained && next == TargetDraining // a Put that was under way ended there
	}
	return false
}

// Limits of the target map. A record of the longest of everything is about
// 3 KB; UpdateTargets refuses a map that does not fit a record of the store.
const (
	MaxTargets     = 1024
	MaxTargetAddrs = 8
	MaxTargetName  = 64   // bytes, also of a pool and a domain
	maxTargetAddr  = 1024 // bytes
)

// TargetRecord is a member of the cluster's remote tier. Its name is unique
// for ever, because columns and places hold it: two records may share one only
// when each is reached by its own node alone.
type TargetRecord struct {
	Name   string      `json:"name"`
	Pool   string      `json:"pool,omitempty"`   // that a blob's columns are placed in; "" is the default one
	Domain string      `json:"domain,omitempty"` // what fails together with it
	Scheme string      `json:"scheme"`           // tcp, tls, ofi, dir, posix or s3
	Addrs  []string    `json:"addrs"`            // HOST:PORT each, several ways to the same; of dir, posix and s3 the one path or URL
	Node   string      `json:"node,omitempty"`   // the only node that reaches it; "": all do
	Weight float64     `json:"weight,omitempty"` // its share of new columns relative to the others; 0 stands for 1
	State  TargetState `json:"state"`
	Since  time.Time   `json:"since"`            // of the state
	Reason string      `json:"reason,omitempty"` // of the state, for people
	Added  time.Time   `json:"added"`
	By     string      `json:"by"`              // who entered it: BySelf, ByPerson, or the node whose flags name it
	ID     string      `json:"id,omitempty"`    // of the directory, so that another of the same name is told from it
	Claim  string      `json:"claim,omitempty"` // of the process that registered itself and beats; "": nobody beats
}

// Who entered a target, when it was no node's flags. No node has such a name.
const (
	BySelf   = "(target)"
	ByPerson = "(operator)"
)

// targetSchemes are the ways to a target, and whether it has several addresses.
var targetSchemes = map[string]bool{"tcp": true, "tls": true, "ofi": true, "dir": false, "posix": false, "s3": false}

// Beats says that the target's own process writes its status.
func (r *TargetRecord) Beats() bool { return r.Claim != "" }

// Same says whether o is a record of the same member.
func (r *TargetRecord) Same(o *TargetRecord) bool { return r.Name == o.Name && r.Node == o.Node }

// Check reports what is wrong with the record, if anything.
func (r *TargetRecord) Check() error {
	if err := CheckTargetName(r.Name); err != nil {
		return err
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("target %s: %w: %s", r.Name, ErrInvalid, fmt.Sprintf(format, args...))
	}
	several, known := targetSchemes[r.Scheme]
	switch {
	case !known:
		return bad("scheme %.20q is unknown; tcp, tls, ofi, dir, posix and s3 are", r.Scheme)
	case len(r.Addrs) == 0 || len(r.Addrs) > MaxTargetAddrs || !several && len(r.Addrs) > 1:
		return bad("%d addresses; want 1 to %d, and of dir, posix and s3 one", len(r.Addrs), MaxTargetAddrs)
	case r.Pool != "" && CheckTargetName(r.Pool) != nil:
		return bad("pool %.80q; want 1 to %d letters, digits and any of -_.:@/", r.Pool, MaxTargetName)
	case r.Domain != "" && CheckTargetName(r.Domain) != nil:
		return bad("domain %.80q; want 1 to %d letters, digits and any of -_.:@/", r.Domain, MaxTargetName)
	case r.Node != "" && CheckNode(r.Node) != nil:
		return bad("node %.80q", r.Node)
	case r.Scheme == "dir" && r.Node == "":
		return bad("a directory belongs to one node, and none is named; serve it with `ckptd target` to share it")
	case !(r.Weight >= 0 && r.Weight <= 1e9): // NaN too
		return bad("weight %v; want 0 to 1e9", r.Weight)
	case r.By != BySelf && r.By != ByPerson && CheckNode(r.By) != nil:
		return bad("it was entered by %.80q", r.By)
	case len(r.Reason) > maxText || len(r.ID) > maxText || len(r.Claim) > maxText:
		return bad("reason, id or claim longer than %d bytes", maxText)
	}
	for _, a := range r.Addrs {
		if !validAddr(a) {
			return bad("address %.80q; want 1 to %d bytes, printable", a, maxTargetAddr)
		}
	}
	switch r.State {
	case TargetUp, TargetSuspect, TargetDown, TargetDraining, TargetDrained:
		return nil
	}
	return bad("state %.20q is unknown", r.State)
}

// validAddr says whether an address comes back from a record as it went in,
// and from a terminal.
func validAddr(a string) bool {
	return a != "" && len(a) <= maxTargetAddr && utf8.ValidString(a) && !strings.ContainsFunc(a, func(c rune) bool { return !unicode.IsPrint(c) })
}

// SetState moves the target to a state, if by may do that. The state it is in
// already is no change.
func (r *TargetRecord) SetState(next TargetState, by TargetActor, reason string, now time.Time) error {
	if r.State.OrUp() == next.OrUp() {
		return nil
	}
	if !r.State.mayBecome(next, by) {
		hint := ""
		switch {
		case by == ByDrain:
			hint = "; only one that is being drained becomes that, or that again"
		case r.State.Kept():
			hint = "; take the drain back first"
		}
		return fmt.Errorf("target %s: %w: it is %s, and does not become %s so%s", r.Name, ErrConflict, r.State, next, hint)
	}
	r.State, r.Since, r.Reason = next, now, strings.ToValidUTF8(reason[:min(len(reason), maxText)], "")
	return nil
}

// TargetMap is who belongs to the remote tier: one record, so that one look
// tells all of it, and every change has a number.
type TargetMap struct {
	Version int64          `json:"version"` // grows with each change; 0: nobody was ever in it
	Targets []TargetRecord `json:"targets"` // by name and node
}

// valid says whether the record may stand under key.
func (m *TargetMap) valid(key string) error {
	if err := m.check(); err != nil {
		return err
	}
	return ofKey(key, targetMapKey)
}

func (m *TargetMap) check() error {
	if m.Version < 0 || m.Version == math.MaxInt64 || len(m.Targets) > MaxTargets {
		return fmt.Errorf("%w: version %d, %d targets; at most %d", ErrInvalid, m.Version, len(m.Targets), MaxTargets)
	}
	for i := range m.Targets {
		r := &m.Targets[i]
		if err := r.Check(); err != nil {
			return err
		}
		if i == 0 {
			continue
		}
		last := &m.Targets[i-1]
		switch c := compareTargets(*last, *r); {
		case c > 0:
			return errors.New("the targets are not in order")
		case c == 0, last.Name == r.Name && last.Node == "":
			return fmt.Errorf("target %s: %w: two have this name; give one of them another", r.Name, ErrConflict)
		}
	}
	return nil
}

func compareTargets(a, b TargetRecord) int {
	return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Node, b.Node))
}

// Find gives the member of that name that node reaches: the shared one, or its
// own; nil if there is none.
func (m *TargetMap) Find(name, node string) *TargetRecord {
	for i := range m.Targets {
		if r := &m.Targets[i]; r.Name == name && (r.Node == "" || r.Node == node) {
			return r
		}
	}
	return nil
}

// clone copies the map deeply: a change that is given up leaves nothing.
func (m *TargetMap) clone() TargetMap {
	c := TargetMap{Version: m.Version, Targets: slices.Clone(m.Targets)}
	for i := range c.Targets {
		c.Targets[i].Addrs = slices.Clone(c.Targets[i].Addrs)
	}
	return c
}

// TargetStatus is what the process of a target, or for a target without one
// the node that reaches it, says now and then. It decides nothing by itself.
type TargetStatus struct {
	Name    string        `json:"name"`
	Node    string        `json:"node,omitempty"`  // as in the target's record
	Claim   string        `json:"claim,omitempty"` // as in the target's record: which process says this
	Started time.Time     `json:"started"`
	Seen    time.Time     `json:"seen"`              // by the writer's clock
	Beat    int64         `json:"beat"`              // grows with each; who waits for the next needs no clock
	Every   time.Duration `json:"every"`             // between two, ns
	Stopped bool          `json:"stopped,omitempty"` // it ended as it should; no more will come
	Total   int64         `json:"total"`             // bytes
	Free    int64         `json:"free"`              // bytes
	Columns int64         `json:"columns"`           // that lie on it; -1: not counted yet
	Errors  int64         `json:"errors"`            // of its disk, since it was started
	Corrupt int64         `json:"corrupt"`           // columns it refused because they did not fit their sums
	Failed  int64         `json:"failed"`            // requests answered with an error
	Puts    int           `json:"puts"`              // columns being written
	Latency time.Duration `json:"latency"`           // of its disk, asked for its room, ns
	Trouble string        `json:"trouble,omitempty"` // what is wrong with it, for people
}

// valid says whether the record may stand under key.
func (s *TargetStatus) valid(key string) error {
	if err := CheckTargetName(s.Name); err != nil {
		return err
	}
	if s.Total < 0 || s.Free < 0 || s.Beat < 0 || s.Every < 0 || s.Columns < -1 || len(s.Trouble) > maxDetail {
		return errors.New("a number or text out of range")
	}
	return ofKey(key, targetStatusKey(s.Name, s.Node))
}
