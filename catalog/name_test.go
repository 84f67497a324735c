package catalog

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
)

func TestParseRun(t *testing.T) {
	long := strings.Repeat("a", MaxComponentLen)
	for s, ok := range map[string]bool{
		"llama": true, "llama/7b-sft": true, "A/b_c/d.e/0": true, "a..b": true, "a.": true, "latest2": true, "1200": true,
		long: true, long + "/" + long + "/" + long: true, "a/b/c/d/e/f/g/h": true, "000000001200-00003": true, "run.jso": true,

		"": false, "/": false, "a/": false, "/a": false, "a//b": false, ".": false, "..": false, "a/../b": false, ".hidden": false, "a/.b": false,
		"latest": false, "a/latest": false, "latest/a": false, "000000001200-000003": false, "a/000000001200-000003/b": false,
		"run.json": false, "a/run.json": false, "run.json/a": false, "a b": false, "a@1": false, "a#1": false, "a:b": false, "a=2E": false,
		"a\x00": false, "ä": false, "a\n": false, "a*": false, ">": false, "a\\b": false,
		long + "a": false, "a/b/c/d/e/f/g/h/i": false, strings.Repeat("aaaa/", 80) + "a": false, strings.Repeat(long+"/", 3) + long: false,
	} {
		run, err := ParseRun(s)
		if ok && (err != nil || string(run) != s) {
			t.Errorf("ParseRun(%.50q) = %q, %v", s, run, err)
		}
		if !ok && !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseRun(%.50q) = %q, %v, want ErrInvalid", s, run, err)
		}
		if err != nil && len(err.Error()) > 500 {
			t.Errorf("an error of %d bytes about a hostile name", len(err.Error()))
		}
	}
}

func TestParseRef(t *testing.T) {
	for s, want := range map[string]Ref{
		"a@0":                              {Run: "a"},
		"llama/7b@1200":                    {Run: "llama/7b", Step: 1200},
		"a@00012":                          {Run: "a", Step: 12},
		"a@latest":                         {Run: "a", Step: Latest},
		"a@latest:remote":                  {Run: "a", Step: Latest, Level: Remote},
		"a@5:verified":                     {Run: "a", Step: 5, Level: Verified},
		"a@5#3":                            {Run: "a", Step: 5, Attempt: 3},
		"a@5#999999:local":                 {Run: "a", Step: 5, Attempt: MaxAttempt, Level: Local},
		fmt.Sprintf("a@%d", int64(1e12-1)): {Run: "a", Step: MaxStep},
	} {
		got, err := ParseRef(s)
		if err != nil || got != want {
			t.Errorf("ParseRef(%q) = %+v, %v, want %+v", s, got, err, want)
		}
		if again, err := ParseRef(got.String()); err != nil || again != got {
			t.Errorf("%q printed as %q reads %+v, %v", s, got, again, err)
		}
	}
	for _, s := range []string{
		"", "a", "@", "a@", "@1", "a@-1", "a@+1", "a@-0", "a@1.0", "a@0x1", "a@1e3", "a@ 1", "a@1_0", "a@1000000000000", "a@99999999999999999999",
		"a@last", "a@latest#1", "a@1#", "a@1#0", "a@1#+1", "a@1#-1", "a@1#1000000", "a@1:", "a@1:safe", "a@1:Remote", "a@1#1#1", "a@@1", "a@1@2", "a@1:local:local",
		"../a@1", "a//b@1", strings.Repeat("a", 5000) + "@1", "a@" + strings.Repeat("1", 5000), "a@1:" + strings.Repeat("x", 5000),
	} {
		if ref, err := ParseRef(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseRef(%.50q) = %+v, %v, want ErrInvalid", s, ref, err)
		} else if len(err.Error()) > 700 {
			t.Errorf("an error of %d bytes about a hostile reference", len(err.Error()))
		}
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"a@1", "a/b@latest:remote", "a@1#2:local", "a@#:"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseRef(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%q: %v has no class", s, err)
			}
			return
		}
		if again, err := ParseRef(ref.String()); err != nil || again != ref {
			t.Errorf("%q: %+v printed as %q reads %+v, %v", s, ref, ref, again, err)
		}
		if ref.Step == Latest {
			return
		}
		id := SetID{ref.Run, ref.Step, max(1, ref.Attempt)}
		if back, err := ParseDir(id.Dir()); err != nil || back != id {
			t.Errorf("folder %q reads %v, %v", id.Dir(), back, err)
		}
		if err := CheckKey(setKey(id)); err != nil {
			t.Error(err)
		}
	})
}

