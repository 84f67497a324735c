package tree

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/fuse"
)

// side is one half of the tree: checkpoints, or versions of datasets, which
// are the sets of runs that are ckptd's own.
type side struct {
	base    string // what the names of its runs begin with, and are shown without
	name    string // of its folder
	pos     uint32 // of its folder in volume 0
	folder  kind
	set     kind
	attempt kind
}

var (
	checkpoints = side{"", "checkpoints", checkpointsPos, folderKind, stepKind, attemptKind}
	datasets    = side{catalog.DatasetsPrefix, "datasets", datasetsPos, datasetKind, versionKind, versionAttemptKind}
	sides       = []side{checkpoints, datasets}
)

// run is the run that path stands for.
func (s side) run(path string) catalog.Run { return catalog.Run(s.base + path) }

// paths are the runs of a side as they are shown.
func (s side) paths(runs []catalog.Run) (paths []string) {
	for _, run := range runs {
		path, ok := strings.CutPrefix(string(run), s.base)
		if ok && (s.base != "" || path[0] != '_') {
			paths = append(paths, path)
		}
	}
	return paths
}

// paths are the runs of a side as they are shown, those too that are only
// about to be written.
func (t *Tree) paths(sd side) []string {
	paths := sd.paths(t.store.Runs())
	if sd == checkpoints {
		paths = append(paths, t.write.paths()...)
	}
	return paths
}

