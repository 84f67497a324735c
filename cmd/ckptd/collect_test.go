package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	datasetstore "github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// asImporter makes the test binary an import that stops between its packs and
// its version, to be killed there.
const asImporter = "CKPTD_TEST_IMPORTER"

// cutShort is a store whose imports end when all packs are committed.
type cutShort struct {
	datasets.Store
	end func() error
}

func (s cutShort) PutVersion(context.Context, datasets.Put) (catalog.SetID, error) {
	return catalog.SetID{}, s.end()
}

// importUntilVersion imports a folder until its version would be committed.
func importUntilVersion(ctx context.Context, c *ckpt.Client, dir, name string, end func() error) error {
	st, err := datasetstore.New(c, name)
	if err != nil {
		return err
	}
	src, err := source.Open(dir, source.Options{Format: source.Tree})
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = datasets.Import(ctx, src, cutShort{st, end}, datasets.Options{PackSize: 64 << 20, RawFrom: 1 << 20})
	return err
}

// importAndHang is the process that is killed.
func importAndHang(socket, dir, name string) int {
	c, err := ckpt.Dial(context.Background(), socket)
	if err == nil {
		err = importUntilVersion(context.Background(), c, dir, name, func() error {
			fmt.Println("packs are committed")
			select {}
		})
	}
	fmt.Println(err)
	return 1
}

// killedImport runs an import in a process of its own, and kills it between its
// packs and its version.
func killedImport(t *testing.T, socket, dir, name string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], socket, dir, name)
	cmd.Env = append(os.Environ(), asImporter+"=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if line != "packs are committed\n" {
		t.Fatalf("the import: %s", line)
	}
}

// packsOf lists the packs of a dataset that are committed.
func packsOf(t *testing.T, c *ckpt.Client, name string) []wire.Set {
	t.Helper()
	list, err := c.Sets(t.Context(), "_packs/"+name, false)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return list
}

