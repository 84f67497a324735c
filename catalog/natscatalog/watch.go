package natscatalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
)

const (
	heartbeat       = time.Second            // an idle consumer says so this often
	silence         = 3 * heartbeat          // after which it counts as lost
	tick            = 250 * time.Millisecond // how often a waiting watch looks at its connection
	checkEvery      = 10 * time.Second       // between two comparisons with the leader, at most
	maxPendingBytes = 64 << 20               // of one watch; the server's flow control stops at half of it
	maxPending      = 1 << 20                // messages of one watch
)

// patience says what a feed does about a consumer that was lost.
type patience bool

const (
	once    patience = false // one more consumer, then the error
	forever patience = true  // as long as no change can have been missed
)

var (
	errIdle = errors.New("nothing yet")
	errGap  = errors.New("consumer lost")
)

// feed reads the changes under some subjects in order. It is an ordered
// consumer: kept in the memory of one server, never acknowledged, and replaced
// by another one from the last change on when a message is missing, the
// server falls silent, or the connection was new-made.
type feed struct {
	d       *Driver
	filters []string
	reached uint64    // the last message given
	pending uint64    // messages after it, as far as the server knew
	heard   time.Time // of the last sign of life

	sub        *nats.Subscription
	consumer   string
	delivered  uint64 // messages of this consumer
	reconnects uint64 // of the connection, when the consumer was made
}

// start makes a consumer for what follows f.reached, within the given time.
func (f *feed) start(ctx context.Context, within time.Duration) error {
	f.stop()
	ctx, cancel := context.WithTimeout(ctx, min(within, f.d.opt.Timeout))
	defer cancel()
	if err := f.d.connected(); err != nil {
		return err
	}
	f.reconnects = f.d.nc.Stats().Reconnects
	s, err := f.d.js.Stream(ctx, f.d.stream)
	if err != nil {
		return classify(ctx, err)
	}
	if info := s.CachedInfo(); !info.Created.Equal(f.d.created) || info.State.LastSeq < f.reached {
		return errReplaced
	}
	inbox := f.d.nc.NewInbox()
	sub, err := f.d.nc.SubscribeSync(inbox)
	if err != nil {
		return classify(ctx, err)
	}
	if err := sub.SetPendingLimits(maxPending, maxPendingBytes); err != nil {
		return errors.Join(classify(ctx, err), sub.Unsubscribe())
	}
	config := jetstream.ConsumerConfig{
		Name:           "ckptd_" + rand.Text(),
		DeliverSubject: inbox,
		DeliverPolicy:  jetstream.DeliverAllPolicy, // one message a key: all is the last of each
		AckPolicy:      jetstream.AckNonePolicy,
		FilterSubjects: f.filters,
		FlowControl:    true,
		IdleHeartbeat:  heartbeat,
		MemoryStorage:  true,
		Replicas:       1,
	}
	if f.reached > 0 {
		config.DeliverPolicy, config.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.reached+1
	}
	c, err := s.CreatePushConsumer(ctx, config)
	if err != nil {
		return errors.Join(classify(ctx, err), sub.Unsubscribe())
	}
	f.sub, f.consumer, f.delivered, f.heard = sub, config.Name, 0, time.Now()
	f.pending = c.CachedInfo().NumPending
	return nil
}

// stop lets go of the consumer. The server would drop it by itself, when
// nobody has listened for a few seconds; being told is quicker.
func (f *feed) stop() {
	if f.sub == nil {
		return
	}
	_ = f.sub.Unsubscribe() // fails only when the connection is closed
	if f.d.nc.IsConnected() {
		_ = f.d.nc.Publish("$JS.API.CONSUMER.DELETE."+f.d.stream+"."+f.consumer, nil)
	}
	f.sub = nil
}

// receive waits for a message, for one tick at most.
func (f *feed) receive(ctx context.Context) (*nats.Msg, error) {
	if n, _, err := f.sub.Pending(); err == nil && n > 0 {
		return f.sub.NextMsgWithContext(ctx) // at once, without the price of a timer
	}
	ctx, cancel := context.WithTimeout(ctx, tick)
	defer cancel()
	return f.sub.NextMsgWithContext(ctx)
}

