package s3

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// Names of the target's own objects, below the prefix. Names of blobs do not
// begin with a dot.
const (
	idKey    = ".ckptd/target.id"
	idMagic  = "ckptd s3 1\n"
	notesDir = ".ckptd/notes/"
)

// Options of a Target; the zero value works.
type Options struct {
	Buffers  int64         // bytes of parts on their way beyond the first of each column; default 96 MiB
	Parallel int           // parts of one column on their way; default 4
	Stale    time.Duration // after which leftovers are those of a dead process; default 24 h
	Trace    func(error)   // is told what could not be cleared away; a later sweep does; nil: nobody
}

func (o *Options) norm() {
	if o.Buffers <= 0 {
		o.Buffers = 96 << 20
	}
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Stale <= 0 {
		o.Stale = 24 * time.Hour
	}
}

// Target is a bucket, or a part of one.
type Target struct {
	b     *bucket.Bucket
	name  string
	opt   Options
	parts *parts

	writing plain.Writing

	mu struct {
		sync.Mutex
		ready bool // the bucket was asked whose it is
		seq   int
		swept time.Time
		used  int64     // bytes, for the quota
		asked time.Time // when used was counted
	}
	starting chan struct{} // has room for the one who makes ready
}

var _ remotetier.Target = (*Target)(nil)

// Open makes the target of that name of a bucket, which it closes in the end.
// A server that cannot be reached now is no error: it is used when it is back.
func Open(ctx context.Context, b *bucket.Bucket, name string, opt Options) (*Target, error) {
	if err := remotetier.CheckTargetName(name); err != nil {
		return nil, err
	}
	if len(b.Spec().Prefix) > maxPrefix {
		return nil, fmt.Errorf("open %v: %w: its prefix is longer than %d bytes, which leaves no room for names", b, catalog.ErrInvalid, maxPrefix)
	}
	opt.norm()
	t := &Target{b: b, name: name, opt: opt, parts: &parts{left: opt.Buffers}, starting: make(chan struct{}, 1)}
	short, cancel := context.WithTimeout(ctx, openTime)
	defer cancel()
	if err := t.begin(short); err != nil && short.Err() == nil && !errors.Is(err, catalog.ErrUnavailable) {
		return nil, fmt.Errorf("open target %s: %w", name, err)
	}
	return t, ctx.Err()
}

// openTime bounds the wait of Open for a server that does not answer.
const openTime = 5 * time.Second

// maxPrefix leaves room for the usual names in a key of 1024 bytes.
const maxPrefix = 256

// begin makes sure, once, that the bucket is there, that it may be used, and
// that it is this target's.
func (t *Target) begin(ctx context.Context) error {
	ready := func() bool { t.mu.Lock(); defer t.mu.Unlock(); return t.mu.ready }
	if ready() {
		return nil
	}
	select {
	case t.starting <- struct{}{}:
		defer func() { <-t.starting }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if ready() {
		return nil
	}
	if err := t.identify(ctx); err != nil {
		return err
	}
	t.mu.Lock()
	t.mu.ready = true
	t.mu.Unlock()
	t.sweep(ctx)
	return nil
}

// identifyTries are enough for two and a half seconds.
const identifyTries = 8

// identify reads the bucket's name as a target, or gives it one.
func (t *Target) identify(ctx context.Context) error {
	for try := range identifyTries {
		b := make([]byte, len(idMagic)+remotetier.MaxTargetName+2)
		n, _, err := t.b.Read(ctx, idKey, "", b, 0)
		switch b = b[:n]; {
		case missing(err):
			err = t.b.PutNew(ctx, idKey, []byte(idMagic+t.name+"\n"), nil)
			if !errors.Is(err, bucket.ErrTaken) {
				return err
			}
			// By another node, at the same time, or by a try whose answer was lost.
			// Some servers refuse before what they have is there to read.
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(10 * time.Millisecond << try):
			}
			continue
		case err != nil:
			return err
		}
		name, magic := strings.CutPrefix(string(b), idMagic)
		name, line := strings.CutSuffix(name, "\n")
		switch {
		case !magic || !line:
			return fmt.Errorf("%s: %w: delete it if the bucket is to become a target anew", idKey, catalog.ErrCorrupt)
		case name != t.name:
			return fmt.Errorf("%w: the bucket belongs to target %q; give that name, or another prefix", catalog.ErrConflict, name)
		}
		return nil
	}
	return fmt.Errorf("%w: two nodes give the bucket a name", catalog.ErrConflict)
}

// Name is the target's name.
func (t *Target) Name() string { return t.name }

// Close lets go of the bucket's idle connections.
func (t *Target) Close() error { return t.b.Close() }

func (t *Target) trace(err error) {
	if err != nil && t.opt.Trace != nil {
		t.opt.Trace(fmt.Errorf("s3 target %s: %w", t.name, err))
	}
}

// metaData is the metadata by which an object says whose data it is: the name
// that only this writing of it has.
const metaData = "ckptd-data"

func missing(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// Space is the quota and what is left of it, or more than there can be.
func (t *Target) Space(ctx context.Context) (remotetier.Space, error) {
	if err := t.begin(ctx); err != nil {
		return remotetier.Space{}, err
	}
	if t.b.Spec().Quota == 0 {
		return remotetier.Space{Total: unlimited, Free: unlimited}, nil
	}
	used, err := t.used(ctx)
	if err != nil {
		return remotetier.Space{}, err
	}
	return remotetier.Space{Total: t.b.Spec().Quota, Free: max(0, t.b.Spec().Quota-used)}, nil
}

// unlimited is the room of a bucket without a quota, in bytes: 1 EiB.
const unlimited = 1 << 60

// countEvery is how often the bytes of a target with a quota are counted anew;
// what this process writes is added at once.
const countEvery = 10 * time.Minute

func (t *Target) used(ctx context.Context) (int64, error) {
	t.mu.Lock()
	used, fresh := t.mu.used, time.Since(t.mu.asked) < countEvery
	t.mu.Unlock()
	if fresh {
		return used, nil
	}
	used = 0
	for o, err := range t.b.List(ctx, "") {
		if err != nil {
			return 0, err
		}
		used += o.Size
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.used, t.mu.asked = used, time.Now()
	return used, nil
}

func (t *Target) addUsed(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.mu.used += n
}
