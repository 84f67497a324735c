package ckptd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/planes"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// A run, or the node, may ask for shards to be compressed on their way to the
// remote tier. The container is made on the local disk first, because a column's
// size is needed before its first byte; one shard at a time, in room that was
// reserved. What does not gain, or has no room, is drained as it is.

// worthIt is the most that a container may be of its shard: a smaller gain is
// not worth the decoding.
const worthIt = 0.95

// compresses says whether the shards of a run are to be compressed.
func (n *Node) compresses(run catalog.Run) bool {
	how := n.cfg.Compress
	if r, ok := n.cat.KnownRun(run); ok && r.Policy.Compress != "" {
		how = r.Policy.Compress
	}
	return how == catalog.CompressZstd
}

// compressed makes a container of a shard; nil, told in the set's story, when
// it is not worth it or has no room. ErrCorrupt means that the shard does not
// fit its seal. The caller closes the spool.
func (n *Node) compressed(ctx context.Context, set catalog.SetRecord, rank int, b *localtier.Blob) (*localtier.Spool, error) {
	src := rawBlob{b, b.Raw()}
	h, err := shardfile.ReadHeader(src, b.Size())
	if err != nil {
		return nil, err
	}
	as := func(why string, args ...any) (*localtier.Spool, error) {
		n.event(ctx, set.SetID, "not compressed", "rank %d: "+why, append([]any{rank}, args...)...)
		return nil, nil
	}
	layout := planes.LayoutOf(h.Tensors)
	ratio, err := planes.Estimate(ctx, src, layout)
	if err != nil {
		return nil, err
	}
	if ratio > worthIt {
		return as("it would still be %.0f %% of its size", 100*ratio)
	}
	most := int64(worthIt * float64(b.Size()))
	spool, err := n.local.NewSpool(ctx, b.Name()+".planes", most)
	if errors.Is(err, catalog.ErrNoSpace) {
		return as("no room on the local disks to do it: %v", err)
	} else if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			_ = spool.Close() // what cannot be removed is swept
		}
	}()
	_, err = planes.Encode(ctx, spool, src, layout, planes.Options{Most: most})
	if err == nil {
		err = spool.Finish()
	}
	switch {
	case errors.Is(err, planes.ErrNoGain):
		return as("it would be more than %.0f %% of its size", 100*worthIt)
	case errors.Is(err, catalog.ErrNoSpace): // a file system that cannot reserve finds out late
		return as("no room on the local disks to do it: %v", err)
	case err != nil:
		return nil, err
	}
	done = true
	return spool, nil
}

// shardReader reads a shard's own bytes from the remote tier, whatever they
// are kept as.
type shardReader interface {
	ReadAtContext(ctx context.Context, p []byte, off int64) (int, error)
}

// openPlace opens the bytes of a shard at a place; the columns are the
// caller's to close. A container of other bytes is ErrCorrupt.
func openPlace(ctx context.Context, in *remotetier.Reader, place catalog.Place, size int64, root catalog.Digest) (shardReader, error) {
	switch place.Encoding {
	case "":
		return in, nil
	case planes.Encoding:
	default:
		return nil, fmt.Errorf("open %s: %w: its encoding %.40q is unknown; a newer ckptd wrote it", place.Blob, catalog.ErrInvalid, place.Encoding)
	}
	r, err := planes.Open(ctx, in, in.Size())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", place.Blob, err)
	}
	if r.Size() != size || r.Root() != root {
		return nil, fmt.Errorf("open %s: %w: the container holds other bytes", place.Blob, catalog.ErrCorrupt)
	}
	return r, nil
}

// encodingOf looks at a blob's first bytes.
func (n *Node) encodingOf(ctx context.Context, place catalog.Place) (string, error) {
	in, err := n.remote.Open(ctx, place)
	if err != nil {
		return "", err
	}
	defer in.Close()
	head := make([]byte, min(place.Size, int64(len(planes.Magic))))
	if _, err := in.ReadAtContext(ctx, head, 0); err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if planes.Is(head) {
		return planes.Encoding, nil
	}
	return "", nil
}

// verifyPlace reads back the remote copy of a shard: every byte of every
// column, and, of a container, what it decodes to. The drain's own verification
// leaves the second part out, as the container was decoded when it was made.
func (n *Node) verifyPlace(ctx context.Context, place catalog.Place, size int64, root catalog.Digest) error {
	if err := n.remote.Verify(ctx, place); err != nil || place.Encoding == "" {
		return err
	}
	in, err := n.remote.Open(ctx, place)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := openPlace(ctx, in, place, size, root)
	if err != nil {
		return err
	}
	return r.(*planes.Reader).Verify(ctx) // there is one encoding
}
