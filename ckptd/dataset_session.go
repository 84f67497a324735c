package ckptd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/packs"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Limits of what one session holds.
const (
	maxSessionVersions = 64
	maxSessionPacks    = 64 // that are not whole: those asked for last
	maxSessionReaders  = 64
)

// dataSession is what a client reads of datasets.
type dataSession struct {
	versions map[catalog.SetID]*Version
	packs    []*packs.Handle // the one used last at the end
	readers  []string
	retries  int // of the reader that said something last; 0: the node's
}

func (d *dataSession) close(n *Node) {
	for _, id := range d.readers {
		n.prefetch.leave(id)
	}
	for _, h := range d.packs {
		_ = h.Close() // only read from
	}
	for _, v := range d.versions {
		if err := v.Close(); err != nil {
			n.log.Debug("version", "set", v.Set.String(), "err", err)
		}
	}
	*d = dataSession{}
}

// version opens a version once a session.
func (s *session) version(ctx context.Context, id catalog.SetID) (*Version, error) {
	if v := s.data.versions[id]; v != nil {
		return v, nil
	}
	if len(s.data.versions) == maxSessionVersions {
		return nil, fmt.Errorf("dataset %v: %w: this connection has %d versions open, the most", id, catalog.ErrInvalid, maxSessionVersions)
	}
	v, err := s.n.openVersion(ctx, id)
	if err != nil {
		return nil, err
	}
	if s.data.versions == nil {
		s.data.versions = make(map[catalog.SetID]*Version)
	}
	s.data.versions[id] = v
	return v, nil
}

// keep holds a pack open for the client while it arrives. What is whole is not
// held: a client's descriptor stays readable, and held copies could not be
// evicted, so that few readers would fill a small cache for good.
func (s *session) keep(h *packs.Handle) {
	d := &s.data
	still := d.packs[:0]
	for _, old := range d.packs {
		if old.Whole() || old.Ref().Set == h.Ref().Set {
			_ = old.Close() // only read from
			continue
		}
		still = append(still, old)
	}
	d.packs = still
	if h.Whole() {
		_ = h.Close()
		return
	}
	if len(d.packs) == maxSessionPacks {
		_ = d.packs[0].Close()
		d.packs = d.packs[1:]
	}
	d.packs = append(d.packs, h)
}

// dataset answers with the index of a version.
func (s *session) dataset(ctx context.Context, m *wire.Message) error {
	ref, err := catalog.ParseDatasetRef(m.Ref)
	if err != nil {
		return err
	}
	rec, err := s.n.cat.Resolve(ctx, ref)
	if err != nil {
		return fmt.Errorf("dataset %s: %w", m.Ref, err)
	}
	v, err := s.version(ctx, rec.SetID)
	if err != nil {
		return fmt.Errorf("dataset %s: %w", m.Ref, err)
	}
	f, err := v.File(ctx)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.send(&wire.Message{T: "dataset", Set: v.Set.String(), Version: int(v.Set.Step), Size: int64(len(v.mem))}, nil, f)
}

// setOf reads a version's set.
func setOf(s string) (catalog.SetID, error) {
	ref, err := catalog.ParseRef(s)
	if err != nil {
		return catalog.SetID{}, err
	}
	id := catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}
	if err := id.Check(); err != nil {
		return id, err
	}
	if _, ok := catalog.DatasetName(id.Run); !ok {
		return id, fmt.Errorf("%v: %w: not a dataset's version; ask with the set that `dataset` answered", id, catalog.ErrInvalid)
	}
	return id, nil
}

// pack answers with a whole pack of a version, or begins to fetch it.
func (s *session) pack(ctx context.Context, m *wire.Message) error {
	id, err := setOf(m.Set)
	if err != nil {
		return err
	}
	v, err := s.version(ctx, id)
	if err != nil {
		return err
	}
	h, err := v.Pack(ctx, m.Pack)
	if err != nil {
		return err
	}
	h.Retry(s.data.retries)
	a := &wire.Message{T: "pack", Pack: m.Pack, Set: h.Ref().Set.String(), Size: h.Size(), From: h.From().String()}
	var fds []*os.File
	if h.Whole() {
		f, err := h.Lend(ctx)
		if err != nil && (ctx.Err() != nil || !errors.Is(err, catalog.ErrCorrupt)) {
			return errors.Join(err, h.Close())
		}
		if err == nil { // else it is fetched anew
			defer f.Close()
			a.Complete, fds = true, append(fds, f)
		}
	}
	err = s.send(a, nil, fds...)
	s.keep(h)
	return err
}

