package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// TestDraftCommitAmongWriters commits a draft again and again while programs
// rewrite its files. The set has each file as it was between two openings, and
// after it nobody writes any more.
func TestDraftCommitAmongWriters(t *testing.T) {
	t.Parallel()
	_, c, run := desk(t)
	const files = 3
	write := func(path string, i, version int) error {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		b := content(int64(version), 1, i, 50_000)
		_, err = f.WriteAt(b[:20_000], 0)
		if err == nil {
			_, err = f.WriteAt(b[20_000:], 20_000)
		}
		return errors.Join(err, f.Close())
	}
	for step := range 5 {
		draft, set := filepath.Join(run, ".write", fmt.Sprint(step)), filepath.Join(run, fmt.Sprint(step))
		mustSh(t, `mkdir -p "$1"`, draft)
		name := func(i int) string { return fmt.Sprintf("rank%d", i) }
		for i := range files {
			if err := write(filepath.Join(draft, name(i)), i, 0); err != nil {
				t.Fatal(err)
			}
		}
		ctx, stop := context.WithCancel(t.Context())
		var writing sync.WaitGroup
		for i := range files {
			writing.Go(func() {
				for version := 1; ctx.Err() == nil && version < 100_000; version++ {
					err := write(filepath.Join(draft, name(i)), i, version%50)
					if err != nil && !errors.Is(err, syscall.EBUSY) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ESTALE) {
						t.Errorf("%s: %v", name(i), err)
						return
					}
				}
			})
		}
		tries := 0
		eventually(t, fmt.Sprintf("step %d is committed", step), func() error {
			tries++
			if tries == 40 { // it may never be free otherwise
				stop()
			}
			_, err := c.CommitDraft(t.Context(), wire.CommitRequest{Ref: fmt.Sprintf("new/run@%d", step), World: files}, nil)
			if err != nil && !errors.Is(err, catalog.ErrConflict) {
				t.Fatal(err)
			}
			return err
		})
		stop()
		writing.Wait()
		for i := range files {
			got, err := os.ReadFile(filepath.Join(set, name(i)))
			whole := false
			for version := range 50 {
				whole = whole || bytes.Equal(got, content(int64(version), 1, i, 50_000))
			}
			if err != nil || !whole {
				t.Errorf("step %d: %s is %d bytes of no version: %v", step, name(i), len(got), err)
			}
		}
		t.Logf("step %d committed at try %d", step, tries)
	}
}
