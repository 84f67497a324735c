package target

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	mrand "math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
)

// MemberOptions of a Member.
type MemberOptions struct {
	Scheme string        // tcp, tls or ofi; required
	Addrs  []string      // where clients reach the server, HOST:PORT each; required
	Pool   string        // "" is the default one, or the one it has
	Weight float64       // its share of new columns; 0 stands for 1, or what it has
	Every  time.Duration // between two heartbeats; default 5 s
	Trace  MemberTrace
}

// MemberTrace is told how it goes; nil fields are off.
type MemberTrace struct {
	// Joined: the target is a member, as of this version of the map.
	Joined func(version int64)
	// Away: the catalog could not be told; it is tried again after wait.
	Away func(err error, wait time.Duration)
	// Removed: somebody took the target out. It joins again when it is started again.
	Removed func(version int64)
}

// Member keeps a server's place in the target map, and its status.
type Member struct {
	srv     *Server
	cat     *catalog.Catalog
	opt     MemberOptions
	claim   string // of this process
	started time.Time
	version int64 // of the map, when it joined

	counted struct { // columns that lie on the directory
		sync.Mutex
		n  int64 // -1: not yet
		at Stats // when they were counted
	}
}

// NewMember makes a Member; Run does the work.
func NewMember(srv *Server, cat *catalog.Catalog, opt MemberOptions) *Member {
	if opt.Every <= 0 {
		opt.Every = 5 * time.Second
	}
	m := &Member{srv: srv, cat: cat, opt: opt, claim: rand.Text(), started: time.Now()}
	m.counted.n = -1
	return m
}

// maxWait bounds the pause after the catalog could not be told: who waits for
// heartbeats after the catalog was away must not wait longer than between two.
const maxWait = 15 * time.Second

