package target

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/traffic"
)

// RemoteOptions of a Remote; the zero value works.
type RemoteOptions struct {
	Name   string // of the target; default what it says, for which it must answer Dial
	Domain string // what fails together with it; default what it says
}

// Remote is a target behind a Server. It makes connections when it needs them,
// and again when they broke. Close it when nobody uses it any more.
type Remote struct {
	client fabric.Client
	puts   atomic.Uint64 // numbers them
	busy   atomic.Int64  // exchanges in flight
	last   atomic.Int64  // when the last one ended, in nanoseconds of the clock

	mu struct {
		sync.Mutex
		name, domain string
		stranger     error    // another target answered
		orphans      []uint64 // puts that the target may still hold
	}
}

var _ remotetier.Target = (*Remote)(nil)

// dialWait is how long Dial waits for a target that it need not wait for.
const dialWait = 3 * time.Second

// Dial gives the target at addrs, which are several ways to the same one. With
// a name, a target that does not answer is no error: it is used when it is
// back. Without one, the error is ErrUnavailable. A target of another name is
// ErrConflict.
func Dial(ctx context.Context, f fabric.Fabric, addrs []string, opt RemoteOptions) (*Remote, error) {
	fail := func(err error) (*Remote, error) { return nil, fmt.Errorf("target at %q: %w", addrs, err) }
	if opt.Name != "" {
		if err := remotetier.CheckTargetName(opt.Name); err != nil {
			return fail(err)
		}
	}
	if err := CheckDomain(opt.Domain); err != nil {
		return fail(err)
	}
	r := &Remote{}
	r.mu.name, r.mu.domain = opt.Name, opt.Domain
	var err error
	if r.client, err = f.Connect(addrs, r.greeted); err != nil {
		return fail(err)
	}
	ctx, cancel := context.WithTimeout(ctx, dialWait)
	defer cancel()
	_, err = r.Space(ctx)
	r.mu.Lock()
	stranger, named := r.mu.stranger, r.mu.name != ""
	r.mu.Unlock()
	switch {
	case stranger != nil:
		err = stranger
	case named:
		return r, nil
	case errors.Is(err, context.DeadlineExceeded):
		err = fmt.Errorf("%w: it did not answer; give its name to go on without it", catalog.ErrUnavailable)
	}
	_ = r.client.Close()
	return fail(err)
}

// greeted looks at what a target says of itself, on each new connection.
func (r *Remote) greeted(b []byte) error {
	name, domain, err := parseGreeting(b)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.name == "" {
		r.mu.name = name
	}
	if r.mu.name != name {
		r.mu.stranger = fmt.Errorf("%w: target %q answers where %q was", catalog.ErrConflict, name, r.mu.name)
		return fmt.Errorf("%w: %w", fabric.ErrRefused, r.mu.stranger)
	}
	if r.mu.domain == "" {
		r.mu.domain = domain
	}
	return nil
}

// Name is the target's name.
func (r *Remote) Name() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.name
}

// Domain is what fails together with the target; empty while it is not known.
func (r *Remote) Domain() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.mu.domain
}

// Rails tells of each of the target's addresses.
func (r *Remote) Rails() []fabric.Rail { return r.client.Rails() }

// Close ends the connections. What is being written is given up.
func (r *Remote) Close() error { return r.client.Close() }

// Idle says for how long nothing has been in flight; 0: something is. Whoever
// replaces a Remote closes the old one when it is idle.
func (r *Remote) Idle() time.Duration {
	if r.busy.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(0, r.last.Load()))
}

// do is one exchange.
func (r *Remote) do(ctx context.Context, op *fabric.Op) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.ask(ctx, op)
}

// ask is exchanges with the target, for what the context is for.
func (r *Remote) ask(ctx context.Context, ops ...*fabric.Op) error {
	r.busy.Add(1)
	defer func() {
		r.last.Store(time.Now().UnixNano())
		r.busy.Add(-1)
	}()
	for _, op := range ops {
		op.Request[1] = byte(traffic.ClassOf(ctx))
	}
	err := r.client.Do(ctx, ops...)
	if err == nil {
		r.abortOrphans(ctx) // it can be told now
	}
	return err
}

// abortOrphans gives up the puts that the target may still hold.
func (r *Remote) abortOrphans(ctx context.Context) {
	orphans, ops := r.takeOrphans()
	if len(ops) == 0 {
		return
	}
	_ = r.client.Do(ctx, ops...) // each has its own error
	r.keepOrphans(orphans, ops)
}

// takeOrphans gives the puts to give up, and the exchanges that do it.
func (r *Remote) takeOrphans() (orphans []uint64, ops []*fabric.Op) {
	r.mu.Lock()
	orphans, r.mu.orphans = r.mu.orphans, nil
	r.mu.Unlock()
	for _, id := range orphans {
		ops = append(ops, &fabric.Op{Request: newMessage(opAbort).putU64(id).b})
	}
	return orphans, ops
}

// keepOrphans keeps those of which nothing was heard again.
func (r *Remote) keepOrphans(orphans []uint64, ops []*fabric.Op) {
	for i, op := range ops {
		if op.Err != nil {
			r.orphan(orphans[i])
		}
	}
}

