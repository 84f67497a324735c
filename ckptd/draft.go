package ckptd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/ckptd/tree"
	"github.com/ckptd/ckptd/fuse"
	"github.com/ckptd/ckptd/localtier"
)

// A draft is a folder of a mount in which programs write the files of a set,
// RUN/.write/STEP: an area of the local tier called RUN@STEP. It is of one
// node, and of nobody else's sight, until it is committed; draft_commit.go has
// how. What is to become of it stands in its note, so that a daemon that starts
// again goes on.

// draft is one draft of this node.
type draft struct {
	n    *Node
	area *localtier.Area
	run  catalog.Run

	mu struct {
		sync.Mutex
		step   int64
		note   draftNote
		hidden bool   // it is being made a set
		order  string // of the commit that froze it; "": it is not frozen
		asked  time.Time
		sum    summing
		adopts bool // somebody makes it a set now
	}
}

// draftNote is an area's note.
type draftNote struct {
	UID  uint32    `json:"uid"`
	GID  uint32    `json:"gid"`
	Made time.Time `json:"made"`
	Set  *draftSet `json:"set,omitempty"`
}

// draftSet is what a draft is to become, if the catalog has the set.
type draftSet struct {
	ID       catalog.SetID      `json:"id"`
	World    int                `json:"world"`
	Ranks    map[string]int     `json:"ranks"` // of the files here
	Sealed   time.Time          `json:"sealed"`
	Metrics  map[string]float64 `json:"metrics,omitempty"`
	Order    string             `json:"order"` // the commit: the node that decides, and what it calls it
	Prepared time.Time          `json:"prepared"`
}

// drafts remembers what the notes say.
type drafts struct {
	watch kick // somebody writes
	mu    struct {
		sync.Mutex
		of     map[*localtier.Area]*draft
		orders map[string]bool // commits that this node leads now
	}
}

func (d *drafts) init() {
	d.watch = newKick()
	d.mu.of, d.mu.orders = make(map[*localtier.Area]*draft), make(map[string]bool)
}

// lead notes a commit that this node leads, until end is called.
func (d *drafts) lead(order string) (end func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.orders[order] = true
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.mu.orders, order)
	}
}

func (d *drafts) leads(order string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.orders[order]
}

func draftName(run catalog.Run, step int64) string { return fmt.Sprintf("%s@%d", run, step) }

// allDrafts are this node's, by name.
func (n *Node) allDrafts() []*draft {
	areas := n.local.Areas()
	n.drafts.mu.Lock()
	defer n.drafts.mu.Unlock()
	of := n.drafts.mu.of
	all := make([]*draft, 0, len(areas))
	for _, a := range areas {
		d := of[a]
		if d == nil {
			var err error
			if d, err = n.openDraft(a); err != nil {
				continue // nothing of ours: left alone
			}
			of[a] = d
		}
		all = append(all, d)
	}
	if len(of) > 2*len(all)+16 { // some have gone
		for a := range of {
			if !slices.Contains(areas, a) {
				delete(of, a)
			}
		}
	}
	return all
}

// openDraft reads what an area's name and note say.
func (n *Node) openDraft(a *localtier.Area) (*draft, error) {
	ref, err := catalog.ParseRef(a.Name())
	if err != nil {
		return nil, err
	}
	d := &draft{n: n, area: a, run: ref.Run}
	d.mu.step = ref.Step
	if err := json.Unmarshal(a.Note(), &d.mu.note); err != nil {
		return nil, fmt.Errorf("draft %s: %w: its note: %v", a.Name(), catalog.ErrCorrupt, err)
	}
	d.mu.hidden = d.mu.note.Set != nil
	return d, nil
}

// draftOf finds the draft of a run's step; fs.ErrNotExist.
func (n *Node) draftOf(run catalog.Run, step int64) (*draft, error) {
	name := draftName(run, step)
	for _, d := range n.allDrafts() {
		if d.area.Name() == name {
			return d, nil
		}
	}
	return nil, fmt.Errorf("draft %s: %w on node %s", name, fs.ErrNotExist, n.cfg.Name)
}

// setNote writes the note anew. draft.mu is held.
func (d *draft) setNote(note draftNote) error {
	b, err := json.Marshal(note)
	if err != nil {
		return err
	}
	if err := d.area.SetNote(b); err != nil {
		return err
	}
	d.mu.note = note
	return nil
}

// MayWrite lets those write who may save by the socket.
func (m mountStore) MayWrite(owner fuse.Owner) error {
	if owner.UID != 0 && owner.UID != uint32(os.Geteuid()) && !slices.Contains(m.n.cfg.UIDs, owner.UID) {
		return fmt.Errorf("user %d: %w to save on this node", owner.UID, fs.ErrPermission)
	}
	return nil
}

// Drafts implements tree.Desk.
func (m mountStore) Drafts() []tree.Draft {
	all := m.n.allDrafts()
	shown := make([]tree.Draft, 0, len(all))
	for _, d := range all {
		d.mu.Lock()
		hidden := d.mu.hidden
		d.mu.Unlock()
		if !hidden {
			shown = append(shown, mountDraft{d, m.checked})
		}
	}
	return shown
}