// subfolders are the folders of runs right in path, "" for the top, in order.
func subfolders(path string, paths []string) (names []string) {
	for _, rest := range paths {
		if path != "" {
			var ok bool
			if rest, ok = strings.CutPrefix(rest, path+"/"); !ok {
				continue
			}
		}
		name, _, _ := strings.Cut(rest, "/")
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// isFolder says whether path is a run, or the beginning of one.
func isFolder(path string, paths []string) bool {
	return slices.ContainsFunc(paths, func(p string) bool {
		rest, ok := strings.CutPrefix(p, path)
		return ok && (rest == "" || rest[0] == '/')
	})
}

// stepName is how a set's folder is called among subs, the folders of runs
// beside it: its step, or, where a run's name has taken that, STEP-ATTEMPT as
// tiers write it, which no run can be called.
func stepName(id catalog.SetID, subs []string) string {
	name := strconv.FormatInt(id.Step, 10)
	if slices.Contains(subs, name) {
		return attemptName(id)
	}
	return name
}

func attemptName(id catalog.SetID) string { return fmt.Sprintf("%012d-%06d", id.Step, id.Attempt) }

// parseStep reads a set's folder name: STEP, or STEP-ATTEMPT with or without
// leading zeros. attempt is 0 in the first case.
func parseStep(name string) (step int64, attempt int, ok bool) {
	s, a, both := strings.Cut(name, "-")
	digits := func(s string, most int64, zeros bool) (int64, bool) {
		n, err := strconv.ParseInt(s, 10, 64)
		return n, err == nil && n >= 0 && n <= most && s[0] != '+' && s[0] != '-' && (zeros || s == strconv.FormatInt(n, 10))
	}
	padded := both && len(s) == 12 && len(a) == 6
	if step, ok = digits(s, catalog.MaxStep, padded); !ok || !both {
		return step, 0, ok
	}
	n, ok := digits(a, catalog.MaxAttempt, padded)
	return step, int(n), ok && n > 0
}

// newestOfSteps keeps, of sets that are newest first, the newest of each step.
func newestOfSteps(sets []catalog.SetRecord) []catalog.SetRecord {
	seen := make(map[int64]bool, len(sets))
	return slices.DeleteFunc(slices.Clone(sets), func(s catalog.SetRecord) bool {
		if seen[s.Step] {
			return true
		}
		seen[s.Step] = true
		return false
	})
}

// latest is a folder's link, if it is a run with a set.
func (t *Tree) latest(sd side, path string) (id fuse.ID, ok bool) {
	if path == "" {
		return 0, false
	}
	rec, ok := t.store.Set(sd.run(path), catalog.Latest, 0)
	if !ok {
		return 0, false
	}
	return t.idOfVolume(volume{linkKind, rec.SetID.String()}), true
}

// linkTo is where a link to a set leads.
func (t *Tree) linkTo(k volume) (target string, rec catalog.SetRecord, err error) {
	if rec, err = t.setOf(k); err != nil {
		return "", rec, err
	}
	sd, path := checkpoints, string(rec.Run)
	if rest, ok := strings.CutPrefix(path, datasets.base); ok {
		sd, path = datasets, rest
	}
	return stepName(rec.SetID, subfolders(path, t.paths(sd))), rec, nil
}

func (t *Tree) linkAttr(k volume) (fuse.Attr, error) {
	target, rec, err := t.linkTo(k)
	if err != nil {
		return fuse.Attr{}, err
	}
	return fuse.Attr{Mode: syscall.S_IFLNK | 0o777, Nlink: 1, UID: t.opt.UID, GID: t.opt.GID, Size: int64(len(target)), Mtime: rec.Committed}, nil
}

func (t *Tree) folderNodeAttr(sd side, path string, pos uint32) (fuse.Attr, error) {
	paths := t.paths(sd)
	if pos != selfPos || path != "" && !isFolder(path, paths) {
		return fuse.Attr{}, errStale
	}
	folders := len(subfolders(path, paths))
	var newest time.Time
	if path != "" {
		sets := newestOfSteps(t.store.Committed(sd.run(path)))
		folders += len(sets)
		for _, s := range sets {
			if s.Committed.After(newest) {
				newest = s.Committed
			}
		}
	}
	return t.mayWrite(sd, t.folderAttr(folders, newest, false)), nil
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "/" + name
}

func (t *Tree) lookupFolder(ctx context.Context, sd side, path string, name []byte) (fuse.Entry, error) {
	s := string(name)
	if s == "latest" && path != "" {
		id, ok := t.latest(sd, path)
		if !ok {
			return fuse.Entry{}, fs.ErrNotExist
		}
		return t.entry(ctx, name, id)
	}
	if s == writeFolder && path != "" && sd == checkpoints && t.write.desk != nil {
		return t.entry(ctx, name, idOf(t.vols.number(volume{sd.folder, path}), writePos))
	}
	paths := t.paths(sd)
	if isFolder(join(path, s), paths) {
		return t.entry(ctx, name, t.idOfVolume(volume{sd.folder, join(path, s)}))
	}
	step, attempt, ok := parseStep(s)
	if !ok || path == "" {
		return fuse.Entry{}, fs.ErrNotExist
	}
	rec, ok := t.store.Set(sd.run(path), step, attempt)
	if !ok {
		return fuse.Entry{}, fs.ErrNotExist
	}
	newest, _ := t.store.Set(sd.run(path), step, 0)
	listed := newest.SetID == rec.SetID && stepName(rec.SetID, subfolders(path, paths)) == s
	k := volume{sd.set, rec.SetID.String()}
	if !listed {
		k.kind = sd.attempt
	}
	e, err := t.entry(ctx, name, t.idOfVolume(k))
	e.Brief = attempt == 0 // a newer attempt's set may take the name
	return e, err
}

func (t *Tree) readFolder(ctx context.Context, sd side, path string, from uint64, add func(fuse.Entry, uint64) bool) error {
	// An entry's cookie is the number of its volume, so that it stays the same
	// when others come and go.
	type item struct {
		name   string
		id     fuse.ID
		cookie uint64
	}
	var items []item
	put := func(name string, k volume) {
		id := t.idOfVolume(k)
		n, _ := splitID(id)
		items = append(items, item{name, id, uint64(n)})
	}
	subs := subfolders(path, t.paths(sd))
	for _, name := range subs {
		put(name, volume{sd.folder, join(path, name)})
	}
	if path != "" {
		sets := newestOfSteps(t.store.Committed(sd.run(path)))
		for _, rec := range sets {
			put(stepName(rec.SetID, subs), volume{sd.set, rec.SetID.String()})
		}
		if id, ok := t.latest(sd, path); ok {
			items = append(items, item{"latest", id, latestPos})
		}
	}
	slices.SortFunc(items, func(a, b item) int { return cmp.Compare(a.cookie, b.cookie) })
	for _, it := range items {
		if it.cookie <= from {
			continue
		}
		e, err := t.entry(ctx, []byte(it.name), it.id)
		if err != nil { // gone since, or nobody can say how large: it is not listed
			continue
		}
		e.Brief = true
		if !add(e, it.cookie) {
			return nil
		}
	}
	return ctx.Err()
}
