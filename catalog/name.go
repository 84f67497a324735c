package catalog

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Limits of names and numbers. They keep every record key and path short
// enough for NATS subjects and for file systems (255 bytes a component).
const (
	MaxRunLen       = 400          // bytes of a run's name
	MaxComponentLen = 120          // bytes of one part between slashes
	MaxRunDepth     = 8            // parts of a run's name
	MaxStep         = 999999999999 // twelve digits
	MaxAttempt      = 999999       // six digits
	MaxWorld        = 1 << 20      // ranks of one set
)

// runRecordFile is what the copy of a run's record is called in every tier; a
// part of a name like it would be a folder where another run has a file.
const runRecordFile = "run.json"

// Run is the name of one training lineage: one or more parts joined by "/",
// each of letters, digits, "-", "_" and ".".
type Run string

// ParseRun checks a run's name.
func ParseRun(s string) (Run, error) {
	bad := func(why string) (Run, error) {
		return "", fmt.Errorf("run name %.200q: %w: %s", s, ErrInvalid, why)
	}
	if s == "" {
		return bad("it is empty")
	}
	if len(s) > MaxRunLen {
		return bad(fmt.Sprintf("longer than %d bytes", MaxRunLen))
	}
	parts := strings.Split(s, "/")
	if len(parts) > MaxRunDepth {
		return bad(fmt.Sprintf("more than %d parts", MaxRunDepth))
	}
	for _, p := range parts {
		switch {
		case p == "":
			return bad("it has an empty part; write names like llama/7b-sft")
		case len(p) > MaxComponentLen:
			return bad(fmt.Sprintf("a part is longer than %d bytes", MaxComponentLen))
		case p[0] == '.':
			return bad("a part begins with a dot")
		case p == "latest":
			return bad(`"latest" is reserved`)
		case p == runRecordFile:
			return bad(fmt.Sprintf("%q is reserved", runRecordFile))
		case isSetDir(p):
			return bad("a part looks like STEP-ATTEMPT, which is reserved")
		}
		for _, c := range []byte(p) {
			if !isNameByte(c) {
				return bad(fmt.Sprintf("%q is not allowed; use letters, digits, '-', '_', '.' and '/'", c))
			}
		}
	}
	return Run(s), nil
}

func isNameByte(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.'
}

// isSetDir reports whether p has the shape of SetID.Dir's last component.
func isSetDir(p string) bool {
	if len(p) != 19 || p[12] != '-' {
		return false
	}
	for i, c := range []byte(p) {
		if i != 12 && (c < '0' || c > '9') {
			return false
		}
	}
	return true
}

// SetID names one set: what one attempt saved for one step of a run.
type SetID struct {
	Run     Run   `json:"run"`
	Step    int64 `json:"step"`
	Attempt int   `json:"attempt"`
}

// String gives "RUN@STEP#ATTEMPT".
func (id SetID) String() string { return fmt.Sprintf("%s@%d#%d", id.Run, id.Step, id.Attempt) }

// Ref is the reference that resolves to exactly this set.
func (id SetID) Ref() Ref { return Ref{Run: id.Run, Step: id.Step, Attempt: id.Attempt} }

// Dir is the slash-separated folder of the set in every tier:
// "llama/7b/000000001200-000003". It sorts as the step does.
func (id SetID) Dir() string { return fmt.Sprintf("%s/%012d-%06d", id.Run, id.Step, id.Attempt) }

// Names of a set's blobs in every tier: a shard of tensors, a raw one, either
// as it is, and the records of the set.
func (id SetID) ShardName(rank int) string {
	return fmt.Sprintf("%s/rank-%05d.safetensors", id.Dir(), rank)
}
func (id SetID) RawName(rank int) string { return fmt.Sprintf("%s/rank-%05d.bin", id.Dir(), rank) }
func (id SetID) BlobName(rank int, raw bool) string {
	if raw {
		return id.RawName(rank)
	}
	return id.ShardName(rank)
}
func (id SetID) ManifestName() string { return id.Dir() + "/manifest.json" }
func (id SetID) RecordName() string   { return id.Dir() + "/set.json" }

