package ckpt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets/index"
	"github.com/ckptd/ckptd/datasets/order"
	"github.com/ckptd/ckptd/datasets/pack"
	"github.com/ckptd/ckptd/sdk/wire"
)

// peerDataset is a version that a peer serves.
type peerDataset struct {
	set      catalog.SetID
	files    map[string][]byte
	index    string   // a file
	packs    []string // files
	sets     []string
	arriving map[int]bool
}

// newPeerDataset makes a version of packs*each files, each a sample, and has p serve it.
func newPeerDataset(t testing.TB, p *peer, packs, each int) *peerDataset {
	t.Helper()
	d := &peerDataset{set: catalog.SetID{Run: "_datasets/pets", Step: 3, Attempt: 1}, files: map[string][]byte{}, arriving: map[int]bool{}}
	b := index.NewBuilder()
	for n := range packs {
		mem := make([]byte, 1<<20)
		w, err := pack.NewBuffer(mem)
		if err != nil {
			t.Fatal(err)
		}
		for k := range each {
			path := fmt.Sprintf("d%d/f%03d", n, k)
			data := bytes.Repeat([]byte{byte(n), byte(k), 7}, 100+k)
			rec, err := w.Append(bytes.NewReader(data), int64(len(data)), 0)
			if err != nil {
				t.Fatal(err)
			}
			id, err := b.Add(index.Add{Path: path, Kind: index.File, Size: rec.Size, Pack: n, Offset: rec.Offset, CRC: rec.CRC, Hash: rec.Hash})
			if err == nil {
				err = b.Whole(id)
			}
			if err != nil {
				t.Fatal(err)
			}
			d.files[path] = data
		}
		size, _, err := w.Finish()
		if err != nil {
			t.Fatal(err)
		}
		set := catalog.SetID{Run: "_packs/pets", Step: int64(100 + n), Attempt: 1}
		if _, err := b.AddPack(index.Pack{Set: set, Size: size, Root: catalog.Digest{1}}); err != nil {
			t.Fatal(err)
		}
		d.packs, d.sets = append(d.packs, filepath.Join(p.dir, fmt.Sprintf("pack%d", n))), append(d.sets, set.String())
		if err := os.WriteFile(d.packs[n], mem[:size], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	if _, err := b.WriteTo(&out); err != nil {
		t.Fatal(err)
	}
	d.index = filepath.Join(p.dir, "index")
	if err := os.WriteFile(d.index, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	p.dataset = d
	return d
}

// datasets answers the messages about datasets.
func (c *peerConn) datasets(m *wire.Message, fds []*os.File) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := c.dataset
	if d == nil {
		return fs.ErrNotExist
	}
	lend := func(path string, m *wire.Message) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return err
		}
		m.Size = info.Size()
		return c.conn.Write(m, nil, f)
	}
	switch m.T {
	case "dataset":
		return lend(d.index, &wire.Message{T: "dataset", Set: d.set.String(), Version: 3})
	case "pack":
		if d.arriving[m.Pack] {
			return c.conn.Write(&wire.Message{T: "pack", Pack: m.Pack, Set: d.sets[m.Pack]}, nil)
		}
		return lend(d.packs[m.Pack], &wire.Message{T: "pack", Pack: m.Pack, Set: d.sets[m.Pack], Complete: true})
	case "load":
		b, err := os.ReadFile(d.packs[slices.Index(d.sets, m.Set)])
		if err != nil {
			return err
		}
		var n int64
		for _, r := range m.Ranges {
			if _, err := fds[0].WriteAt(b[r[0]:r[0]+r[1]], r[0]-m.Off); err != nil {
				return err
			}
			n += r[1]
		}
		return c.conn.Write(&wire.Message{T: "loaded", From: "peer", Size: int64(len(b)), Filled: n}, nil)
	}
	return c.conn.Write(&wire.Message{T: "reader", Set: m.Set, ID: m.ID, At: m.At, Order: m.Order}, nil)
}