// filesOf lists the files of sets whose run begins with a prefix, below a folder.
func filesOf(t *testing.T, dir, prefix string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && strings.Contains(path, prefix) && !strings.Contains(path, "run.json") {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// awaitCollected waits until no pack of a dataset is left, nor a file of one, and
// says when packs were pruned.
func awaitCollected(t *testing.T, d *daemon, c *ckpt.Client, name string) map[string]time.Time {
	t.Helper()
	went := make(map[string]time.Time)
	eventually(t, "the packs go", func() error {
		all, err := c.Sets(t.Context(), "_packs/"+name, true)
		if err != nil {
			return err
		}
		for _, p := range all {
			if p.State == catalog.Pruned && went[p.ID].IsZero() {
				s, err := c.Set(t.Context(), p.ID, false)
				if err != nil {
					continue // forgotten meanwhile
				}
				for _, e := range s.Events {
					if e.What == "pruned" {
						went[p.ID] = e.Time
					}
				}
			}
		}
		if files := filesOf(t, filepath.Join(d.dir, "data"), "_packs/"+name); len(files)+len(all) > 0 {
			return fmt.Errorf("%d sets, %d files: %q", len(all), len(files), files)
		}
		return nil
	})
	if len(went) == 0 {
		t.Error("no pack was seen to be pruned")
	}
	return went
}

// TestPromise6PacksOfAKilledImport: an import is killed with SIGKILL between its
// packs and its version. Its packs are taken up by the next import; when none
// comes they go, after the patience and not before, with their bytes.
func TestPromise6PacksOfAKilledImport(t *testing.T) {
	t.Parallel()
	dir, files := imageTree(t, rand.New(rand.NewPCG(1, 2)))
	const wait = 3 * time.Second
	d := newDaemon(t, "n1", "--pack-patience", wait.String(), "--grace", "1ms")
	c := d.start().dial()

	killedImport(t, d.socket, dir, "pets")
	if v, err := c.OpenDataset(t.Context(), "pets"); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("a version of an import that was killed: %v, %v", v, err)
	}
	before := packsOf(t, c, "pets")
	version, err := importTree(t.Context(), d.socket, dir, "pets")
	if err != nil {
		t.Fatal(err)
	}
	if len(before) < 2 || version.NewBytes != 0 || version.OldPacks != len(before) {
		t.Errorf("of %d packs %d were taken up, %d bytes are new", len(before), version.OldPacks, version.NewBytes)
	}

	killedImport(t, d.socket, dir, "cats")
	unnamed := packsOf(t, c, "cats")
	if list, err := c.Datasets(t.Context()); err != nil || len(list) != 2 || list[0].Name != "cats" || list[0].Latest != nil || list[0].Packs != len(unnamed) || list[0].Stored == 0 || list[1].Latest == nil {
		t.Errorf("%+v, %v", list, err)
	}
	if len(unnamed) != len(before) {
		t.Errorf("%d packs, want %d", len(unnamed), len(before))
	}
	last := unnamed[0].Committed
	for _, p := range unnamed {
		if p.Committed.After(last) {
			last = p.Committed
		}
	}
	for id, at := range awaitCollected(t, d, c, "cats") {
		if at.Sub(last) < wait {
			t.Errorf("%s was pruned %v after the last pack came, the patience is %v", id, at.Sub(last), wait)
		}
	}
	if got := packsOf(t, c, "pets"); len(got) != len(before) {
		t.Errorf("%d of %d packs of a version are left", len(got), len(before))
	}
	v, err := c.OpenDataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	for i := range v.Len() {
		if err := readSample(t.Context(), v, files, i); err != nil {
			t.Fatal(err)
		}
	}
}

// holdsNothing is a store of an import whose leases have run out.
type holdsNothing struct {
	datasets.Store
	before func() // the version is committed
}

type noBlob struct{ datasets.Blob }

func (noBlob) Close() error { return nil }

func (s holdsNothing) OpenPack(ctx context.Context, set catalog.SetID) (datasets.Stored, datasets.Blob, error) {
	stored, b, err := s.Store.OpenPack(ctx, set)
	if err == nil {
		err = b.Close()
	}
	return stored, noBlob{}, err
}

func (s holdsNothing) PutVersion(ctx context.Context, b datasets.Put) (catalog.SetID, error) {
	s.before()
	return s.Store.PutVersion(ctx, b)
}

// TestPromise6VersionOfCollectedPacks: an import's packs are collected before it
// commits its version, because nothing held them. It is told so, there is no
// version, and the next import is none the worse for it.
func TestPromise6VersionOfCollectedPacks(t *testing.T) {
	t.Parallel()
	dir, files := imageTree(t, rand.New(rand.NewPCG(5, 6)))
	d := newDaemon(t, "n1", "--pack-patience", "1s", "--grace", "1ms")
	c := d.start().dial()
	st, err := datasetstore.New(c, "pets")
	if err != nil {
		t.Fatal(err)
	}
	src, err := source.Open(dir, source.Options{Format: source.Tree})
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	store := holdsNothing{st, func() {
		eventually(t, "the packs go", func() error {
			if n := len(packsOf(t, c, "pets")); n > 0 {
				return fmt.Errorf("%d are left", n)
			}
			return nil
		})
	}}
	v, err := datasets.Import(t.Context(), src, store, datasets.Options{PackSize: 64 << 20, RawFrom: 1 << 20})
	if !errors.Is(err, catalog.ErrConflict) || !strings.Contains(err.Error(), "import again") {
		t.Errorf("the import: version %v, %v; want ErrConflict and what to do", v.Set, err)
	}
	list, err := c.Sets(t.Context(), "_datasets/pets", true)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if s.State != catalog.Aborted && s.State != catalog.Pruned {
			t.Errorf("%s is %s: as long as a version is on its way no pack goes", s.ID, s.State)
		}
	}
	if v, err = importTree(t.Context(), d.socket, dir, "pets"); err != nil {
		t.Fatal(err)
	}
	opened, err := c.OpenDataset(t.Context(), "pets")
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	for i := range opened.Len() {
		if err := readSample(t.Context(), opened, files, i); err != nil {
			t.Fatal(err)
		}
	}
	if v.Set.Step != 1 {
		t.Errorf("it is version %d, want 1", v.Set.Step)
	}
}