// isPack says whether a load is of a raw shard that the cache serves.
func isPack(set string) bool {
	ref, err := catalog.ParseRef(set)
	return err == nil && ref.Run.Reserved()
}

// loadPack fills a client's memory with ranges of a pack, from what has arrived
// and what has not.
func (s *session) loadPack(ctx context.Context, m *wire.Message, fds []*os.File) error {
	ref, err := catalog.ParseRef(m.Set)
	if err != nil {
		return err
	}
	rec, err := s.n.cat.Resolve(ctx, ref)
	if err != nil {
		return err
	}
	h := s.data.opened(rec.SetID)
	if h == nil {
		if h, err = s.n.OpenPack(ctx, rec.SetID); err != nil {
			return err
		}
		defer func() { s.keep(h) }()
	}
	ranges, err := checkRanges(m.Ranges, m.Off, h.Ref())
	if err != nil {
		return err
	}
	from := h.From()
	if h.Whole() {
		f, err := h.Lend(ctx)
		if err != nil {
			return err
		}
		defer f.Close()
		var seal []byte
		if sums := h.Seal(); m.Seal && sums != nil {
			seal = sums.Marshal()
		}
		return s.send(&wire.Message{T: "loaded", From: "local", Size: h.Size()}, seal, f)
	}
	if len(fds) != 1 {
		return wire.WithHint(fmt.Errorf("load %v: %w: it is still arriving", h.Ref(), catalog.ErrUnavailable), "send a memfd with the request, and the daemon fills it")
	}
	s.last.hold()
	defer s.last.release()
	size, fill := extent(ranges, m.Off)
	mem, done, err := s.last.open(fds[0], m.Off, size, fill, s.n.mapped)
	if err != nil {
		return fmt.Errorf("load %v: %w", h.Ref(), err)
	}
	defer done()
	buf := make([]byte, min(fill, catalog.BlockSize))
	for _, r := range ranges {
		for at := r[0]; at < r[0]+r[1]; {
			p := buf[:min(int64(len(buf)), r[0]+r[1]-at)]
			if _, err := h.ReadAt(ctx, p, at); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if _, err := mem.WriteAt(p, at); err != nil {
				return err
			}
			at += int64(len(p))
		}
	}
	s.n.stats.Loads.Add(1)
	s.n.stats.LoadedBytes.Add(fill)
	return s.send(&wire.Message{T: "loaded", From: max(from, packs.Peer).String(), Size: h.Size(), Filled: fill}, nil)
}

func (d *dataSession) opened(id catalog.SetID) *packs.Handle {
	for _, h := range d.packs {
		if h.Ref().Set == id {
			return h
		}
	}
	return nil
}

// reader notes where a reader is.
func (s *session) reader(m *wire.Message) error {
	id, err := setOf(m.Set)
	if err != nil {
		return err
	}
	v := s.data.versions[id]
	if v == nil {
		return fmt.Errorf("reader of %v: %w: open it with `dataset` first", id, catalog.ErrInvalid)
	}
	key := s.holder + "/" + m.ID
	known := false
	for _, r := range s.data.readers {
		known = known || r == key
	}
	if !known && len(s.data.readers) == maxSessionReaders {
		return fmt.Errorf("reader of %v: %w: this connection has %d readers, the most", id, catalog.ErrInvalid, maxSessionReaders)
	}
	r, err := newReader(v, m)
	if err != nil {
		return err
	}
	r.seen, s.data.retries = time.Now(), r.retries
	s.n.prefetch.put(key, r)
	if !known {
		s.data.readers = append(s.data.readers, key)
	}
	cache := s.n.tellCache()
	ahead, lookahead := s.n.prefetch.effective(r)
	return s.send(&wire.Message{T: "reader", Set: id.String(), ID: m.ID, At: m.At, Rank: m.Rank, World: m.World, Order: m.Order,
		Ahead: ahead, Lookahead: lookahead, Retries: cmp.Or(r.retries, cache.Settings.Retries), Cache: &cache}, nil)
}
