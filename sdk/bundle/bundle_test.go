package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestDecide holds the choice of a launch: never over a committed set, never
// over a job that was not asked.
func TestDecide(t *testing.T) {
	at := ckpt.At("job", 5)
	set := func(attempt int, state catalog.State) wire.Set {
		id := catalog.SetID{Run: "job", Step: 5, Attempt: attempt}
		return wire.Set{ID: id.String(), Attempt: attempt, Step: 5, State: state}
	}
	run := func(launch string, attempt int) *wire.Run {
		return &wire.Run{Name: "job", Launch: launch, Attempt: attempt}
	}
	const fresh = importLaunch + " *"
	for _, c := range []struct {
		name string
		run  *wire.Run
		sets []wire.Set
		same string
		anew bool
		want string // launch, "done ID", or a word of the error
	}{
		{"NoRun", nil, nil, "", false, importLaunch},
		{"OurRun", run(importLaunch, 1), nil, "", false, importLaunch},
		{"OurRunLater", run("ckpt import ABC", 3), []wire.Set{set(2, catalog.Aborted)}, "", false, "ckpt import ABC"},
		{"Interrupted", run(importLaunch, 1), []wire.Set{set(1, catalog.Writing)}, "", false, importLaunch},
		{"GivenUp", run(importLaunch, 1), []wire.Set{set(1, catalog.Aborted)}, "", false, fresh},
		{"Pruned", run(importLaunch, 1), []wire.Set{set(1, catalog.Pruned)}, "", false, fresh},
		{"ThereAlready", run("train", 4), []wire.Set{set(4, catalog.Committed), set(2, catalog.Committed)}, "job@5#2", false, "done job@5#2"},
		{"ThereAlreadyAnew", run("train", 4), []wire.Set{set(2, catalog.Committed)}, "job@5#2", true, "done job@5#2"},
		{"OtherBytes", run(importLaunch, 1), []wire.Set{set(1, catalog.Committed)}, "", false, "never overwritten"},
		{"OtherBytesAnew", run(importLaunch, 1), []wire.Set{set(1, catalog.Committed)}, "", true, fresh},
		{"SomebodysRun", run("train", 1), nil, "", false, "would fence it"},
		{"SomebodysRunAnew", run("train", 1), nil, "", true, fresh},
		{"RebuiltRun", run("", 2), nil, "", false, "would fence it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := decide(at, c.run, c.sets, map[string]bool{c.same: true}, c.anew)
			got := p.launch
			switch {
			case err != nil:
				if !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("err = %v, want ErrConflict and %q", err, c.want)
				}
				return
			case p.done != "":
				got = "done " + p.done
			case strings.HasPrefix(p.launch, importLaunch+" ") && (c.run == nil || p.launch != c.run.Launch):
				got = fresh
			}
			if got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestDir(t *testing.T) {
	base := t.TempDir()
	d := NewDir(filepath.Join(base, "a", "b"))
	ctx := t.Context()
	if _, err := d.Open(ctx, ManifestFile); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open in a folder that is not there: %v", err)
	}
	release, err := d.Ready(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Ready(ctx); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("a second export at the same time: %v, want ErrConflict", err)
	}
	b := []byte("some bytes")
	seal := sealOf("x", b)
	write := func(commit bool) {
		t.Helper()
		f, err := d.Create(ctx, "set.json", seal.Size, seal.Root())
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.WriteAt(ctx, b, 0); err != nil {
			t.Fatal(err)
		}
		if commit {
			if err := f.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	has := func(want bool) {
		t.Helper()
		if got, err := d.Has(ctx, "set.json", seal.Size, seal.Root()); got != want || err != nil {
			t.Errorf("Has = %v, %v; want %v", got, err, want)
		}
	}
	has(false)
	write(false)
	has(false)
	if left, _ := os.ReadDir(d.path); len(left) > 0 {
		t.Errorf("Close without Commit left %v", left)
	}
	write(true)
	has(true)
	if ok, err := d.Has(ctx, "set.json", seal.Size, sealOf("x", []byte("other byte")).Root()); ok || err != nil {
		t.Errorf("Has with another root = %v, %v", ok, err)
	}
	if err := release(); err != nil {
		t.Fatal(err)
	}

	t.Run("NotAFileOfOurs", func(t *testing.T) {
		secret := filepath.Join(base, "secret")
		if err := os.WriteFile(secret, b, 0o600); err != nil {
			t.Fatal(err)
		}
		for name, make := range map[string]func(path string) error{
			"LinkOut":  func(p string) error { return os.Symlink(secret, p) },
			"LinkUp":   func(p string) error { return os.Symlink("../../secret", p) },
			"Pipe":     func(p string) error { return unix.Mkfifo(p, 0o600) },
			"Folder":   func(p string) error { return os.Mkdir(p, 0o700) },
			"LinkLoop": func(p string) error { return os.Symlink(filepath.Base(p), p) },
		} {
			dir := NewDir(t.TempDir())
			if err := make(filepath.Join(dir.path, SealFile(0))); err != nil {
				t.Fatal(err)
			}
			if f, err := dir.Open(ctx, SealFile(0)); !errors.Is(err, catalog.ErrCorrupt) {
				t.Errorf("%s: Open = %v, %v; want ErrCorrupt", name, f, err)
			}
			if ok, err := dir.Has(ctx, SealFile(0), seal.Size, seal.Root()); ok || err != nil {
				t.Errorf("%s: Has = %v, %v", name, ok, err)
			}
		}
	})
	t.Run("Ours", func(t *testing.T) {
		for name, want := range map[string]bool{
			"manifest.json": true, "set.json": true, "rank-00000.safetensors": true, "rank-00012.safetensors.seal": true,
			".rank-00012.safetensors.exporting": true, "rank-00003.bin": true, ".rank-00003.bin.seal.exporting": true, "rank-3.bin": false, "rank-00003.tar": false,
			"rank-0.safetensors": false, "model.safetensors": false, ".ssh": false, "rank-00000.safetensors.bak": false,
		} {
			if got := ours(name); got != want {
				t.Errorf("ours(%q) = %v, want %v", name, got, want)
			}
		}
	})
}