// TestPromise6ImportsBesideTheCollector: imports take up packs of others that
// were cut short, and versions are removed, while the collector has hardly any
// patience. An import may be told that packs went; a version that is visible has
// all of its packs, and its bytes.
func TestPromise6ImportsBesideTheCollector(t *testing.T) {
	t.Parallel()
	hardlyAny := []string{"--pack-patience", "700ms", "--grace", "1ms"}
	t.Run("OnOneNode", func(t *testing.T) {
		d := newDaemon(t, "n1", hardlyAny...)
		importBesideCollector(t, d, d.start().dial())
	})
	t.Run("OnAnotherNode", func(t *testing.T) { // n1 coordinates
		cat := &store{t: t, dir: t.TempDir(), addr: freePort(t, "127.0.0.1:0")}
		cat.up()
		t.Cleanup(cat.down)
		two := append(hardlyAny, "--nats", cat.url(), "--remote", "none")
		first := newDaemon(t, "n1", append(two, "--listen", freePort(t, "127.0.0.1:0"))...).start().dial()
		eventually(t, "n1 coordinates", func() error {
			s, err := first.Status(t.Context())
			if err == nil && s.Catalog.Coordinator != "n1" {
				err = fmt.Errorf("%q does", s.Catalog.Coordinator)
			}
			return err
		})
		d := newDaemon(t, "n2", append(two, "--listen", freePort(t, "127.0.0.1:0"))...)
		importBesideCollector(t, d, d.start().dial())
	})
}

func importBesideCollector(t *testing.T, d *daemon, c *ckpt.Client) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 3))
	dir, files := imageTree(t, r)
	made, refused, takenUp := 0, 0, 0
	for i := range 7 {
		// What differs each time: a small file and a large one.
		for name, size := range map[string]int{"changing/small": 1000 + i, "changing/large": 1<<20 + i} {
			files[name] = content(int64(i), 0, 0, size)
			if err := errors.Join(os.MkdirAll(filepath.Join(dir, "changing"), 0o755), os.WriteFile(filepath.Join(dir, name), files[name], 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		cut := errors.New("cut short")
		if err := importUntilVersion(t.Context(), c, dir, "pets", func() error { return cut }); !errors.Is(err, cut) && !errors.Is(err, catalog.ErrConflict) {
			t.Fatalf("the import that is cut short: %v", err)
		}
		time.Sleep(time.Duration(r.IntN(1000)) * time.Millisecond) // so that the collector is anywhere
		v, err := importTree(t.Context(), d.socket, dir, "pets")
		switch {
		case errors.Is(err, catalog.ErrConflict):
			refused++
			t.Logf("refused: %v", err)
			continue
		case err != nil:
			t.Fatal(err)
		}
		made++
		takenUp += v.OldPacks
		ref := catalog.DatasetRef(v.Set)
		opened, err := c.OpenDataset(t.Context(), ref)
		if err != nil {
			t.Fatalf("%s: %v", ref, err)
		}
		there := make(map[string]bool)
		for _, p := range packsOf(t, c, "pets") {
			there[p.ID] = true
		}
		for k := range opened.Index().Packs() {
			if p, err := opened.Index().Pack(k); err != nil || !there[p.Set.String()] {
				t.Fatalf("%s has no pack %v: %v", ref, p.Set, err)
			}
		}
		for range 20 {
			if err := readSample(t.Context(), opened, files, r.Int64N(opened.Len())); err != nil {
				t.Fatalf("%s: %v", ref, err)
			}
		}
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
		if r.IntN(2) == 0 {
			if _, err := c.Remove(t.Context(), v.Set.String()); err != nil && !errors.Is(err, catalog.ErrConflict) {
				t.Error(err)
			}
		}
	}
	if made == 0 {
		t.Error("no version was made")
	}
	res, err := c.Fsck(t.Context(), false, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range res.Problems {
		if strings.HasPrefix(p.ID, "_datasets/") && strings.Contains(p.What, "packs") {
			t.Errorf("fsck: %s: %s", p.ID, p.What)
		}
	}
	t.Logf("%d versions, %d refused, %d packs taken up", made, refused, takenUp)
	// In the end nothing is left but what versions name.
	eventually(t, "all packs of no version go", func() error {
		named := make(map[string]bool)
		versions, err := c.Sets(t.Context(), "_datasets/pets", false)
		if err != nil {
			return err
		}
		for _, v := range versions {
			o, err := c.OpenDataset(t.Context(), fmt.Sprintf("pets@%d", v.Step))
			if err != nil {
				return err
			}
			for k := range o.Index().Packs() {
				p, err := o.Index().Pack(k)
				if err != nil {
					return err
				}
				named[p.Set.String()] = true
			}
			if err := o.Close(); err != nil {
				return err
			}
		}
		if got := packsOf(t, c, "pets"); len(got) != len(named) {
			return fmt.Errorf("%d packs, versions name %d", len(got), len(named))
		}
		return nil
	})
}