// next waits for a change; errIdle is no change for now, errGap asks for start.
func (f *feed) next(ctx context.Context) (catalog.Change, error) {
	for {
		m, err := f.receive(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return catalog.Change{}, ctx.Err()
		case errors.Is(err, context.DeadlineExceeded):
			if time.Since(f.heard) > silence || f.d.nc.Stats().Reconnects != f.reconnects {
				return catalog.Change{}, errGap
			}
			return catalog.Change{}, errIdle
		case errors.Is(err, nats.ErrSlowConsumer):
			return catalog.Change{}, errGap
		default:
			return catalog.Change{}, classify(ctx, err)
		}
		f.heard = time.Now()
		if m.Subject == f.sub.Subject {
			if !f.control(m) {
				return catalog.Change{}, errGap
			}
			continue
		}
		meta, err := m.Metadata()
		if err != nil {
			return catalog.Change{}, fmt.Errorf("%w: message of the server: %w", catalog.ErrCorrupt, err)
		}
		if meta.Sequence.Consumer != f.delivered+1 {
			return catalog.Change{}, errGap
		}
		f.delivered++
		f.reached, f.pending = meta.Sequence.Stream, meta.NumPending
		return catalog.Change{Record: catalog.Record{
			Key:   strings.TrimPrefix(m.Subject, f.d.subject),
			Value: value(m.Data, isMarker(m.Header)),
			Rev:   f.reached,
		}}, nil
	}
}

// control answers flow control and reads heartbeats: they say how much was
// sent, so that a lost last message is noticed too.
func (f *feed) control(m *nats.Msg) bool {
	if m.Header.Get("Status") != "100" {
		return false // the consumer or its server is going away
	}
	if m.Reply != "" {
		_ = m.Respond(nil) // a lost answer is asked for again
		return true
	}
	if stalled := m.Header.Get("Nats-Consumer-Stalled"); stalled != "" {
		_ = f.d.nc.Publish(stalled, nil)
	}
	sent, err := strconv.ParseUint(m.Header.Get("Nats-Last-Consumer"), 10, 64)
	return err != nil || sent == f.delivered
}

// follow emits what Watch promises until emit says false (nil), ctx ends (its
// error), or the store fails.
func (d *Driver) follow(ctx context.Context, prefix string, p patience, emit func(catalog.Change) bool) error {
	filters, err := d.filters(prefix)
	if err != nil {
		return err
	}
	f := &feed{d: d, filters: filters}
	defer f.stop()
	g := guard{d: d, prefix: prefix}
	if err := g.check(ctx, 0); err != nil {
		return err
	}
	if err := f.start(ctx, d.opt.Timeout); err != nil {
		return err
	}
	synced := false
	for rounds := 0; ; {
		if !synced && f.reached >= g.want && (f.pending == 0 || rounds > 0) {
			if synced, err = g.complete(ctx, f.reached, rounds); err == nil {
				rounds++
			} else if err := g.bear(err, p); err != nil {
				return err
			}
			if synced && !emit(catalog.Change{Record: catalog.Record{Rev: f.reached}, Synced: true}) {
				return nil
			}
		}
		c, err := f.next(ctx)
		switch {
		case err == nil:
			if !emit(c) {
				return nil
			}
			g.reach(f.reached)
			if !g.due() {
				continue
			}
		case ctx.Err() != nil:
			return ctx.Err()
		case errors.Is(err, errIdle):
			g.reach(f.reached)
			if !g.due() && (synced || f.pending > 0) {
				continue
			}
		case errors.Is(err, errGap):
			if err := d.resume(ctx, f, &g, p); err != nil {
				return err
			}
			continue
		default:
			return err
		}
		// Compare with the leader: is the feed behind, and since when?
		if err := g.check(ctx, f.reached); err != nil {
			if err := g.bear(err, p); err != nil {
				return err
			}
		}
		if g.behind() {
			if err := d.resume(ctx, f, &g, p); err != nil {
				return err
			}
		}
	}
}

