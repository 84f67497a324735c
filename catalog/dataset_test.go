package catalog

import (
	"errors"
	"maps"
	"strings"
	"testing"
)

func TestParseDatasetRef(t *testing.T) {
	for s, want := range map[string]Ref{
		"imagenet":             {Run: "_datasets/imagenet", Step: Latest},
		"imagenet@latest":      {Run: "_datasets/imagenet", Step: Latest},
		"web/en@3":             {Run: "_datasets/web/en", Step: 3},
		"web/en@latest:remote": {Run: "_datasets/web/en", Step: Latest, Level: Remote},
	} {
		if got, err := ParseDatasetRef(s); err != nil || got != want {
			t.Errorf("ParseDatasetRef(%q) = %+v, %v, want %+v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "@", "@3", "a@", "a@0", "a@-1", "_packs/a@3", "_datasets/a", "../a", "a//b", "latest", strings.Repeat("a", 5000), "a/b/c/d/e/f/g/h"} {
		if got, err := ParseDatasetRef(s); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseDatasetRef(%.40q) = %+v, %v, want ErrInvalid", s, got, err)
		} else if len(err.Error()) > 900 {
			t.Errorf("an error of %d bytes about a hostile reference", len(err.Error()))
		}
	}
	id := SetID{"_datasets/web/en", 3, 2}
	if got, want := DatasetRef(id), "web/en@3"; got != want {
		t.Errorf("DatasetRef = %q, want %q", got, want)
	}
	if name, ok := PackName("_packs/web/en"); !ok || name != "web/en" {
		t.Errorf("PackName = %q, %v", name, ok)
	}
	for run, reserved := range map[Run]bool{"a": false, "a/_b": false, "_datasets/a": true, "_x": true} {
		if run.Reserved() != reserved {
			t.Errorf("%s.Reserved() = %v", run, !reserved)
		}
	}
}

// Promise 10: checkpoints do not come to lie in reserved runs.
func TestPromise10ReservedRuns(t *testing.T) {
	for _, c := range []struct {
		run   Run
		step  int64
		world int
		raw   bool
		ok    bool
	}{
		{"a", 0, 8, false, true}, {"a", 0, 8, true, true},
		{"_datasets/a", 1, 1, true, true}, {"_packs/a", 0, 1, true, true},
		{"_datasets/a", 0, 1, true, false}, {"_datasets/a", 1, 2, true, false}, {"_datasets/a", 1, 1, false, false},
		{"_packs/a", 1, 1, false, false}, {"_packs/a", 1, 3, true, false}, {"_mine", 1, 1, true, false}, {"_cache/a", 1, 1, true, false},
	} {
		err := SetID{c.run, c.step, 1}.CheckSaved(c.world, c.raw)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func goodRaw() *Manifest {
	return &Manifest{Version: 1, Set: SetID{"a", 1, 1}, World: 1, Shards: []Shard{
		{Size: 5, Root: Digest{1}, File: "model.onnx", Meta: map[string]string{"k": "v"}, Tensors: []Tensor{}},
	}}
}

// Promise 12: what a manifest says of a raw shard is ErrCorrupt or true to its rules.
func TestPromise12RawShards(t *testing.T) {
	parse := func(m *Manifest) (*Manifest, error) {
		b, root, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return ParseManifest(b, root)
	}
	m, err := parse(goodRaw())
	if err != nil || !m.Shards[0].Raw() || m.Shards[0].BlobName(m.Set) != "a/000000000001-000001/rank-00000.bin" {
		t.Fatalf("got %+v, %v", m, err)
	}
	for name, edit := range map[string]func(s *Shard){
		"Path":      func(s *Shard) { s.File = "a/b" },
		"Up":        func(s *Shard) { s.File = ".." },
		"Here":      func(s *Shard) { s.File = "." },
		"NUL":       func(s *Shard) { s.File = "a\x00b" },
		"Escape":    func(s *Shard) { s.File = "a\x1b[2J" },
		"TooLong":   func(s *Shard) { s.File = strings.Repeat("a", MaxFileLen+1) },
		"Empty":     func(s *Shard) { s.Size = 0 },
		"Header":    func(s *Shard) { s.Header = 4 },
		"Tensor":    func(s *Shard) { s.Tensors = []Tensor{{Name: "t", DType: "U8", Shape: []int64{1}, Size: 1}} },
		"MetaEmpty": func(s *Shard) { s.Meta = map[string]string{"": "v"} },
		"MetaLarge": func(s *Shard) { s.Meta = map[string]string{"k": strings.Repeat("v", MaxMetaSize)} },
		"MetaMany": func(s *Shard) {
			s.Meta = maps.Collect(func(yield func(string, string) bool) {
				for i := range MaxMeta + 1 {
					if !yield(strings.Repeat("k", i+1), "") {
						return
					}
				}
			})
		},
	} {
		m := goodRaw()
		edit(&m.Shards[0])
		if _, err := parse(m); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	if err := CheckFile("a\xffb"); !errors.Is(err, ErrInvalid) { // no JSON would carry it
		t.Errorf("a name that is not UTF-8: %v", err)
	}
}

// FuzzParseDatasetRef: what is taken for a reference is of a dataset's run, and
// means the same when it is written down and read again.
func FuzzParseDatasetRef(f *testing.F) {
	for _, s := range []string{"imagenet", "web/en@3", "web/en@latest:remote", "a@3#2", "_packs/a@3", "../a", "a@0"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseDatasetRef(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		name, ok := DatasetName(ref.Run)
		if !ok || ref.Step < 1 && ref.Step != Latest {
			t.Fatalf("%q is %+v", s, ref)
		}
		if ref.Step == Latest || ref.Attempt != 0 {
			return
		}
		again, err := ParseDatasetRef(DatasetRef(SetID{ref.Run, ref.Step, 1}))
		if err != nil || again.Run != ref.Run || again.Step != ref.Step {
			t.Errorf("%q of %s, written and read again: %+v, %v", s, name, again, err)
		}
	})
}