// ParseDir reads what SetID.Dir printed.
func ParseDir(dir string) (SetID, error) {
	i := strings.LastIndexByte(dir, '/')
	if i < 0 || !isSetDir(dir[i+1:]) {
		return SetID{}, fmt.Errorf("set folder %.200q: %w", dir, ErrInvalid)
	}
	run, err := ParseRun(dir[:i])
	if err != nil {
		return SetID{}, err
	}
	step, _ := strconv.ParseInt(dir[i+1:i+13], 10, 64) // digits, checked by isSetDir
	attempt, _ := strconv.Atoi(dir[i+14:])
	id := SetID{Run: run, Step: step, Attempt: attempt}
	if err := id.Check(); err != nil {
		return SetID{}, fmt.Errorf("set folder %.200q: %w", dir, err)
	}
	return id, nil
}

// Check reports what is wrong with the id, if anything.
func (id SetID) Check() error {
	if _, err := ParseRun(string(id.Run)); err != nil {
		return err
	}
	if id.Step < 0 || id.Step > MaxStep {
		return fmt.Errorf("step %d: %w: want 0 to %d", id.Step, ErrInvalid, int64(MaxStep))
	}
	if id.Attempt < 1 || id.Attempt > MaxAttempt {
		return fmt.Errorf("attempt %d: %w: want 1 to %d", id.Attempt, ErrInvalid, MaxAttempt)
	}
	return nil
}

// Compare orders sets of one run by how recent they are: a later attempt is
// newer than an earlier one whatever its step, because a job that went back to
// an older step on purpose must resume from what it has saved since.
func (id SetID) Compare(o SetID) int {
	return cmp.Or(cmp.Compare(id.Run, o.Run), cmp.Compare(id.Attempt, o.Attempt), cmp.Compare(id.Step, o.Step))
}

// Ref is how users name a set: "RUN@STEP", "RUN@latest", "RUN@latest:LEVEL",
// or "RUN@STEP#ATTEMPT" for one attempt's set.
type Ref struct {
	Run     Run
	Step    int64 // Latest for the newest set
	Attempt int   // 0: the newest attempt that has the step
	Level   Level // LevelNone: any committed set
}

// Latest as Ref.Step means the newest committed set.
const Latest int64 = -1

// ParseRef reads a reference.
func ParseRef(s string) (Ref, error) {
	bad := func(why string) (Ref, error) {
		return Ref{}, fmt.Errorf("reference %.200q: %w: %s", s, ErrInvalid, why)
	}
	name, at, ok := strings.Cut(s, "@")
	if !ok {
		return bad("want RUN@STEP, RUN@latest or RUN@latest:LEVEL")
	}
	run, err := ParseRun(name)
	if err != nil {
		return Ref{}, err
	}
	ref := Ref{Run: run}
	at, level, ok := strings.Cut(at, ":")
	if ok {
		if ref.Level, err = ParseLevel(level); err != nil {
			return Ref{}, err
		}
	}
	if at == "latest" {
		ref.Step = Latest
		return ref, nil
	}
	step, attempt, ok := strings.Cut(at, "#")
	if ok {
		n, fine := parseNumber(attempt, MaxAttempt)
		if !fine || n < 1 {
			return bad(fmt.Sprintf("the attempt after # is a number from 1 to %d", MaxAttempt))
		}
		ref.Attempt = int(n)
	}
	if ref.Step, ok = parseNumber(step, MaxStep); !ok {
		return bad(fmt.Sprintf(`the step after @ is "latest" or a number from 0 to %d`, int64(MaxStep)))
	}
	return ref, nil
}

// parseNumber reads decimal digits, and nothing else, up to most.
func parseNumber(s string, most int64) (int64, bool) {
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil && n <= most
}

func (r Ref) String() string {
	s := string(r.Run) + "@"
	if r.Step == Latest {
		s += "latest"
	} else {
		s += strconv.FormatInt(r.Step, 10)
	}
	if r.Attempt != 0 {
		s += "#" + strconv.Itoa(r.Attempt)
	}
	if r.Level != LevelNone {
		s += ":" + r.Level.String()
	}
	return s
}

func (r Ref) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

func (r *Ref) UnmarshalText(b []byte) error {
	v, err := ParseRef(string(b))
	if err == nil {
		*r = v
	}
	return err
}
