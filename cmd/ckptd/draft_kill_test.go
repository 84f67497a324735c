package main

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestKill9AtDraftCommit kills the daemon at moments all over a commit, by
// rename and by the API. What follows is the draft as it was, or the set: never
// both, never a part, and never neither. A commit that was acknowledged stays.
func TestKill9AtDraftCommit(t *testing.T) {
	t.Parallel()
	rounds, seed := crashKills(t, 12), crashSeed(t)
	r := rand.New(rand.NewPCG(seed, 9))
	d, c, run := desk(t)
	var drafts, sets int
	for step := 1; step <= rounds; step++ {
		src, draft, set := drafted(t, int64(step)), filepath.Join(run, ".write", fmt.Sprint(step)), filepath.Join(run, fmt.Sprint(step))
		mustSh(t, `mkdir -p "$2"`+"\n"+writers["cp"]+"\nsync -f \"$2\"", src, draft)
		done := make(chan error, 1)
		go func(c *ckpt.Client) {
			if step%2 == 0 {
				_, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: fmt.Sprintf("new/run@%d", step)}, nil)
				done <- err
				return
			}
			done <- os.Rename(draft, set)
		}(c)
		moment := func(most time.Duration) { // it is drawn: no event is waited for
			select {
			case <-time.After(time.Duration(r.Int64N(int64(most)))):
			case <-t.Context().Done():
			}
		}
		moment(90 * time.Millisecond)
		d.kill()
		err := <-done
		if r.IntN(3) == 0 { // and again while it goes on
			d.launch()
			moment(400 * time.Millisecond)
			d.kill()
		}
		d.start()
		c = d.dial()
		eventually(t, fmt.Sprintf("step %d is decided", step), func() error {
			if _, err := os.Stat(filepath.Dir(draft)); err != nil {
				return err // not mounted yet
			}
			_, derr := os.Stat(draft)
			_, serr := os.Stat(set)
			switch {
			case derr == nil && serr == nil:
				return errors.New("both are there")
			case serr == nil:
				return sameFiles(t.Context(), src, set)
			case derr == nil && err == nil:
				return errors.New("it was acknowledged, and is a draft")
			case derr == nil:
				return sameFiles(t.Context(), src, draft)
			}
			return fmt.Errorf("neither is there: %w, %w", derr, serr)
		})
		if _, err := os.Stat(draft); err == nil {
			drafts++
			if err := os.Rename(draft, set); err != nil {
				t.Errorf("step %d, committed once more: %v", step, err)
			}
		} else {
			sets++
		}
		if err := sameFiles(t.Context(), src, set); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
		if err := sameSet(t.Context(), c, fmt.Sprintf("new/run@%d", step), src); err != nil {
			t.Errorf("step %d: %v", step, err)
		}
	}
	if s, err := c.Status(t.Context()); err != nil || len(s.Drafts) > 0 || s.Local.Reserved != 0 {
		t.Errorf("left: %+v, %v", s.Drafts, err)
	}
	t.Logf("%d times the draft was left, %d times the set", drafts, sets)
}

// TestKill9BesideDraftWriter: a program goes on writing while the daemon dies
// and comes back. What was synced is there; while the program has its file open
// nothing is committed; what is committed then has all its bytes.
func TestKill9BesideDraftWriter(t *testing.T) {
	t.Parallel()
	d, c, run := desk(t)
	m, err := c.Mounts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	draft, set := filepath.Join(run, ".write", "5"), filepath.Join(run, "5")
	mustSh(t, `mkdir -p "$1"`, draft)
	f, err := os.Create(filepath.Join(draft, "rank0.pt"))
	if err != nil {
		t.Fatal(err)
	}
	b := content(5, 1, 0, 3<<20)
	if _, err := f.Write(b[:2<<20]); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	d.kill()
	if m[0].Passthrough {
		if _, err := f.Write(b[2<<20:]); err != nil {
			t.Errorf("the kernel writes no more: %v", err)
		}
	}
	d.start()
	c = d.dial()
	eventually(t, "the draft is back", func() error {
		fi, err := os.Stat(filepath.Join(draft, "rank0.pt"))
		if err == nil && fi.Size() < 2<<20 {
			err = fmt.Errorf("%d bytes, fewer than were synced", fi.Size())
		}
		return err
	})
	if m[0].Passthrough {
		if err := os.Rename(draft, set); !errors.Is(err, syscall.EBUSY) {
			t.Errorf("committed while a program has its file open: %v, want EBUSY", err)
		}
	} else {
		b = b[:2<<20]
	}
	if err := f.Close(); err == nil {
		t.Error("close(2) says nothing of the daemon's death")
	}
	if err := os.Rename(draft, set); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(set, "rank0.pt")); err != nil || string(got) != string(b) {
		t.Errorf("committed: %d bytes, %v; or other bytes", len(got), err)
	}
	if _, err := os.Stat(draft); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the draft: %v, want that it is gone", err)
	}
	if err := sameShardBytes(t, c, "new/run@5", b); err != nil {
		t.Error(err)
	}
}

func sameShardBytes(t *testing.T, c *ckpt.Client, ref string, want []byte) error {
	r, err := c.Open(t.Context(), ref)
	if err != nil {
		return err
	}
	defer r.Close()
	got := make([]byte, len(want))
	if err := r.ReadShard(t.Context(), 0, got); err != nil {
		return err
	}
	if string(got) != string(want) {
		return errors.New("other bytes")
	}
	return nil
}