// NewDraft implements tree.Desk.
func (m mountStore) NewDraft(ctx context.Context, run catalog.Run, step int64, owner fuse.Owner) (tree.Draft, error) {
	if run.Reserved() {
		return nil, fmt.Errorf("run %s: %w: it is ckptd's own", run, catalog.ErrInvalid)
	}
	if err := (catalog.SetID{Run: run, Step: step, Attempt: 1}).Check(); err != nil {
		return nil, err
	}
	note := draftNote{UID: owner.UID, GID: owner.GID, Made: time.Now()}
	b, err := json.Marshal(note)
	if err != nil {
		return nil, err
	}
	if _, err := m.n.local.NewArea(draftName(run, step), b); errors.Is(err, fs.ErrExist) {
		if d, derr := m.n.draftOf(run, step); derr == nil && d.becoming() {
			return nil, fmt.Errorf("draft %s: %w: the last one is being committed", draftName(run, step), catalog.ErrConflict)
		}
		return nil, err
	} else if err != nil {
		return nil, err
	}
	d, err := m.n.draftOf(run, step)
	return mountDraft{d, m.checked}, err
}

func (d *draft) becoming() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.hidden
}

// Commit implements tree.Desk: the draft of this node alone becomes a set.
func (m mountStore) Commit(ctx context.Context, td tree.Draft) error {
	d := td.(mountDraft)
	_, err := m.n.commitDrafts(ctx, commitOrder{Run: d.run, Step: d.Step(), Alone: true}, nil)
	if err != nil {
		m.n.log.Warn("draft not committed", "draft", d.area.Name(), "err", err)
	}
	return err
}

// mountDraft is a draft as a mount shows it.
type mountDraft struct {
	*draft
	checked bool
}

var _ tree.Draft = mountDraft{}

func (d *draft) ID() string         { return d.area.ID() }
func (d *draft) Run() catalog.Run   { return d.run }
func (d *draft) Changed() time.Time { return d.area.Info().Changed }

func (d *draft) Step() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.step
}

func (d *draft) Owner() fuse.Owner {
	d.mu.Lock()
	defer d.mu.Unlock()
	return fuse.Owner{UID: d.mu.note.UID, GID: d.mu.note.GID}
}

func draftFileOf(i localtier.AreaFileInfo) tree.DraftFile {
	return tree.DraftFile{Number: i.Number, Name: i.Name, Size: i.Size, Mtime: i.ModTime}
}

func (d *draft) Files() []tree.DraftFile {
	infos := d.area.Files()
	files := make([]tree.DraftFile, len(infos))
	for i, info := range infos {
		files[i] = draftFileOf(info)
	}
	return files
}

func (d *draft) Lookup(name string) (tree.DraftFile, error) {
	i, err := d.area.Lookup(name)
	return draftFileOf(i), err
}

func (d *draft) Stat(number uint32) (tree.DraftFile, error) {
	i, err := d.area.Stat(number)
	return draftFileOf(i), err
}

func (d *draft) Rename(from, to string, replace bool) error { return d.area.Rename(from, to, replace) }
func (d *draft) Unlink(name string) error                   { return d.area.Unlink(name) }

// Move implements tree.Draft.
func (d *draft) Move(step int64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.area.SetName(draftName(d.run, step)); err != nil {
		return err
	}
	d.mu.step = step
	return nil
}

// Remove implements tree.Draft.
func (d *draft) Remove() error {
	i := d.area.Info()
	if i.Frozen {
		return fmt.Errorf("draft %s: %w: it is being committed", d.area.Name(), catalog.ErrConflict)
	}
	return d.area.Discard()
}

func (d mountDraft) Create(name string) (tree.DraftFile, fuse.WriteFile, error) {
	var o *localtier.AreaFile
	err := d.n.withRoom(func() (err error) {
		o, err = d.area.Create(name)
		return err
	})
	if err != nil {
		return tree.DraftFile{}, nil, err
	}
	f, err := d.file(o, true)
	return draftFileOf(o.Info()), f, err
}

func (d mountDraft) Open(number uint32) (fuse.File, error) {
	o, err := d.area.Open(number, false)
	if err != nil {
		return nil, err
	}
	f, err := d.file(o, false)
	if err != nil {
		return nil, err
	}
	return readOnly{f}, nil
}

func (d mountDraft) Edit(number uint32) (fuse.WriteFile, error) {
	var o *localtier.AreaFile
	err := d.n.withRoom(func() (err error) {
		o, err = d.area.Open(number, true)
		return err
	})
	if err != nil {
		return nil, err
	}
	return d.file(o, true)
}

// withRoom tries again after making room, when there was none.
func (n *Node) withRoom(try func() error) error {
	err := try()
	var short *localtier.Shortage
	if !errors.As(err, &short) || short.Short >= math.MaxInt64/2 {
		return err
	}
	if _, eerr := n.makeRoom(context.Background(), short.Short); eerr != nil {
		n.log.Warn("no room, and eviction failed", "err", eerr)
	}
	return try()
}