func TestParseDir(t *testing.T) {
	id := SetID{"llama/7b", 1200, 3}
	if got, want := id.Dir(), "llama/7b/000000001200-000003"; got != want {
		t.Errorf("Dir = %q, want %q", got, want)
	}
	if got, err := ParseDir(id.Dir()); err != nil || got != id {
		t.Errorf("ParseDir = %v, %v", got, err)
	}
	for _, dir := range []string{"", "/", "a", "a/", "000000001200-000003", "/000000001200-000003", "a/000000001200-000000",
		"a/00000001200-000003", "a/000000001200_000003", "a/00000000120x-000003", "../000000001200-000003", "a//000000001200-000003"} {
		if got, err := ParseDir(dir); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseDir(%q) = %v, %v, want ErrInvalid", dir, got, err)
		}
	}
}

// A job that went back to an older step must go on from what it saved since.
func TestLaterAttemptsAreNewer(t *testing.T) {
	ids := []SetID{{"a", 5, 2}, {"a", 900, 1}, {"a", 7, 2}, {"a", 5, 1}, {"b", 1, 1}}
	slices.SortFunc(ids, SetID.Compare)
	if got, want := fmt.Sprint(ids), "[a@5#1 a@900#1 a@5#2 a@7#2 b@1#1]"; got != want {
		t.Errorf("sorted %s, want %s", got, want)
	}
}

// Every legal name has a key that every driver takes, and no two share one.
func TestKeys(t *testing.T) {
	longest := Run("a" + strings.Repeat(".", MaxComponentLen-1))
	longest += "/" + longest + "/" + longest // 362 bytes, all but three of them three in the key
	longest += Run("/a" + strings.Repeat(".", MaxRunLen-len(longest)-2))
	node := strings.Repeat(".", MaxComponentLen)
	if _, err := ParseRun(string(longest)); err != nil {
		t.Fatal(err)
	}
	id := SetID{longest, MaxStep, MaxAttempt}
	for _, key := range []string{runKey(longest), setKey(id), partKey(id, node), logKey(id), leaseKey(id, strings.Repeat(".", 2*MaxComponentLen)), nodeKey(node), bulkKey(Digest{1}, 999999), coordKey} {
		if err := CheckKey(key); err != nil {
			t.Error(err)
		}
	}
	seen := make(map[string]string)
	for _, run := range []Run{"a", "a/b", "a.b", "a..b", "a./b", "a=b", "a-b", "A"} {
		for _, id := range []SetID{{run, 1, 1}, {run, 1, 11}, {run, 11, 1}} {
			for _, key := range []string{setKey(id), partKey(id, "n"), partKey(id, "n.n"), leaseKey(id, "n"), logKey(id)} {
				what := fmt.Sprint(id, key)
				if other, twice := seen[key]; twice {
					t.Errorf("%s and %s share %s", what, other, key)
				}
				seen[key] = what
			}
		}
	}
	for _, name := range []string{"", "a/b", "a b", "a=b", "ä", strings.Repeat("n", MaxComponentLen+1)} {
		if err := CheckNode(name); !errors.Is(err, ErrInvalid) {
			t.Errorf("CheckNode(%.20q) = %v, want ErrInvalid", name, err)
		}
	}
}

func TestLevelText(t *testing.T) {
	for l := LevelNone; l <= Verified; l++ {
		b, err := l.MarshalText()
		var back Level
		if err != nil || back.UnmarshalText(b) != nil || back != l {
			t.Errorf("%v: text %q reads %v", uint8(l), b, back)
		}
	}
	if !(LevelNone < Staged && Staged < Local && Local < Replicated && Replicated < Remote && Remote < Verified) {
		t.Error("the ladder is out of order")
	}
	for _, s := range []string{"", "Local", "safe", "6", strings.Repeat("x", 1000)} {
		l := Remote
		if err := l.UnmarshalText([]byte(s)); !errors.Is(err, ErrInvalid) || l != Remote || len(err.Error()) > 300 {
			t.Errorf("level %.20q: %v, %v", s, l, err)
		}
	}
	if got := Level(99).String(); got != "Level(99)" {
		t.Errorf("Level(99) = %q", got)
	}
}

func TestClassOf(t *testing.T) {
	for _, class := range Classes {
		err := fmt.Errorf("seal a@1: %w", fmt.Errorf("disk: %w: text", class))
		if got := ClassOf(err); got != class {
			t.Errorf("ClassOf(%v) = %v", err, got)
		}
	}
	if got := ClassOf(errors.New("other")); got != nil {
		t.Errorf("ClassOf of a foreign error = %v", got)
	}
	if got := ClassOf(nil); got != nil {
		t.Errorf("ClassOf(nil) = %v", got)
	}
	if got := ClassOf(errors.Join(fs.ErrExist, ErrFenced)); got != ErrFenced {
		t.Errorf("of two classes the more specific one counts, got %v", got)
	}
}
