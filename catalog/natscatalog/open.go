package natscatalog

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
)

// Options of Open; the zero value works.
type Options struct {
	Replicas  int           // copies of the bucket; 0: 3 in a cluster of at least three servers, otherwise 1
	MaxBytes  int64         // of the bucket; 0: as much as the server allows. Full is ErrNoSpace, nothing is dropped
	Timeout   time.Duration // of one call, when ctx ends no sooner; 0: 5 s
	MarkerTTL time.Duration // how long a deletion is remembered; 0: 1 h, at least 1 s. A watch cut off for half of it ends
	Trace     func(string)  // what went on; nil: off
	Warn      func(string)  // what an operator should change; nil: off
}

const (
	replicasInCluster = 3
	openPatience      = 10 * time.Second // of Open, when ctx has no deadline
	openAttempt       = time.Second      // of one attempt to open: a cluster that elects its leader drops requests
)

var bucketName = regexp.MustCompile(`^[a-zA-Z0-9_-]{1,64}$`)

// Open opens a bucket and creates it if there is none. While the server is not
// ready it tries again, until ctx ends (without a deadline: for 10 s).
//
// A bucket made by others is used as it is, or refused with ErrInvalid when it
// would lose records: by age, by history, by size, or with the server's memory.
func Open(ctx context.Context, nc *nats.Conn, bucket string, opt Options) (*Driver, error) {
	if !bucketName.MatchString(bucket) {
		return nil, fmt.Errorf("open bucket %q: %w: want letters, digits, '-' and '_'", bucket, catalog.ErrInvalid)
	}
	if opt.Timeout <= 0 {
		opt.Timeout = 5 * time.Second
	}
	if opt.MarkerTTL <= 0 {
		opt.MarkerTTL = time.Hour
	}
	opt.MarkerTTL = max(opt.MarkerTTL, time.Second)
	if opt.Trace == nil {
		opt.Trace = func(string) {}
	}
	if opt.Warn == nil {
		opt.Warn = func(string) {}
	}
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(opt.Timeout))
	if err != nil {
		return nil, fmt.Errorf("open bucket %s: %w: %w", bucket, catalog.ErrInvalid, err)
	}
	d := &Driver{nc: nc, js: js, stream: "KV_" + bucket, subject: "$KV." + bucket + ".", opt: opt}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, openPatience)
		defer cancel()
	}
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		err := d.open(ctx)
		if err == nil {
			return d, nil
		}
		err = fmt.Errorf("open bucket %s: %w", bucket, classify(ctx, err))
		if !errors.Is(err, catalog.ErrUnavailable) || nc.IsClosed() {
			return nil, err
		}
		opt.Trace(err.Error())
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(pause):
		}
	}
}

// open finds or makes the stream, once.
func (d *Driver) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, min(openAttempt, d.opt.Timeout))
	defer cancel()
	if err := d.connected(); err != nil {
		return err
	}
	s, err := d.js.Stream(ctx, d.stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		s, err = d.create(ctx)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // by another node, just now
			s, err = d.js.Stream(ctx, d.stream)
		}
	}
	if err != nil {
		return err
	}
	config := s.CachedInfo().Config
	if err := usable(config); err != nil {
		return err
	}
	if !config.AllowMsgTTL {
		config.AllowMsgTTL = true
		if _, err := d.js.UpdateStream(ctx, config); err != nil {
			return err
		}
	}
	// From here on nothing fails: the copies are a matter of warnings.
	if want := d.replicas(); config.Replicas < want {
		config.Replicas = want
		if _, err := d.js.UpdateStream(ctx, config); err != nil {
			d.opt.Warn(fmt.Sprintf("the catalog has fewer copies than the %d it should have: %v", want, err))
		}
	} else if d.nc.ConnectedClusterName() != "" && config.Replicas < replicasInCluster {
		d.opt.Warn(fmt.Sprintf("the catalog has %d of 3 copies: losing one server of the cluster can stop or lose it", config.Replicas))
	}
	if !d.embedded() {
		d.opt.Warn("cannot know whether the NATS servers sync every write: set `jetstream { sync_interval: always }` in their configuration, or a power failure can lose what they acknowledged")
	}
	d.created = s.CachedInfo().Created
	return nil
}

// create makes the stream as a key-value bucket, so that the tools of NATS
// know it, with per-message TTL for the markers of deletions.
func (d *Driver) create(ctx context.Context) (jetstream.Stream, error) {
	config := jetstream.StreamConfig{
		Name:              d.stream,
		Description:       "ckptd catalog",
		Subjects:          []string{d.subject + ">"},
		Storage:           jetstream.FileStorage,
		Replicas:          d.replicas(),
		MaxMsgsPerSubject: 1,
		MaxMsgs:           -1,
		MaxBytes:          -1,
		MaxMsgSize:        -1,
		MaxConsumers:      -1,
		Discard:           jetstream.DiscardNew,
		DenyDelete:        true,
		AllowRollup:       true,
		AllowMsgTTL:       true,
		AllowDirect:       true, // for the tools; a Driver asks the leader
	}
	if d.opt.MaxBytes > 0 {
		config.MaxBytes = d.opt.MaxBytes
	}
	return d.js.CreateStream(ctx, config)
}

// replicas is how many copies the bucket should have.
func (d *Driver) replicas() int {
	switch {
	case d.opt.Replicas > 0:
		return d.opt.Replicas
	case d.nc.ConnectedClusterName() != "" && len(d.nc.Servers()) >= replicasInCluster:
		return replicasInCluster
	}
	return 1
}

// embedded says that the server was started by Embed, which syncs every write.
func (d *Driver) embedded() bool {
	_, ok := d.nc.Opts.InProcessServer.(*Server)
	return ok
}

// usable reports why a bucket made by others would lose records.
func usable(c jetstream.StreamConfig) error {
	bad := func(why string) error { return fmt.Errorf("%w: the bucket %s", catalog.ErrInvalid, why) }
	switch {
	case c.Storage != jetstream.FileStorage:
		return bad("is kept in memory")
	case c.MaxAge != 0:
		return bad("forgets records by their age")
	case c.MaxMsgsPerSubject != 1:
		return bad("has a history other than 1")
	case c.Retention != jetstream.LimitsPolicy:
		return bad("does not keep its records")
	case c.Discard != jetstream.DiscardNew:
		return bad("drops old records when it is full")
	case c.PersistMode == jetstream.AsyncPersistMode:
		return bad("acknowledges before it writes (persist mode async)")
	case c.Mirror != nil || len(c.Sources) > 0:
		return bad("is a copy of another")
	case c.MaxMsgSize >= 0 && c.MaxMsgSize < catalog.MaxRecord+4096:
		return bad("has too small a limit for one record")
	}
	return nil
}
