package ckpt

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Point is a step of a run: what a save is called.
type Point struct {
	Run  string
	Step int64
}

// At names the step of a run to save.
func At(run string, step int64) Point { return Point{run, step} }

func (p Point) String() string { return fmt.Sprintf("%s@%d", p.Run, p.Step) }

type saveOptions struct {
	rank, world, attempt int
	launch               string
	metrics              map[string]float64
}

// SaveOption changes a save.
type SaveOption func(*saveOptions)

// Rank says which of the world's writers this is; without it, 0 of 1.
func Rank(rank, world int) SaveOption {
	return func(o *saveOptions) { o.rank, o.world = rank, world }
}

// Launch names this start of the job. All its ranks give the same name, and a
// restarted job a new one. Without it CKPTD_LAUNCH, torchrun's or SLURM's is
// taken; a process that is alone needs none.
func Launch(name string) SaveOption { return func(o *saveOptions) { o.launch = name } }

// Attempt gives the number that Client.Attach returned, for those who attach
// by themselves.
func Attempt(n int) SaveOption { return func(o *saveOptions) { o.attempt = n } }

// Metrics go into the set's record, for pruning by the best and for people.
func Metrics(m map[string]float64) SaveOption { return func(o *saveOptions) { o.metrics = m } }

// Save is one rank's shard on its way. It belongs to one goroutine.
type Save struct {
	c     *Client
	at    Point
	opt   saveOptions
	parts []part
	names map[string]bool
	meta  map[string]string
	file  *wholeFile // instead of parts
	raw   string     // the file is a raw shard of this name

	late struct { // told with the seal
		sync.Mutex
		meta map[string]string
	}
	over  bool
	spent time.Duration // in Save
}

// Save begins a rank's part of a checkpoint. Nothing is reserved until Commit.
func (c *Client) Save(ctx context.Context, at Point, opts ...SaveOption) (*Save, error) {
	begin := time.Now()
	s := &Save{c: c, at: at, opt: saveOptions{world: 1}, names: make(map[string]bool), meta: make(map[string]string)}
	for _, o := range opts {
		o(&s.opt)
	}
	bad := func(format string, args ...any) (*Save, error) {
		return nil, fmt.Errorf("save %v: %w: %s", at, catalog.ErrInvalid, fmt.Sprintf(format, args...))
	}
	if _, err := catalog.ParseRun(at.Run); err != nil {
		return nil, fmt.Errorf("save %v: %w", at, err)
	}
	switch {
	case at.Step < 0 || at.Step > catalog.MaxStep:
		return bad("a step is a number from 0 to %d", int64(catalog.MaxStep))
	case s.opt.world < 1 || s.opt.world > catalog.MaxWorld:
		return bad("a world has 1 to %d ranks", catalog.MaxWorld)
	case s.opt.rank < 0 || s.opt.rank >= s.opt.world:
		return bad("rank %d of %d; ranks count from 0", s.opt.rank, s.opt.world)
	}
	if s.opt.attempt == 0 {
		n, err := c.attempt(ctx, at.Run, s.opt.launch, s.opt.world)
		if err != nil {
			return nil, fmt.Errorf("save %v: %w", at, err)
		}
		s.opt.attempt = n
	}
	s.spent = time.Since(begin)
	return s, nil
}

// Tensor adds a tensor. The data is a []byte, an io.ReaderAt, or an io.Reader
// (then the shard is copied by one goroutine, in the order of its layout:
// wider elements first, otherwise as added); little-endian and row-major. It is
// read during Commit and must not change until that returns.
func (s *Save) Tensor(name string, dtype catalog.DType, shape []int64, data any) error {
	return s.add(catalog.Tensor{Name: name, DType: dtype, Shape: append([]int64{}, shape...)}, data)
}

// Piece adds a piece of a tensor that is sharded over ranks: global is the
// whole tensor's shape, and start where in it this piece begins.
func (s *Save) Piece(name string, dtype catalog.DType, shape []int64, data any, global, start []int64) error {
	return s.add(catalog.Tensor{
		Name: name, DType: dtype, Shape: append([]int64{}, shape...),
		Global: append([]int64{}, global...), Start: append([]int64{}, start...),
	}, data)
}

func (s *Save) add(t catalog.Tensor, data any) error {
	if s.over || s.file != nil {
		return fmt.Errorf("tensor %q: %w: the save is over, or of a whole shard", t.Name, catalog.ErrInvalid)
	}
	if err := checkTensor(&t); err != nil {
		return err
	}
	if len(t.Global) == 0 {
		t.Global, t.Start = nil, nil // a scalar is never a piece
	}
	if s.names[t.Name] {
		return fmt.Errorf("tensor %q: %w: added twice", t.Name, catalog.ErrInvalid)
	}
	p := part{Tensor: t}
	switch d := data.(type) {
	case []byte:
		if int64(len(d)) != t.Size {
			return fmt.Errorf("tensor %q: %w: %d bytes given, %s of shape %v is %d", t.Name, catalog.ErrInvalid, len(d), t.DType, t.Shape, t.Size)
		}
		p.data = source{bytes: d}
	case io.ReaderAt:
		p.data = source{at: d}
	case io.Reader:
		p.data = source{stream: d}
	default:
		return fmt.Errorf("tensor %q: %w: data is %T; want []byte, io.ReaderAt or io.Reader", t.Name, catalog.ErrInvalid, data)
	}
	s.names[t.Name] = true
	s.parts = append(s.parts, p)
	return nil
}