// Run joins the cluster and says how the target is, until ctx ends; then it
// says that the target was stopped. It ends before only with ErrConflict: the
// name belongs to another directory, or to a process that lives; and with
// ErrInvalid. A target that was taken out of the map stays out, and Run waits
// for ctx.
func (m *Member) Run(ctx context.Context) error {
	var counting sync.WaitGroup
	defer counting.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	counting.Go(func() { m.count(ctx) })
	var backoff time.Duration
	joined := false
	for {
		var err error
		if joined {
			err = m.beat(ctx, false)
		} else if err = m.join(ctx); err == nil {
			joined = true
			continue // with a first heartbeat
		}
		wait := m.opt.Every
		switch {
		case ctx.Err() != nil:
		case err == nil:
			backoff = 0
		case joined && errors.Is(err, fs.ErrNotExist):
			out, cerr := m.takenOut(ctx)
			if cerr == nil && out {
				<-ctx.Done()
				return ctx.Err()
			}
			joined = cerr != nil // the catalog began anew: join again
			wait = 250 * time.Millisecond
		case errors.Is(err, catalog.ErrInvalid), errors.Is(err, catalog.ErrConflict) && !errors.Is(err, catalog.ErrRaced):
			return err
		default:
			backoff = min(max(2*backoff, 250*time.Millisecond), max(m.opt.Every, 250*time.Millisecond), maxWait)
			wait = backoff/2 + mrand.N(backoff)
			if f := m.opt.Trace.Away; f != nil {
				f(err, wait)
			}
		}
		select {
		case <-ctx.Done():
			m.bye(ctx) // also in the middle of joining: it may have been carried out
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// join enters the map, or says where the target is now.
func (m *Member) join(ctx context.Context) error {
	uid, err := m.srv.dir.UID()
	if err != nil {
		return err
	}
	r := catalog.TargetRecord{
		Name: m.srv.dir.Name(), Domain: m.srv.opt.Domain, Pool: m.opt.Pool, Weight: m.opt.Weight,
		Scheme: m.opt.Scheme, Addrs: m.opt.Addrs, ID: uid, Claim: m.claim,
	}
	for {
		now, err := m.cat.Targets(ctx)
		if err != nil {
			return err
		}
		other, alive := "", false
		if old := now.Find(r.Name, ""); old != nil && old.ID == uid {
			other = old.Claim
			if alive, err = m.lives(ctx, old); err != nil {
				return err
			}
		}
		now, err = m.cat.UpdateTargets(ctx, func(t *catalog.TargetMap) error {
			if old := t.Find(r.Name, ""); old != nil && old.Claim != other && old.Claim != m.claim && old.ID == uid {
				return errRaced
			}
			return t.Register(r, alive, time.Now())
		})
		if errors.Is(err, errRaced) {
			continue
		} else if err != nil {
			return err
		}
		m.version = now.Version
		if f := m.opt.Trace.Joined; f != nil {
			f(now.Version)
		}
		return nil
	}
}

var errRaced = errors.New("another process registered meanwhile")

// lives looks whether the process that has the name still beats. It trusts no
// clock but its own: it waits for three beats, unless that process has said
// that it ended, or this one listens where that one did.
func (m *Member) lives(ctx context.Context, r *catalog.TargetRecord) (bool, error) {
	if r.Claim == "" || r.Claim == m.claim || slices.ContainsFunc(r.Addrs, func(a string) bool { return slices.Contains(m.opt.Addrs, a) }) {
		return false, nil
	}
	first, err := m.cat.TargetStatus(ctx, r.Name, r.Node)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, catalog.ErrCorrupt) {
		first = catalog.TargetStatus{Claim: r.Claim, Every: m.opt.Every}
	} else if err != nil {
		return false, err
	}
	if first.Stopped || first.Claim != r.Claim {
		return false, nil
	}
	every := min(max(first.Every, 10*time.Millisecond), time.Minute)
	for range 6 {
		select {
		case <-ctx.Done():
			return false, ctx.Err()
		case <-time.After(every / 2):
		}
		next, err := m.cat.TargetStatus(ctx, r.Name, r.Node)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, err
		}
		if next.Claim == r.Claim && next.Beat != first.Beat {
			return !next.Stopped, nil
		}
	}
	return false, nil
}

// takenOut says whether the target was removed from the map that it joined.
// A map of a smaller version is another: the catalog was lost.
func (m *Member) takenOut(ctx context.Context) (bool, error) {
	now, err := m.cat.Targets(ctx)
	if err != nil || now.Version < m.version {
		return false, err
	}
	if f := m.opt.Trace.Removed; f != nil {
		f(now.Version)
	}
	return true, nil
}

// beat says how the target is.
func (m *Member) beat(ctx context.Context, stopped bool) error {
	st := m.srv.Stats()
	s := catalog.TargetStatus{
		Name: m.srv.dir.Name(), Claim: m.claim, Started: m.started, Every: m.opt.Every, Stopped: stopped,
		Errors: st.DiskErrs, Corrupt: st.Corrupt, Failed: st.Failed, Puts: st.Puts,
	}
	begin := time.Now()
	space, err := m.srv.dir.Space(ctx)
	s.Latency = time.Since(begin)
	if err != nil && ctx.Err() == nil {
		s.Trouble = fmt.Sprintf("its disk: %.200s", err)
		s.Errors++
	}
	s.Total, s.Free = max(0, space.Total), max(0, space.Free)
	s.Columns = m.columns(st)
	s.Seen = time.Now()
	return m.cat.PutTargetStatus(ctx, s)
}

// recount is how often columns are counted again by listing the directory, if
// there was any change; between, commits and removals are added up.
const recount = 10 * time.Minute

// count counts the columns, now and every so often until ctx ends. A listing
// that failed is tried again; the number stays what it was.
func (m *Member) count(ctx context.Context) {
	for {
		st, n, failed := m.srv.Stats(), int64(0), false
		m.counted.Lock()
		known := m.counted.n >= 0 && m.counted.at.Columns == st.Columns && m.counted.at.Removed == st.Removed
		m.counted.Unlock()
		if !known {
			for _, err := range m.srv.dir.List(ctx, "") {
				if failed = err != nil || ctx.Err() != nil; failed {
					break
				}
				n++
			}
			if !failed {
				m.counted.Lock()
				m.counted.n, m.counted.at = n, st
				m.counted.Unlock()
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(recount):
		}
	}
}

func (m *Member) columns(st Stats) int64 {
	c := &m.counted
	c.Lock()
	defer c.Unlock()
	if c.n < 0 {
		return -1
	}
	return max(0, c.n+st.Columns-c.at.Columns-(st.Removed-c.at.Removed))
}

// bye says that the target was stopped; when that does not reach the catalog,
// the heartbeats just end.
func (m *Member) bye(ctx context.Context) {
	short, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	if err := m.beat(short, true); err != nil && m.opt.Trace.Away != nil {
		m.opt.Trace.Away(err, 0)
	}
}