// Space asks the target.
func (r *Remote) Space(ctx context.Context) (remotetier.Space, error) {
	op := &fabric.Op{Request: newMessage(opSpace).b}
	if err := r.do(ctx, op); err != nil {
		return remotetier.Space{}, err
	}
	m := &message{b: op.Reply}
	s := remotetier.Space{Total: m.size(), Free: m.size()}
	return s, m.end("space")
}

// Remove deletes a column.
func (r *Remote) Remove(ctx context.Context, key remotetier.Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	return r.do(ctx, &fabric.Op{Request: newMessage(opRemove).putKey(key).b})
}

// listSize is the room for one part of a listing, in bytes.
const listSize = 256 << 10

// List asks for the entries, a part at a time.
func (r *Remote) List(ctx context.Context, prefix string) iter.Seq2[remotetier.Entry, error] {
	return func(yield func(remotetier.Entry, error) bool) {
		var after remotetier.Key
		if prefix != "" {
			if err := remotetier.CheckBlob(prefix); err != nil {
				yield(remotetier.Entry{}, err)
				return
			}
		}
		buf := make([]byte, listSize)
		for {
			op := &fabric.Op{Request: newMessage(opList).putKey(after).putString(prefix).b, In: buf}
			err := r.do(ctx, op)
			var page []remotetier.Entry
			if err == nil {
				page, err = entries(buf[:op.N], prefix, after)
			}
			if err == nil && (len(op.Reply) != 1 || op.Reply[0] == 0 && len(page) == 0) {
				err = fmt.Errorf("list: %w: a part of no entries", catalog.ErrCorrupt)
			}
			if err != nil {
				yield(remotetier.Entry{}, err)
				return
			}
			for _, e := range page {
				if after = e.Key; !yield(e, nil) {
					return
				}
			}
			if op.Reply[0] != 0 {
				return
			}
		}
	}
}

// entries reads a part of a listing. They must be in order: a listing that
// goes back would not end.
func entries(b []byte, prefix string, after remotetier.Key) (page []remotetier.Entry, err error) {
	m := &message{b: b}
	for len(m.b) > 0 && !m.bad {
		e := remotetier.Entry{Size: m.size()}
		e.Key = m.key(false)
		if !m.bad && (e.Key.Compare(after) <= 0 || !remotetier.Under(e.Key.Blob, prefix)) {
			return nil, fmt.Errorf("list: %w: %v follows %v", catalog.ErrCorrupt, e.Key, after)
		}
		after = e.Key
		page = append(page, e)
	}
	return page, m.end("list")
}

// Create begins a column, and gives up those whose end was not heard of.
func (r *Remote) Create(ctx context.Context, key remotetier.Key, size int64, mode remotetier.CreateMode) (remotetier.ColumnWriter, error) {
	if err := errors.Join(ctx.Err(), key.Check(), mode.Check()); err != nil {
		return nil, err
	}
	if size <= 0 || size%pageSize != 0 {
		return nil, fmt.Errorf("create %v: %w: size %d is no multiple of %d", key, catalog.ErrInvalid, size, pageSize)
	}
	w := &remoteWriter{r: r, key: key, size: size, id: r.puts.Add(1)}
	orphans, ops := r.takeOrphans()
	op := &fabric.Op{Request: newMessage(opCreate).putU64(w.id).putU64(uint64(size)).putKey(key).putU8(byte(mode)).b}
	_ = r.ask(ctx, append(ops, op)...) // each has its own error
	r.keepOrphans(orphans, ops)
	if op.Err != nil {
		if maybeDone(op.Err) {
			r.orphan(w.id)
		}
		return nil, op.Err
	}
	return w, nil
}

// maybeDone reports whether an exchange that failed may have been carried out.
func maybeDone(err error) bool {
	return errors.Is(err, catalog.ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// maxOrphans bounds what a Remote remembers to give up. More than that are
// given up with the session.
const maxOrphans = 256

func (r *Remote) orphan(id uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mu.orphans) < maxOrphans {
		r.mu.orphans = append(r.mu.orphans, id)
	}
}

// Open asks for a column's size, and its first and last page at once.
func (r *Remote) Open(ctx context.Context, key remotetier.Key) (remotetier.ColumnReader, error) {
	if err := key.Check(); err != nil {
		return nil, err
	}
	rd := &remoteReader{r: r, key: key}
	op := &fabric.Op{Request: newMessage(opOpen).putKey(key).b, In: rd.ends[:]}
	if err := r.do(ctx, op); err != nil {
		return nil, err
	}
	if len(op.Reply) != 8 || op.N != 0 && op.N != len(rd.ends) {
		return nil, fmt.Errorf("open %v: %w: the reply is not understood", key, catalog.ErrCorrupt)
	}
	if rd.size = int64(binary.LittleEndian.Uint64(op.Reply)); rd.size < 0 || op.N > int(max(rd.size, 0)) {
		return nil, fmt.Errorf("open %v: %w: size %d", key, catalog.ErrCorrupt, rd.size)
	}
	rd.known = op.N > 0
	return rd, nil
}
