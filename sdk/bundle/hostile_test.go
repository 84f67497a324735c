package bundle

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// mem is a store to read from, whose sizes may be claims.
type mem map[string][]byte

func (mem) String() string { return "memory" }
func (mem) Create(context.Context, string, int64, catalog.Digest) (File, error) {
	return nil, fs.ErrPermission
}
func (mem) Has(context.Context, string, int64, catalog.Digest) (bool, error) { return false, nil }
func (mem) Ready(context.Context) (func() error, error)                      { return nil, fs.ErrPermission }

func (m mem) Open(_ context.Context, name string) (Object, error) {
	b, ok := m[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return memObject{bytes.NewReader(b)}, nil
}

type memObject struct{ r *bytes.Reader }

func (o memObject) Size() int64  { return o.r.Size() }
func (o memObject) Close() error { return nil }
func (o memObject) ReadAt(_ context.Context, p []byte, off int64) error {
	if n, _ := o.r.ReadAt(p, off); n < len(p) {
		return fmt.Errorf("%w: it ends early", catalog.ErrCorrupt)
	}
	return nil
}

// small is an exported set of two small shards.
func small(t testing.TB) mem {
	t.Helper()
	id := catalog.SetID{Run: "a/b", Step: 3, Attempt: 2}
	m := &catalog.Manifest{Version: 1, Set: id, World: 2, Created: time.Unix(1e9, 0).UTC(), Metrics: map[string]float64{"loss": 1}}
	store := mem{}
	for rank := range 2 {
		data := bytes.Repeat([]byte{byte(rank), 1, 2, 3}, 60)
		h, err := shardfile.NewHeader([]shardfile.Spec{
			{Name: "w", DType: "F32", Shape: []int64{50}, Global: []int64{100}, Start: []int64{int64(50 * rank)}}, {Name: "s", DType: "U8", Shape: []int64{40}},
		}, map[string]string{"k": "v"})
		if err != nil {
			t.Fatal(err)
		}
		file := append(bytes.Clone(h.Bytes()), data...)
		seal := sealOf(id.ShardName(rank), file)
		m.Shards = append(m.Shards, shardfile.ShardOf(h, rank, "n1", seal))
		store[ShardFile(rank)], store[SealFile(rank)] = file, seal.Marshal()
	}
	raw, root, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	rec, err := json.Marshal(catalog.SetRecord{SetID: id, State: catalog.Committed, World: 2, Manifest: root, Tags: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	store[ManifestFile], store[RecordFile] = raw, rec
	return store
}

// readAll reads every byte of an exported set.
func readAll(ctx context.Context, from Store) error {
	s, err := Open(ctx, from)
	if err != nil {
		return err
	}
	for rank := range s.Manifest().Shards {
		sh, err := s.Shard(ctx, rank)
		if err != nil {
			return err
		}
		_, err = io.Copy(io.Discard, io.NewSectionReader(sh, 0, sh.Size()))
		if err = errors.Join(err, sh.Close()); err != nil {
			return err
		}
	}
	return nil
}

// TestPromise3EveryByte cuts each file at every length and flips it at every
// byte: nothing of it is read as if it were right.
func TestPromise3EveryByte(t *testing.T) {
	good := small(t)
	if err := readAll(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	for name, b := range good {
		bad := mem{}
		for k, v := range good {
			bad[k] = v
		}
		must := func(what string, harmed []byte) {
			t.Helper()
			bad[name] = harmed
			err := readAll(t.Context(), bad)
			if name == RecordFile && err == nil {
				return // tags and times are nobody's to check
			}
			if !errors.Is(err, catalog.ErrCorrupt) {
				t.Fatalf("%s %s: %v, want ErrCorrupt", name, what, err)
			}
		}
		step := max(1, len(b)/600)
		for i := 0; i < len(b); i += step {
			must(fmt.Sprintf("cut to %d bytes", i), b[:i])
			for _, bits := range []byte{1, 0xff} {
				flipped := bytes.Clone(b)
				flipped[i] ^= bits
				must(fmt.Sprintf("flipped at %d", i), flipped)
			}
		}
		if name != RecordFile { // white space may follow JSON
			must("with a byte more", append(bytes.Clone(b), 0))
		}
		bad[name] = nil
		delete(bad, name)
		err := readAll(t.Context(), bad)
		if want := map[bool]error{true: fs.ErrNotExist, false: catalog.ErrCorrupt}[name == ManifestFile]; !errors.Is(err, want) {
			t.Errorf("without %s: %v, want %v", name, err, want)
		}
	}
}

func FuzzOpenBundle(f *testing.F) {
	good := small(f)
	f.Add(good[ManifestFile], good[RecordFile], good[SealFile(0)], good[ShardFile(0)])
	f.Fuzz(func(t *testing.T, manifest, record, seal, shard []byte) {
		store := mem{ManifestFile: manifest, RecordFile: record, SealFile(0): seal, ShardFile(0): shard, SealFile(1): good[SealFile(1)], ShardFile(1): good[ShardFile(1)]}
		if err := readAll(t.Context(), store); err != nil && !errors.Is(err, catalog.ErrCorrupt) {
			t.Errorf("err = %v, want ErrCorrupt", err)
		}
	})
}
