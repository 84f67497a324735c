package natscatalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
)

// Driver is one bucket. It owns nothing that needs closing: the connection
// belongs to the caller.
type Driver struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	stream  string    // "KV_" + bucket
	subject string    // "$KV." + bucket + "."
	created time.Time // of the stream: another time is another bucket
	opt     Options
	heads   heads
}

var _ catalog.Driver = (*Driver)(nil)

// Headers of the key-value convention, and of markers the server itself sets.
const (
	operationHeader = "KV-Operation"
	reasonHeader    = "Nats-Marker-Reason"
)

// filters are the subjects that prefix covers.
func (d *Driver) filters(prefix string) ([]string, error) {
	if prefix == "" {
		return []string{d.subject + ">"}, nil
	}
	if err := catalog.CheckKey(prefix); err != nil {
		return nil, err
	}
	return []string{d.subject + prefix, d.subject + prefix + ".>"}, nil
}

// Get implements catalog.Driver; the stream's leader answers.
func (d *Driver) Get(ctx context.Context, key string) (catalog.Record, error) {
	if err := catalog.CheckKey(key); err != nil {
		return catalog.Record{}, fmt.Errorf("get: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.opt.Timeout)
	defer cancel()
	m, err := d.load(ctx, loadRequest{Last: d.subject + key})
	if err == nil && m.marker {
		err = fs.ErrNotExist
	}
	if err != nil {
		return catalog.Record{}, fmt.Errorf("get %s: %w", key, err)
	}
	return catalog.Record{Key: key, Value: m.data, Rev: m.seq}, nil
}

// Swap implements catalog.Driver.
func (d *Driver) Swap(ctx context.Context, key string, rev uint64, value []byte) (uint64, error) {
	if err := catalog.CheckKey(key); err != nil {
		return 0, fmt.Errorf("swap: %w", err)
	}
	if len(value) > catalog.MaxRecord {
		return 0, fmt.Errorf("swap %s: %w: a record of %d bytes, at most %d", key, catalog.ErrInvalid, len(value), catalog.MaxRecord)
	}
	if value == nil && rev == 0 {
		return 0, fmt.Errorf("swap %s: %w: deleting needs the revision to delete", key, catalog.ErrInvalid)
	}
	ctx, cancel := context.WithTimeout(ctx, d.opt.Timeout)
	defer cancel()
	next, err := d.publish(ctx, key, rev, value)
	// A key that was deleted may still have its marker; to create the key is
	// to replace that marker. Three rounds: the marker may expire, or another
	// writer's attempt fail, between the look and the write.
	for round := 0; rev == 0 && errors.Is(err, catalog.ErrConflict) && round < 3; round++ {
		var over uint64
		m, lerr := d.load(ctx, loadRequest{Last: d.subject + key})
		switch {
		case errors.Is(lerr, fs.ErrNotExist):
		case lerr != nil:
			return 0, fmt.Errorf("swap %s: %w", key, lerr)
		case !m.marker:
			return 0, fmt.Errorf("swap %s: %w: it exists", key, catalog.ErrConflict)
		default:
			over = m.seq
		}
		next, err = d.publish(ctx, key, over, value)
	}
	if err != nil {
		return 0, fmt.Errorf("swap %s: %w", key, err)
	}
	return next, nil
}

// publish writes value, or a deletion marker, if the key's last message is rev.
func (d *Driver) publish(ctx context.Context, key string, rev uint64, value []byte) (uint64, error) {
	if err := d.connected(); err != nil {
		return 0, err
	}
	m := nats.NewMsg(d.subject + key)
	m.Data = value
	opts := []jetstream.PublishOpt{jetstream.WithExpectLastSequencePerSubject(rev), jetstream.WithExpectStream(d.stream)}
	if value == nil {
		m.Header.Set(operationHeader, "DEL")
		opts = append(opts, jetstream.WithMsgTTL(d.opt.MarkerTTL))
	}
	ack, err := d.js.PublishMsg(ctx, m, opts...)
	if err != nil {
		return 0, classify(ctx, err)
	}
	return ack.Sequence, nil
}

// connected refuses at once while the connection is away: a request that
// waited in a buffer could take effect long after its caller was told it failed.
func (d *Driver) connected() error {
	if s := d.nc.Status(); s != nats.CONNECTED {
		return fmt.Errorf("%w: NATS connection is %s", catalog.ErrUnavailable, s)
	}
	return nil
}

// List implements catalog.Driver. It reads ahead: the records of the prefix
// are in memory before the first is given.
func (d *Driver) List(ctx context.Context, prefix string) iter.Seq2[catalog.Record, error] {
	return func(yield func(catalog.Record, error) bool) {
		var records []catalog.Record
		at := make(map[string]int) // where in records a key is: it may change while the list is read
		err := d.follow(ctx, prefix, once, func(c catalog.Change) bool {
			i, again := at[c.Key]
			switch {
			case c.Synced:
			case again:
				records[i] = c.Record
			case c.Value != nil:
				at[c.Key] = len(records)
				records = append(records, c.Record)
			}
			return !c.Synced
		})
		if err != nil {
			yield(catalog.Record{}, fmt.Errorf("list %s: %w", prefix, err))
			return
		}
		for _, r := range records {
			if r.Value == nil { // deleted meanwhile
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(catalog.Record{}, fmt.Errorf("list %s: %w", prefix, err))
				return
			}
			if !yield(r, nil) {
				return
			}
		}
	}
}

// Watch implements catalog.Driver. Deletions of the last Options.MarkerTTL are
// among what is given before Synced; the event with Synced set carries in Rev
// how far the watch has come. When ctx ends the sequence ends without an error.
func (d *Driver) Watch(ctx context.Context, prefix string) iter.Seq2[catalog.Change, error] {
	return func(yield func(catalog.Change, error) bool) {
		err := d.follow(ctx, prefix, forever, func(c catalog.Change) bool { return yield(c, nil) })
		if err != nil && ctx.Err() == nil {
			yield(catalog.Change{}, fmt.Errorf("watch %s: %w", prefix, err))
		}
	}
}

// loadRequest asks the leader for one message.
type loadRequest struct {
	Seq  uint64 `json:"seq,omitempty"`          // with Next: at or after
	Next string `json:"next_by_subj,omitempty"` // the first message of this subject
	Last string `json:"last_by_subj,omitempty"` // the last message of this subject
}

// message is what the leader has.
type message struct {
	subj   string
	seq    uint64
	data   []byte // not nil unless marker
	marker bool   // a deletion
}

// load reads one message from the leader; none is fs.ErrNotExist.
func (d *Driver) load(ctx context.Context, q loadRequest) (message, error) {
	var answer struct {
		Error   *jetstream.APIError `json:"error"`
		Message *struct {
			Subject string `json:"subject"`
			Seq     uint64 `json:"seq"`
			Hdrs    []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := d.connected(); err != nil {
		return message{}, err
	}
	body, err := json.Marshal(q)
	if err != nil {
		return message{}, err
	}
	reply, err := d.nc.RequestWithContext(ctx, "$JS.API.STREAM.MSG.GET."+d.stream, body)
	if err != nil {
		return message{}, classify(ctx, err)
	}
	if err := json.Unmarshal(reply.Data, &answer); err != nil {
		return message{}, fmt.Errorf("%w: answer of the server: %w", catalog.ErrCorrupt, err)
	}
	if e := answer.Error; e != nil {
		if e.ErrorCode == jetstream.JSErrCodeMessageNotFound {
			return message{}, fs.ErrNotExist
		}
		return message{}, classify(ctx, e)
	}
	if answer.Message == nil {
		return message{}, fmt.Errorf("%w: answer of the server holds no message", catalog.ErrCorrupt)
	}
	m := message{subj: answer.Message.Subject, seq: answer.Message.Seq, data: answer.Message.Data}
	if len(answer.Message.Hdrs) > 0 {
		h, err := nats.DecodeHeadersMsg(answer.Message.Hdrs)
		if err != nil {
			return message{}, fmt.Errorf("%w: headers of message %d: %w", catalog.ErrCorrupt, m.seq, err)
		}
		m.marker = isMarker(h)
	}
	m.data = value(m.data, m.marker)
	return m, nil
}

func isMarker(h nats.Header) bool {
	op := h.Get(operationHeader)
	return op == "DEL" || op == "PURGE" || h.Get(reasonHeader) != ""
}

// value tells an empty record from a deleted one: nil is a deletion.
func value(data []byte, marker bool) []byte {
	if marker {
		return nil
	}
	if data == nil {
		return []byte{}
	}
	return data
}
