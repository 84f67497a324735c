package ckptd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/localtier/vfs/vfstest"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// The crash tests run one node's duties one step at a time, over a file system
// that loses power and a catalog that is a service of its own.

const (
	crashRun   = catalog.Run("run/a")
	crashWorld = 2 // ranks
	// squashedStep and later ones have shards that are worth compressing.
	squashedStep = 1000
)

// fate is what may be seen of a set.
type fate int

const (
	absent  fate = iota // must not be listed
	maybe               // may be listed, and then must load
	durable             // was reported committed: must be listed and load
)

// model is what was promised so far. Its lock also orders crash points.
type model struct {
	mu      sync.Mutex
	sets    map[catalog.SetID]fate
	sealed  map[catalog.SetID]int // ranks that were told "sealed"
	pruning catalog.SetID         // has been asked to go
	pruned  bool                  // and has its tombstone
}

func newModel() *model {
	return &model{sets: make(map[catalog.SetID]fate), sealed: make(map[catalog.SetID]int)}
}

// fates is what may be seen now; with the catalog lost, a tombstone counts
// only once its copy lies beside the bytes.
func (m *model) fates(lost bool) map[catalog.SetID]fate {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := maps.Clone(m.sets)
	if m.pruned && !lost {
		f[m.pruning] = absent
	}
	return f
}

var crashShards sync.Map // of crashShard

// crashShard is the file of one rank; what is in it follows from its name.
func crashShard(id catalog.SetID, rank int) (header, file []byte) {
	type key struct {
		id   catalog.SetID
		rank int
	}
	type shard struct{ header, file []byte }
	if s, ok := crashShards.Load(key{id, rank}); ok {
		return s.(shard).header, s.(shard).file
	}
	defer func() { crashShards.Store(key{id, rank}, shard{header, file}) }()
	size := int64(3000 + 1000*rank)
	if rank == 1 {
		size += catalog.BlockSize // two blocks
	}
	h, err := shardfile.NewHeader([]shardfile.Spec{{Name: "w", DType: "U8", Shape: []int64{size}}}, nil)
	if err != nil {
		panic(err)
	}
	file = vfs.AlignedBuffer(int(h.FileSize))
	copy(file, h.Bytes())
	rng := rand.NewChaCha8([32]byte{byte(id.Step), byte(id.Attempt), byte(rank)})
	_, _ = rng.Read(file[h.DataStart:])
	if id.Step >= squashedStep { // is worth compressing
		for i := range file[h.DataStart:] {
			file[h.DataStart+int64(i)] &= 7
		}
	}
	return h.Bytes(), file
}

// world is one boot of one node.
type world struct {
	ctx    context.Context
	fs     *vfstest.Mem
	n      *Node
	cat    *catalog.Catalog
	closed bool
	stop   func()
}

// boot opens everything as a daemon does.
func boot(ctx context.Context, fsys *vfstest.Mem, records, parts catalog.Driver) (_ *world, err error) {
	w := &world{fs: fsys, cat: catalog.New(records, parts)}
	var closers []io.Closer
	ctx, cancel := context.WithCancel(ctx)
	w.ctx = ctx
	var wg sync.WaitGroup
	w.stop = func() {
		if w.closed {
			return
		}
		w.closed = true
		cancel()
		wg.Wait()
		for _, c := range closers {
			_ = c.Close()
		}
	}
	defer func() {
		if err != nil {
			w.stop()
		}
	}()
	local, err := localtier.Open(fsys, localtier.Options{Dirs: []string{"/disk"}, Quota: 1 << 30})
	if err != nil {
		return nil, err
	}
	closers = append(closers, local)
	var infos []remotetier.TargetInfo
	for i := range 3 {
		d, err := target.OpenDir(fsys, fmt.Sprintf("/t%d", i), fmt.Sprintf("t%d", i))
		if err != nil {
			return nil, err
		}
		closers = append(closers, d)
		infos = append(infos, remotetier.TargetInfo{Target: d})
	}
	w.n, err = New(Config{
		Name: "n1", Unit: 64 << 10, Grace: time.Nanosecond,
		Log: slog.New(slog.DiscardHandler),
	}, Tiers{Catalog: w.cat, Local: local, Remote: remotetier.New(infos, remotetier.Options{})})
	if err != nil {
		return nil, err
	}
	wg.Go(func() { _ = w.cat.Run(ctx) })
	return w, nil
}

// save is what the session of one rank does.
func (w *world) save(m *model, id catalog.SetID, rank int) error {
	s, err := w.submit(id, rank)
	if err != nil {
		return err
	}
	err = w.cat.CheckAttempt(w.ctx, id.Run, id.Attempt)
	if err != nil && !errors.Is(err, catalog.ErrUnavailable) {
		return errors.Join(err, s.Close())
	}
	m.mu.Lock()
	if m.sealed[id]++; m.sealed[id] == crashWorld {
		m.sets[id] = maybe
	}
	m.mu.Unlock()
	return w.seal(s, err == nil)
}

