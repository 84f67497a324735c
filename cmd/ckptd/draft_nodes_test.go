package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// deskTrio is three daemons with a mount each; runs are the run's folder in each.
func deskTrio(t *testing.T) (k *trio, runs []string) {
	t.Helper()
	k = startTrio(t)
	for _, c := range k.c {
		dir := t.TempDir()
		mountAt(t, c, wire.MountRequest{Dir: dir})
		runs = append(runs, filepath.Join(dir, "checkpoints", "wide"))
	}
	return k, runs
}

// spread writes two files on each node for a step, and gives all of them in a
// folder to compare with.
func spread(t *testing.T, runs []string, step int) (all string) {
	t.Helper()
	all = t.TempDir()
	for i, run := range runs {
		draft := filepath.Join(run, ".write", fmt.Sprint(step))
		mustSh(t, `mkdir -p "$1"`, draft)
		for j := range 2 {
			name := fmt.Sprintf("__%d_%d.distcp", i*2+j, 0)
			b := content(int64(step), 1, i*2+j, 700_001+i)
			if err := errors.Join(os.WriteFile(filepath.Join(draft, name), b, 0o644), os.WriteFile(filepath.Join(all, name), b, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return all
}

// TestStoryDraftOfNodes: three nodes write parts of one checkpoint into their
// own mounts; one command makes them one set, which all nodes show whole.
func TestStoryDraftOfNodes(t *testing.T) {
	t.Parallel()
	k, runs := deskTrio(t)
	all := spread(t, runs, 1)
	if err := os.Rename(filepath.Join(runs[0], ".write", "1"), filepath.Join(runs[0], "1")); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("one node's part alone by rename: %v, want EBUSY", err)
	}
	for what, req := range map[string]wire.CommitRequest{"too few files": {World: 7}, "too few nodes": {Nodes: 4}, "too many files": {World: 2}} {
		req.Ref = "wide@1"
		if _, err := k.c[1].CommitDraft(t.Context(), req, nil); !errors.Is(err, catalog.ErrIncomplete) {
			t.Errorf("%s: %v, want ErrIncomplete", what, err)
		}
	}
	k.mustNotList("wide", 1)
	f, err := os.OpenFile(filepath.Join(runs[2], ".write", "1", "__5_0.distcp"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.c[1].CommitDraft(t.Context(), wire.CommitRequest{Ref: "wide@1"}, nil); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("a file of another node is open: %v, want ErrConflict", err)
	}
	f.Close()
	set, err := k.c[1].CommitDraft(t.Context(), wire.CommitRequest{Ref: "wide@1", World: 6, Nodes: 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if set.World != 6 || set.Level < catalog.Local {
		t.Errorf("committed as %+v", set)
	}
	for i, run := range runs {
		if err := sameFiles(t.Context(), all, filepath.Join(run, "1")); err != nil {
			t.Errorf("in the mount of n%d: %v", i+1, err)
		}
		if err := sameSet(t.Context(), k.c[i], "wide@1", all); err != nil {
			t.Errorf("by n%d: %v", i+1, err)
		}
		if s, err := k.c[i].Status(t.Context()); err != nil || len(s.Drafts) > 0 {
			t.Errorf("n%d has drafts %+v, %v", i+1, s.Drafts, err)
		}
	}

	// Without the catalog nothing is decided, and the drafts are as they were.
	all = spread(t, runs, 3)
	k.natsDown()
	if _, err := k.c[1].CommitDraft(t.Context(), wire.CommitRequest{Ref: "wide@3", World: 6, Nodes: 3}, nil); err == nil {
		t.Error("committed without the catalog")
	}
	if err := os.Rename(filepath.Join(runs[0], ".write", "3"), filepath.Join(runs[0], "3")); err == nil {
		t.Error("one node's part was committed without the catalog")
	}
	mustSh(t, `for i; do test "$(cat "$i/.write/3/"* | wc -c)" -gt 1400000; done`, runs...)
	k.natsUp()
	eventually(t, "committed when the catalog is back", func() error {
		_, err := k.c[1].CommitDraft(t.Context(), wire.CommitRequest{Ref: "wide@3", World: 6, Nodes: 3}, nil)
		return err
	})
	if err := sameFiles(t.Context(), all, filepath.Join(runs[2], "3")); err != nil {
		t.Error(err)
	}

	// Two files of one name are no set.
	spread(t, runs, 2)
	if err := os.WriteFile(filepath.Join(runs[2], ".write", "2", "__0_0.distcp"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := k.c[0].CommitDraft(t.Context(), wire.CommitRequest{Ref: "wide@2"}, nil); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("two files of one name: %v, want ErrConflict", err)
	}
}

// TestKill9AtDraftCommitOfNodes kills one of three daemons, the one that
// commits or another, all over a commit. In the end all have their drafts
// again, or there is the whole set.
func TestKill9AtDraftCommitOfNodes(t *testing.T) {
	t.Parallel()
	rounds, seed := crashKills(t, 6), crashSeed(t)
	r := rand.New(rand.NewPCG(seed, 3))
	k, runs := deskTrio(t)
	drafts := 0
	for step := 1; step <= rounds; step++ {
		all := spread(t, runs, step)
		req := wire.CommitRequest{Ref: fmt.Sprintf("wide@%d", step), World: 6, Nodes: 3}
		var g errgroup.Group
		var committed error
		leader := k.c[0]
		g.Go(func() error {
			_, committed = leader.CommitDraft(t.Context(), req, nil)
			return nil
		})
		select { // the moment is drawn, it is not waited for an event
		case <-time.After(time.Duration(r.Int64N(int64(80 * time.Millisecond)))):
		case <-t.Context().Done():
		}
		victim := step % 2
		k.nodes[victim].kill()
		k.nodes[victim].start()
		k.c[victim] = k.nodes[victim].dial()
		_ = g.Wait() // committed says it
		folder := func(i int, sub ...string) string {
			return filepath.Join(append([]string{runs[i]}, append(sub, fmt.Sprint(step))...)...)
		}
		eventually(t, fmt.Sprintf("step %d is decided", step), func() error {
			back := 0
			for i := range runs {
				_, derr := os.Stat(folder(i, ".write"))
				serr := sameFiles(t.Context(), all, folder(i))
				if derr == nil && serr == nil {
					return errors.New("both are there")
				}
				if derr == nil {
					back++
				} else if serr != nil {
					return fmt.Errorf("n%d has neither: %w, %w", i+1, derr, serr)
				}
			}
			switch {
			case back == 3 && committed == nil:
				return errors.New("it was acknowledged, and is a draft")
			case back != 0 && back != 3:
				return fmt.Errorf("%d of 3 nodes have a draft", back)
			}
			return nil
		})
		if _, err := os.Stat(folder(0)); err == nil {
			continue
		}
		drafts++
		eventually(t, fmt.Sprintf("step %d, committed once more", step), func() error {
			_, err := k.c[0].CommitDraft(t.Context(), req, nil)
			if err != nil && !errors.Is(err, catalog.ErrConflict) { // what was promised stays so for a while
				t.Fatal(err)
			}
			return err
		})
		for i := range runs {
			if err := sameFiles(t.Context(), all, folder(i)); err != nil {
				t.Errorf("step %d in the mount of n%d: %v", step, i+1, err)
			}
		}
	}
	t.Logf("%d of %d times the drafts were left", drafts, rounds)
}