// wholeFile is a shard that exists.
type wholeFile struct {
	header []byte // a raw shard has none
	size   int64
	source // of the bytes behind the header
}

// Shard makes the save a copy of an existing shard file of size bytes, byte for
// byte: header is what comes before its data, padded to a multiple of 4 KiB as
// ckptd writes it, and file is read from there on. Nothing can be added to it.
func (s *Save) Shard(header []byte, size int64, file io.ReaderAt) error {
	switch {
	case s.over || s.file != nil || len(s.parts) > 0 || len(s.meta) > 0:
		return fmt.Errorf("shard: %w: the save has something in it already", catalog.ErrInvalid)
	case len(header) == 0 || len(header)%dataAlign != 0 || int64(len(header)) > size:
		return fmt.Errorf("shard: %w: a header of %d bytes for a file of %d; want a multiple of %d", catalog.ErrInvalid, len(header), size, dataAlign)
	}
	n := int64(len(header))
	s.file = &wholeFile{header, size, source{at: io.NewSectionReader(file, n, size-n)}}
	return nil
}

// parts are the file's bytes behind its header.
func (f *wholeFile) parts() []part {
	n := int64(len(f.header))
	return []part{{
		Tensor: catalog.Tensor{Name: "the whole file", Offset: n, Size: f.size - n},
		data:   f.source,
	}}
}

// Meta adds an entry to the shard's metadata, or strings about a raw shard.
// Keys that begin with "ckptd." are reserved for ckptd's own.
func (s *Save) Meta(key, value string) { s.meta[key] = value }

// Commit hands the shard to the daemon: admission, the copy, the seal. When it
// returns nil training may go on; the set commits when all ranks have come
// this far. When it returns an error nothing is left, but for the case that
// the connection broke while the daemon was sealing.
func (s *Save) Commit(ctx context.Context) (*Set, error) {
	begin := time.Now()
	if s.over {
		return nil, fmt.Errorf("commit %v: %w: the save is over", s.at, catalog.ErrInvalid)
	}
	s.over = true
	set, err := s.commit(ctx)
	s.parts, s.file = nil, nil // the caller's memory is its own again
	if err != nil {
		return nil, fmt.Errorf("save %v rank %d: %w", s.at, s.opt.rank, err)
	}
	set.Stall = s.spent + time.Since(begin)
	return set, nil
}

func (s *Save) commit(ctx context.Context) (*Set, error) {
	parts := slices.Clone(s.parts)
	var header []byte
	var size int64
	var err error
	if s.file != nil {
		header, size, parts = s.file.header, s.file.size, s.file.parts()
	} else if header, size, err = layout(parts, s.meta); err != nil {
		return nil, err
	}
	if int64(len(header)) > s.c.welcome.MaxHeader && s.c.welcome.MaxHeader > 0 {
		return nil, fmt.Errorf("%w: the header takes %d bytes, at most %d are possible; store large metadata as U8 tensors",
			catalog.ErrInvalid, len(header), s.c.welcome.MaxHeader)
	}
	ask := &wire.Message{
		T: "save", Run: s.at.Run, Step: s.at.Step, Attempt: s.opt.attempt, Rank: s.opt.rank, World: s.opt.world,
		Size: size, Metrics: maps.Clone(s.opt.metrics),
	}
	if s.raw != "" {
		ask.Raw, ask.File, ask.Meta = true, s.raw, maps.Clone(s.meta)
	}
	ses, a, err := s.c.ask(ctx, ask, header, nil, "admitted")
	if err != nil {
		return nil, err
	}
	closeFiles(a.fds)
	id, err := parseID(a.m.Set)
	if err != nil {
		ses.close()
		return nil, fmt.Errorf("admitted: %w", err)
	}
	cp := &copier{c: s.c, ses: ses, parts: parts, header: int64(len(header)), size: size, meta: s.lateMeta}
	level, err := cp.run(ctx)
	if err != nil {
		ses.close() // undoes the admission
		return nil, err
	}
	s.c.put(ses)
	return &Set{ID: id, Rank: s.opt.rank, Level: level, Size: size, c: s.c}, nil
}

// Close ends the save. Without a Commit that returned nil it leaves nothing.
func (s *Save) Close() error {
	s.over = true
	s.parts = nil
	return nil
}

// parseID reads RUN@STEP#ATTEMPT.
func parseID(s string) (catalog.SetID, error) {
	ref, err := catalog.ParseRef(s)
	if err != nil {
		return catalog.SetID{}, err
	}
	id := catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}
	return id, id.Check()
}