// resume replaces a lost consumer, trying again with growing, jittered pauses.
func (d *Driver) resume(ctx context.Context, f *feed, g *guard, p patience) error {
	within := d.opt.Timeout
	if p == forever {
		within = time.Second // a server that is just coming up drops requests; later attempts get more
	}
	for pause := 20 * time.Millisecond; ; pause, within = min(2*pause, 2*time.Second), 2*within {
		err := f.start(ctx, within)
		if err == nil {
			g.next = time.Time{}
			return g.lost()
		}
		if p == once || errors.Is(err, errReplaced) || d.nc.IsClosed() {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		d.opt.Trace(fmt.Sprintf("watch of %q: %v", g.prefix, err))
		if err := g.lost(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause/2 + mrand.N(pause)):
		}
	}
}

var errReplaced = fmt.Errorf("%w: the bucket is another one now: its store was replaced", catalog.ErrUnavailable)

// guard knows since when a feed may have missed something. Markers of
// deletions live for Options.MarkerTTL: a feed that was behind for longer
// would never hear of a deletion, so it must not go on.
type guard struct {
	d      *Driver
	prefix string
	want   uint64    // head of the prefix, when last asked
	wanted time.Time // when that was
	next   time.Time // when to ask again
	late   time.Time // since when the feed is known to be behind; zero: it is not
	whole  time.Time // the feed has everything that existed then
}

func (g *guard) due() bool { return time.Now().After(g.next) }

// check asks the leader for the head of the prefix.
func (g *guard) check(ctx context.Context, reached uint64) error {
	ctx, cancel := context.WithTimeout(ctx, g.d.opt.Timeout)
	defer cancel()
	now := time.Now()
	g.next = now.Add(min(checkEvery, g.d.opt.MarkerTTL/8)) // often enough for lost to know
	head, err := g.d.head(ctx, g.prefix)
	if err != nil {
		return err
	}
	g.want, g.wanted = head, now
	if g.whole.IsZero() {
		g.whole = now // nothing was given yet, so nothing can be stale
	}
	if g.late.IsZero() {
		g.late = now
	}
	g.reach(reached)
	return nil
}

// reach notes that the feed has come to rev.
func (g *guard) reach(rev uint64) {
	if rev >= g.want && !g.late.IsZero() {
		g.whole, g.late = g.wanted, time.Time{}
	}
}

// behind says that the feed has not reached a head for so long that its
// consumer must be on a server that is cut off.
func (g *guard) behind() bool {
	if g.late.IsZero() || time.Since(g.late) < checkEvery {
		return false
	}
	g.late = time.Now()
	return true
}

// maxRounds bounds how often a feed is compared with the leader before it is synced.
const maxRounds = 32

// complete says whether a feed that came to reached has given everything.
//
// That nothing is pending does not show it: a record that is updated moves to
// the stream's end, and may be gone from where the feed would have met it
// before it is pending there. If the leader, asked now, has nothing behind
// reached, everything was given. Otherwise the feed goes on to what the leader
// named and asks again. Under writes that never pause it stops after maxRounds:
// a record still missing would have been updated, each time, between its
// writing and its delivery to a feed that stands at the stream's end.
func (g *guard) complete(ctx context.Context, reached uint64, rounds int) (bool, error) {
	if err := g.check(ctx, reached); err != nil {
		return false, err
	}
	return reached >= g.want || rounds >= maxRounds, nil
}

// bear says whether a feed goes on although the leader did not answer.
func (g *guard) bear(err error, p patience) error {
	if p == once || !errors.Is(err, catalog.ErrUnavailable) {
		return err
	}
	return g.lost()
}

// lost is the error of a feed that may have missed a deletion.
func (g *guard) lost() error {
	// Round drops the monotonic clock, which stands still while a machine sleeps.
	if gap := time.Now().Round(0).Sub(g.whole.Round(0)); gap > g.d.opt.MarkerTTL/2 {
		return fmt.Errorf("%w: cut off for %v: deletions may have been missed", catalog.ErrUnavailable, gap.Round(time.Second))
	}
	return nil
}
