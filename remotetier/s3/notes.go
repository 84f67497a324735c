package s3

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/plain"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
)

// A note is a copy of a sidecar, made before its data is, or before the
// sidecar goes: what is to be cleared away when the process that made it dies.
type kind string

const (
	kindNew kind = "new" // of a column that is not committed yet
	kindOld kind = "old" // of one that was replaced, or is being removed
)

// unique names a note as no other process does, and says when it was made.
func (t *Target) unique(k kind) string {
	t.mu.Lock()
	t.mu.seq++
	seq := t.mu.seq
	t.mu.Unlock()
	var r [8]byte
	_, _ = rand.Read(r[:]) // never fails
	return fmt.Sprintf("%s%016x-%d-%d-%s.%s", notesDir, time.Now().UnixNano(), os.Getpid(), seq, hex.EncodeToString(r[:]), k)
}

func (t *Target) addNote(ctx context.Context, k kind, side []byte) (string, error) {
	name := t.unique(k)
	return name, t.b.Put(ctx, name, side, nil)
}

// noteOld notes a sidecar that is about to be replaced or removed. There is
// none if the sidecar is not there, or does not say what its data is called.
func (t *Target) noteOld(ctx context.Context, key remotetier.Key) (*plain.Sidecar, string, error) {
	s, head, _, err := t.sidecar(ctx, key)
	if missing(err) || errors.Is(err, catalog.ErrCorrupt) {
		return nil, "", nil
	} else if err != nil {
		return nil, "", err
	}
	note, err := t.addNote(ctx, kindOld, head[:plain.Head])
	return s, note, err
}

// retire takes a column with a sidecar out of sight and clears its data away.
func (t *Target) retire(ctx context.Context, key remotetier.Key) error {
	s, note, err := t.noteOld(ctx, key)
	if err != nil {
		return err
	}
	if s == nil { // there is none, or nobody can tell what it says
		if _, err := t.b.Stat(ctx, sideName(key)); missing(err) {
			return nil
		} else if err != nil {
			return err
		}
	}
	if err := t.b.Remove(ctx, sideName(key)); err != nil {
		return err
	}
	if s == nil {
		return t.dropStray(ctx, key, "")
	}
	if err := t.clear(ctx, s); err != nil {
		return err
	}
	t.addUsed(-s.Blob - s.FileSize())
	return t.b.Remove(ctx, note)
}

// clear removes the data of a column that is not committed (any more). If that
// had the blob's own name, the newest other column gets it.
func (t *Target) clear(ctx context.Context, s *plain.Sidecar) error {
	folder, _ := plain.Split(s.Key.Blob)
	if err := t.b.Remove(ctx, plain.Join(folder, s.Data)); err != nil {
		return err
	}
	tag := ""
	if s.Own { // a copy to that name may have another
		tag = s.Tag
	}
	if err := t.dropData(ctx, s.Key.Blob, s.Data, tag); err != nil {
		return err
	}
	return t.promote(ctx, s.Key.Blob)
}

// dropData deletes an object if it is that data. Some servers keep the metadata
// of an object that is written over without any; the ETag, where it is known,
// tells those apart.
func (t *Target) dropData(ctx context.Context, object, data, etag string) error {
	info, err := t.b.Stat(ctx, object)
	if missing(err) || err == nil && (info.Meta[metaData] != data || etag != "" && info.ETag != etag) {
		return nil
	} else if err != nil {
		return err
	}
	return t.b.Remove(ctx, object)
}

// dropReplaced clears away what a committed replacement took the place of.
// name is the new data's.
func (t *Target) dropReplaced(ctx context.Context, key remotetier.Key, name string, old *plain.Sidecar, note string) error {
	if err := t.b.Remove(ctx, wholeName(key)); err != nil {
		return err
	}
	if old == nil {
		return t.dropStray(ctx, key, name)
	}
	if err := t.clear(ctx, old); err != nil {
		return err
	}
	return t.b.Remove(ctx, note)
}

// dropStray removes data of a key whose sidecar did not say what it is called,
// except the one named.
func (t *Target) dropStray(ctx context.Context, key remotetier.Key, except string) error {
	folder, base := plain.Split(key.Blob)
	of := remotetier.Key{Blob: base, Generation: key.Generation, Column: key.Column}
	stray := func(name string) bool {
		k, kind, ok := plain.Parse(name)
		return ok && kind == plain.DataKind && k == of && name != except
	}
	objects, _, err := t.b.Folder(ctx, plain.Join(folder, strings.TrimSuffix(plain.SidecarName(key), string(plain.SidecarKind))))
	if err != nil {
		return err
	}
	for _, o := range objects {
		if stray(o.Name) {
			if err := t.b.Remove(ctx, plain.Join(folder, o.Name)); err != nil {
				return err
			}
		}
	}
	info, err := t.b.Stat(ctx, key.Blob)
	if err == nil && stray(info.Meta[metaData]) {
		err = t.b.Remove(ctx, key.Blob)
	}
	if err != nil && !missing(err) {
		return err
	}
	return t.promote(ctx, key.Blob)
}