func openPets(t testing.TB, p *peer, opts ...DatasetOption) *Dataset {
	t.Helper()
	c, err := Dial(t.Context(), p.socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	d, err := c.OpenDataset(t.Context(), "pets@latest", opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// want checks one sample against the file it is of.
func (pd *peerDataset) want(d *Dataset, s Sample) error {
	path, err := d.Index().Path(s.Fields[0].File)
	if err != nil {
		return err
	}
	if len(s.Data) != 1 || !bytes.Equal(s.Data[0], pd.files[string(path)]) {
		return fmt.Errorf("sample %d is not %s", s.Number, path)
	}
	return nil
}

func TestDataset(t *testing.T) {
	p := newPeer(t)
	pd := newPeerDataset(t, p, 5, 20)
	pd.arriving[2] = true
	d := openPets(t, p, MaxMappedPacks(2))
	if d.Name() != "pets@3" || d.Len() != 100 {
		t.Errorf("%s has %d samples", d.Name(), d.Len())
	}
	e, err := d.Epoch(t.Context(), EpochOptions{Seed: 5})
	if err != nil {
		t.Fatal(err)
	}
	seen := map[int64]bool{}
	for {
		batch, err := e.Take(t.Context(), 7)
		if err != nil {
			t.Fatal(err)
		}
		if len(batch) == 0 {
			break
		}
		n := 0
		err = d.Batch(t.Context(), batch, func(k int, s Sample) error {
			if n++; s.Number != batch[k] || seen[s.Number] {
				t.Errorf("sample %d at %d of %v", s.Number, k, batch)
			}
			seen[s.Number] = true
			return pd.want(d, s)
		})
		if err != nil || n != len(batch) {
			t.Fatalf("%d of %d samples, %v", n, len(batch), err)
		}
	}
	if len(seen) != 100 {
		t.Errorf("an epoch of %d samples", len(seen))
	}
	if n := len(d.maps.maps); n > 2 {
		t.Errorf("%d packs are mapped, at most 2 may", n)
	}
	t.Run("Sample", func(t *testing.T) {
		s, err := d.Sample(t.Context(), 42) // of the pack that is arriving
		if err == nil {
			err = pd.want(d, s)
		}
		if err != nil {
			t.Error(err)
		}
		if _, err := d.Sample(t.Context(), 100); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("sample 100 of 100: %v", err)
		}
	})
	t.Run("Open", func(t *testing.T) {
		for _, path := range []string{"d0/f003", "d2/f019"} {
			f, err := d.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, pd.files[path]) {
				t.Errorf("%s: %d bytes, %v", path, len(got), err)
			}
		}
		if _, err := d.Open("d0/x"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a file that is not there: %v", err)
		}
	})
}

// TestDatasetResumes: any world size goes on where another stopped, and
// repeats and skips nothing.
func TestDatasetResumes(t *testing.T) {
	p := newPeer(t)
	newPeerDataset(t, p, 5, 21)
	d := openPets(t, p)
	var cursor order.Cursor
	var got []int64
	for r := range 4 {
		e, err := d.Epoch(t.Context(), EpochOptions{Seed: 9, Epoch: 2, Rank: r, World: 4, Mode: order.Window(20, 2)})
		if err != nil {
			t.Fatal(err)
		}
		batch, err := e.Take(t.Context(), 10)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, batch...)
		cursor = e.Cursor()
	}
	if cursor.At != 40 {
		t.Errorf("the cursor is at %d, want 40", cursor.At)
	}
	for r := range 3 {
		back, err := order.ParseCursor(cursor.String())
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.Resume(t.Context(), back, r, 3)
		if err != nil {
			t.Fatal(err)
		}
		batch, err := e.Take(t.Context(), 1000)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, batch...)
		if e.Cursor().At != d.Len() {
			t.Errorf("at the end the cursor is at %d", e.Cursor().At)
		}
	}
	slices.Sort(got)
	if len(got) != 105 || len(slices.Compact(got)) != 105 {
		t.Errorf("%d samples, %d of them different, want 105", len(got), len(slices.Compact(got)))
	}
	cursor.Digest[0]++
	if _, err := d.Resume(t.Context(), cursor, 0, 1); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("the cursor of another version: %v", err)
	}
}

// TestDatasetManyReaders: mappings come and go under many goroutines, and the
// daemon restarts meanwhile.
func TestDatasetManyReaders(t *testing.T) {
	p := newPeer(t)
	pd := newPeerDataset(t, p, 6, 20)
	pd.arriving[1] = true
	d := openPets(t, p, MaxMappedPacks(1))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for k := range int64(200) {
				i := (k*37 + int64(g)*11) % d.Len()
				err := d.Batch(t.Context(), []int64{i, (i + 60) % d.Len()}, func(_ int, s Sample) error { return pd.want(d, s) })
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	d.turn <- struct{}{}
	d.ses.conn.U.Close() // as when the daemon restarts
	<-d.turn
	if s, err := d.Sample(t.Context(), 25); err != nil || pd.want(d, s) != nil {
		t.Errorf("after the connection broke: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Batch(ctx, []int64{1}, func(int, Sample) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("a context that ended: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := d.Batch(t.Context(), []int64{1}, func(int, Sample) error { return nil }); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestDatasetHostileDaemon: an index or a pack that is not what it should be
// is refused.
func TestDatasetHostileDaemon(t *testing.T) {
	p := newPeer(t)
	pd := newPeerDataset(t, p, 2, 3)
	d := openPets(t, p)
	if err := os.Truncate(pd.packs[1], 100); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Sample(t.Context(), 4); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("a pack of another size: %v", err)
	}
	if err := os.WriteFile(pd.index, make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.c.OpenDataset(t.Context(), "pets"); !errors.Is(err, catalog.ErrCorrupt) {
		t.Errorf("an index of zeros: %v", err)
	}
	if _, err := d.c.OpenDataset(t.Context(), "pets", MaxMappedPacks(0)); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("no mapped packs: %v", err)
	}
}
