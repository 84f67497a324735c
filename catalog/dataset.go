package catalog

import (
	"fmt"
	"strings"
)

// A run whose first part begins with "_" is reserved: ckptd keeps things of
// its own there, with the machinery that keeps checkpoints. Versions of the
// dataset NAME are the steps of _datasets/NAME, its packs the sets of
// _packs/NAME.
const (
	DatasetsPrefix = "_datasets/" // of the runs whose steps are versions
	packsPrefix    = "_packs/"
)

// What the shard of a version's index says of it: keys of its metadata. The
// values of all but the digest are numbers.
const (
	MetaDigest  = "digest" // of the content
	MetaFiles   = "files"
	MetaBytes   = "bytes" // of the files
	MetaSamples = "samples"
	MetaPacks   = "packs"
)

// Reserved says whether the run is one of ckptd's own: it is not listed with
// the users' runs, and not for checkpoints.
func (r Run) Reserved() bool { return strings.HasPrefix(string(r), "_") }

// DatasetRun is the run whose steps are the versions of a dataset. A dataset's
// name has the rules of a run's name.
func DatasetRun(name string) (Run, error) { return reservedRun(DatasetsPrefix, name) }

// PackRun is the run whose sets are the packs of a dataset.
func PackRun(name string) (Run, error) { return reservedRun(packsPrefix, name) }

func reservedRun(prefix, name string) (Run, error) {
	run, err := ParseRun(name)
	if err == nil && run.Reserved() {
		err = fmt.Errorf("%w: names that begin with \"_\" are reserved", ErrInvalid)
	}
	if err == nil {
		run, err = ParseRun(prefix + name) // longer by one part
	}
	if err != nil {
		return "", fmt.Errorf("dataset %.200q: %w", name, err)
	}
	return run, nil
}

// DatasetName is the dataset whose versions are the steps of run; false when
// run is no such run.
func DatasetName(run Run) (string, bool) { return strings.CutPrefix(string(run), DatasetsPrefix) }

// PackName is the dataset whose packs are the sets of run; false when run is
// no such run.
func PackName(run Run) (string, bool) { return strings.CutPrefix(string(run), packsPrefix) }

// ParseDatasetRef reads how users name a version: "NAME@3", "NAME@latest", or
// "NAME" for the latest; "NAME@latest:LEVEL" as with checkpoints. The result
// names the version's set.
func ParseDatasetRef(s string) (Ref, error) {
	if !strings.Contains(s, "@") {
		s += "@latest"
	}
	ref, err := ParseRef(s)
	if err == nil && ref.Step == 0 {
		err = fmt.Errorf("%w: versions count from 1", ErrInvalid)
	}
	if err == nil {
		ref.Run, err = DatasetRun(string(ref.Run))
	}
	if err != nil {
		return Ref{}, fmt.Errorf("dataset reference %.200q: %w; want NAME@VERSION, NAME@latest or NAME", s, err)
	}
	return ref, nil
}

// DatasetRef is a version's set as users name it: "NAME@3".
func DatasetRef(id SetID) string {
	name, _ := DatasetName(id.Run)
	return fmt.Sprintf("%s@%d", name, id.Step)
}

// CheckSaved refuses what may not be saved under the name of a run: in a
// reserved one there is a single raw shard a set, and versions count from 1.
func (id SetID) CheckSaved(world int, raw bool) error {
	if !id.Run.Reserved() {
		return nil
	}
	_, version := DatasetName(id.Run)
	_, pack := PackName(id.Run)
	switch {
	case !version && !pack:
		return fmt.Errorf("run %s: %w: names that begin with \"_\" are reserved; choose another", id.Run, ErrInvalid)
	case !raw || world != 1:
		return fmt.Errorf("run %s: %w: it is reserved for datasets (`ckpt dataset import`); choose another name for checkpoints", id.Run, ErrInvalid)
	case version && id.Step == 0:
		return fmt.Errorf("%v: %w: versions count from 1", id, ErrInvalid)
	}
	return nil
}