// promote gives the blob's own name, when it is free, to the newest column.
func (t *Target) promote(ctx context.Context, blob string) error {
	folder, base := plain.Split(blob)
	objects, _, err := t.b.Folder(ctx, plain.Join(folder, "."+base+".g"))
	if err != nil {
		return err
	}
	var best *remotetier.Key
	for _, o := range objects {
		key, kind, ok := plain.Parse(o.Name)
		if ok && kind == plain.SidecarKind && key.Blob == base && (best == nil || key.Generation > best.Generation || key.Generation == best.Generation && key.Column < best.Column) {
			best = &key
		}
	}
	if best == nil {
		return nil
	}
	best.Blob = blob
	s, _, _, err := t.sidecar(ctx, *best)
	if missing(err) || errors.Is(err, catalog.ErrCorrupt) {
		return nil
	} else if err != nil {
		return err
	}
	hidden := plain.Join(folder, s.Data)
	info, err := t.b.Stat(ctx, hidden)
	if missing(err) {
		return nil // it has the name
	} else if err != nil {
		return err
	}
	if _, err := t.b.Stat(ctx, blob); !missing(err) {
		return err
	}
	if err := t.copy(ctx, hidden, info.ETag, info.Size, blob, s.Data); errors.Is(err, bucket.ErrTaken) || missing(err) {
		return nil
	} else if err != nil {
		return err
	}
	// Whoever removes the column removes its sidecar first, and then looks at
	// the blob's name: one of the two sees what the other did.
	if now, _, _, err := t.sidecar(ctx, *best); missing(err) || err == nil && now.Data != s.Data {
		return t.dropData(ctx, blob, s.Data, "")
	}
	return t.b.Remove(ctx, hidden)
}

// copy copies an object of that ETag to a name that is free.
func (t *Target) copy(ctx context.Context, from, etag string, size int64, to, data string) error {
	if size > remotetier.MaxSmall {
		return t.b.CopyNew(ctx, from, etag, size, to, map[string]string{metaData: data})
	}
	b := make([]byte, size)
	n, _, err := t.b.Read(ctx, from, etag, b, 0)
	if err != nil {
		return err
	}
	if int64(n) != size {
		return fmt.Errorf("%s: %w: it ends at %d", from, catalog.ErrCorrupt, n)
	}
	_, err = t.b.PutAs(ctx, to, b, metaData, data, true)
	return err
}

// sweepEvery is the time between two sweeps of one process.
const sweepEvery = time.Hour

// sweepNow and then: a target may be open for months.
func (t *Target) sweepNow(ctx context.Context) {
	t.mu.Lock()
	due := time.Since(t.mu.swept) > sweepEvery
	t.mu.Unlock()
	if due {
		t.sweep(ctx)
	}
}

// sweep clears away what dead processes left: what their notes say, and
// uploads of our names.
func (t *Target) sweep(ctx context.Context) {
	t.mu.Lock()
	t.mu.swept = time.Now()
	t.mu.Unlock()
	limit := time.Now().Add(-t.opt.Stale)
	notes, _, err := t.b.Folder(ctx, notesDir)
	t.trace(err)
	for _, o := range notes {
		stamp, _, _ := strings.Cut(o.Name, "-")
		ns, err := strconv.ParseInt(stamp, 16, 64)
		if err != nil || !time.Unix(0, ns).Before(limit) || !o.Modified.Before(limit) {
			continue
		}
		t.trace(t.resolve(ctx, notesDir+o.Name))
	}
	_, err = t.b.AbortUploadsOf(ctx, "", limit, func(name string) bool {
		folder, base := plain.Split(name)
		_, _, hidden := plain.Parse(base)
		return hidden && (folder == "" || remotetier.CheckBlob(folder) == nil) || remotetier.CheckBlob(name) == nil
	})
	t.trace(err)
}

// resolve finishes what the process that made a note did not.
func (t *Target) resolve(ctx context.Context, note string) error {
	head := make([]byte, plain.Head)
	n, _, err := t.b.Read(ctx, note, "", head, 0)
	if missing(err) {
		return nil
	} else if err != nil {
		return err
	}
	key, err := plain.ReadKey(head[:n])
	if err != nil {
		return t.b.Remove(ctx, note)
	}
	s, err := plain.ParseSidecar(key, head)
	if err != nil {
		return t.b.Remove(ctx, note)
	}
	now, _, _, err := t.sidecar(ctx, key)
	switch {
	case missing(err), err == nil && now.Data != s.Data:
		if err := t.clear(ctx, s); err != nil {
			return err
		}
	case err != nil:
		return err // also when it is damaged: it may be this one
	}
	return t.b.Remove(ctx, note)
}

// Remove deletes a column.
func (t *Target) Remove(ctx context.Context, key remotetier.Key) error {
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return err
	}
	if err := t.begin(ctx); err != nil {
		return err
	}
	err := t.retire(ctx, key)
	if err == nil {
		err = t.b.Remove(ctx, wholeName(key))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %v: %w", key, err)
	}
	return nil
}