// submit does what comes before the seal.
func (w *world) submit(id catalog.SetID, rank int) (*shardwriter.Session, error) {
	header, file := crashShard(id, rank)
	if err := w.n.begin(w.ctx, id, crashWorld, map[string]float64{"loss": float64(id.Step)}); err != nil {
		return nil, err
	}
	in, err := w.n.reserve(w.ctx, id.ShardName(rank), int64(len(file)))
	if err != nil {
		return nil, err
	}
	s := shardwriter.New(shardwriter.Spec{
		Info: catalog.ShardInfo{Set: id, Rank: rank, World: crashWorld},
		Size: int64(len(file)), Header: header,
	}, in, shardwriter.Options{Writers: 1})
	slot := vfs.AlignedBuffer(2 << 20)
	copy(slot, file)
	if err := s.Submit(shardwriter.Slot{Data: slot}, 0, int64(len(file))); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (w *world) seal(s *shardwriter.Session, fence bool) error {
	if err := s.Seal(time.Now(), fence); err != nil {
		return errors.Join(err, s.Close())
	}
	w.n.finish(w.ctx, s, nil)
	w.n.finishing.Wait()
	return nil
}

// elect makes the node the coordinator.
func (w *world) elect() error {
	leads, err := w.n.elector.Tick(w.ctx, time.Now())
	if err == nil && !leads {
		err = errors.New("the only node does not lead")
	}
	w.n.lead.Lock()
	w.n.lead.leader = w.n.elector.Leader()
	w.n.lead.Unlock()
	return err
}

// lead is one look of a new coordinator at everything there is.
func (w *world) lead() error {
	if err := errors.Join(w.elect(), w.cat.Sync(w.ctx)); err != nil {
		return err
	}
	c := newCoordinator(w.n)
	var errs []error
	known, _ := w.cat.Known("")
	for _, s := range known {
		parts, err := w.cat.Parts(w.ctx, s.SetID)
		errs = append(errs, err)
		for i := range parts {
			errs = append(errs, c.see(w.ctx, &parts[i]), w.cat.Sync(w.ctx))
		}
	}
	errs = append(errs, c.retry(w.ctx))
	for {
		select {
		case indexes := <-c.drops:
			for _, d := range indexes {
				errs = append(errs, w.cat.DropBulk(w.ctx, d))
			}
			continue
		default:
		}
		return errors.Join(errs...)
	}
}

// abort ends the sets that are still being written.
func (w *world) abort() error {
	patience := w.n.cfg.Incomplete
	w.n.cfg.Incomplete = time.Nanosecond
	defer func() { w.n.cfg.Incomplete = patience }()
	return w.n.abortStale(w.ctx, time.Now())
}

// follow copies the records of all sets beside their bytes.
func (w *world) follow() error {
	if err := w.cat.Sync(w.ctx); err != nil {
		return err
	}
	var errs []error
	known, _ := w.cat.Known("")
	for _, s := range known {
		errs = append(errs, w.n.copyRecord(w.ctx, s))
	}
	return errors.Join(errs...)
}

// duties runs every duty of the node once.
func (w *world) duties() error {
	var errs []error
	for _, duty := range []func() error{
		func() error { return w.n.voteOnce(w.ctx) },
		w.lead,
		func() error { return w.n.drainOnce(w.ctx) },
		w.lead,
		w.follow,
		func() error { return w.n.collectOnce(w.ctx) },
	} {
		errs = append(errs, w.cat.Sync(w.ctx), duty())
	}
	return errors.Join(errs...)
}

// settle runs the duties until a round changes nothing.
func (w *world) settle(state func() string) error {
	last := ""
	for range 12 {
		err := w.duties()
		now := fmt.Sprint(state(), w.fs.Ops())
		if err == nil && now == last {
			return nil
		}
		if last = now; err != nil {
			last = err.Error()
		}
	}
	return fmt.Errorf("the duties do not come to rest: %s", last)
}

// buffer is where a load goes.
type buffer []byte

func (m buffer) WriteAt(p []byte, off int64) (int, error) { return copy(m[off:], p), nil }

// load reads every shard of a set from one tier, or ("") from any.
func (w *world) load(id catalog.SetID, from string) error {
	rec, err := w.cat.Resolve(w.ctx, catalog.Ref{Run: id.Run, Step: id.Step, Attempt: id.Attempt})
	if err != nil {
		return err
	}
	if _, _, err := w.n.manifest(w.ctx, rec); err != nil {
		return err
	}
	for rank := range rec.World {
		_, want := crashShard(id, rank)
		loc, err := w.n.locate(w.ctx, rec, rank)
		if err != nil {
			return err
		}
		got := make(buffer, loc.ref.Size)
		if _, err := w.n.fetch(w.ctx, loc, loc.ref.Whole(), got, from); err != nil {
			return err
		}
		if !bytes.Equal(got, want) {
			return fmt.Errorf("rank %d: other bytes came back", rank)
		}
	}
	return nil
}

// check holds a settled world against the contract: what was reported is
// there, nothing else is, and no byte is kept for nobody.
func (w *world) check(fates map[catalog.SetID]fate) error {
	listed, err := w.cat.Sets(w.ctx, crashRun)
	if errors.Is(err, fs.ErrNotExist) {
		listed, err = nil, nil
	}
	if err != nil {
		return err
	}
	seen := make(map[catalog.SetID]bool)
	var errs []error
	for _, s := range listed {
		if s.State != catalog.Committed {
			if s.State != catalog.Writing { // collected, when all is at rest
				errs = append(errs, fmt.Errorf("%v is still %s", s.SetID, s.State))
			}
			continue
		}
		seen[s.SetID] = true
		if fates[s.SetID] == absent {
			errs = append(errs, fmt.Errorf("%v is listed", s.SetID))
		}
		if err := w.load(s.SetID, ""); err != nil {
			errs = append(errs, fmt.Errorf("%v is listed: %w", s.SetID, err))
		}
		if s.Level != catalog.Verified {
			errs = append(errs, fmt.Errorf("%v is at %v when all is done", s.SetID, s.Level))
		} else if err := w.load(s.SetID, "remote"); err != nil {
			errs = append(errs, fmt.Errorf("%v is verified: %w", s.SetID, err))
		}
	}
	for id, f := range fates {
		if f == durable && !seen[id] {
			errs = append(errs, fmt.Errorf("%v was reported committed, and is gone", id))
		}
	}
	return errors.Join(append(errs, w.checkLocal(listed), w.checkRemote(seen))...)
}

// checkLocal: every name on the disks is of a set that is listed, or of one
// still being written.
func (w *world) checkLocal(listed []catalog.SetRecord) error {
	var errs []error
	for info := range w.n.local.List("") {
		dir, _, _ := cutLast(info.Name)
		id, err := catalog.ParseDir(dir)
		known := slices.ContainsFunc(listed, func(s catalog.SetRecord) bool { return s.SetID == id })
		if info.Name != runRecordName(crashRun) && (err != nil || !known) {
			errs = append(errs, fmt.Errorf("%s is nobody's", info.Name))
		}
	}
	if u := w.n.local.Usage(); u.Reserved != 0 {
		errs = append(errs, fmt.Errorf("%d bytes stay reserved", u.Reserved))
	}
	return errors.Join(errs...)
}

// checkRemote: every blob on the targets is of a listed set and its newest
// generation is whole. A shard lies there once, where the statement says;
// small records may have an older generation that could not be removed: it is
// never read, and goes with the next version.
func (w *world) checkRemote(seen map[catalog.SetID]bool) error {
	var errs []error
	newest := make(map[string]remotetier.Found)
	for f, err := range w.n.remote.Scan(w.ctx, "") {
		if err != nil {
			return err
		}
		name := f.Place.Blob
		dir, file, _ := cutLast(name)
		id, err := catalog.ParseDir(dir)
		if name != runRecordName(crashRun) && (err != nil || !seen[id]) {
			errs = append(errs, fmt.Errorf("generation %d of %s is nobody's", f.Place.Generation, name))
			continue
		}
		if newest[name].Place.Generation < f.Place.Generation {
			newest[name] = f
		}
		if !strings.HasSuffix(file, ".safetensors") {
			continue
		}
		part, err := w.cat.Part(w.ctx, id, w.n.cfg.Name)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(part.Shards, func(s catalog.PartShard) bool {
			return s.Remote != nil && s.Remote.Blob == name && s.Remote.Generation == f.Place.Generation
		}) {
			errs = append(errs, fmt.Errorf("no statement names generation %d of %s", f.Place.Generation, name))
		}
	}
	for name, f := range newest {
		if len(f.Columns) != len(f.Place.Targets) {
			errs = append(errs, fmt.Errorf("%s has %d columns of %d", name, len(f.Columns), len(f.Place.Targets)))
		}
	}
	for i := range 3 {
		if left, err := w.fs.ReadDir(fmt.Sprintf("/t%d/staging", i)); err != nil || len(left) > 0 {
			errs = append(errs, fmt.Errorf("staging of target %d holds %v, %v", i, left, err))
		}
	}
	if left, err := w.fs.ReadDir("/disk/staging"); err != nil || len(left) > 0 {
		errs = append(errs, fmt.Errorf("staging holds %v, %v", left, err))
	}
	return errors.Join(errs...)
}

// rebuild is what an operator does when the catalog is lost.
func (w *world) rebuild() error {
	if err := w.cat.Sync(w.ctx); err != nil {
		return err
	}
	res, err := w.n.rebuild(w.ctx, func(wire.Progress) {})
	if err == nil && len(res.Problems) > 0 {
		err = errors.New(strings.Join(res.Problems, "; "))
	}
	return err
}
