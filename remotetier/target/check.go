package target

import (
	"context"
	"fmt"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/localtier/vfs"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric"
	"github.com/ckptd/ckptd/remotetier/stripe"
)

const (
	checkBuffer = 1 << 20  // of a Dir that checks for itself, bytes
	maxCheck    = 64 << 20 // of data in one exchange, bytes
	maxChecks   = 2        // at one time in a Server
	checkReply  = pageSize + len(catalog.Digest{})
)

var (
	_ remotetier.Checker = (*Dir)(nil)
	_ remotetier.Checker = (*Remote)(nil)
)

// CheckColumn reads a column from the disk and holds it against its sums.
func (d *Dir) CheckColumn(ctx context.Context, key remotetier.Key, pace remotetier.Pace) (remotetier.ColumnInfo, error) {
	r, err := d.Open(ctx, key)
	if err != nil {
		return remotetier.ColumnInfo{}, err
	}
	defer r.Close()
	room := min(checkBuffer, (r.Size()/stripe.Block+1)*stripe.Block) // most columns of a run's records are small
	return remotetier.CheckReader(ctx, r, vfs.AlignedBuffer(int(room)), pace)
}

// check is CheckColumn of a part, for a client.
func (h *handler) check(ctx context.Context) ([]byte, error) {
	off, n, key := h.m.size(), h.m.size(), h.m.key(false)
	if err := h.m.end("check"); err != nil {
		return nil, err
	}
	if n > maxCheck {
		return nil, fmt.Errorf("check %v: %w: %d bytes at once, at most %d", key, catalog.ErrInvalid, n, maxCheck)
	}
	leave, err := h.gate.Enter(ctx, h.class, n)
	if err != nil {
		return nil, err
	}
	defer leave()
	if err := h.look.Take(ctx); err != nil {
		return nil, err
	}
	defer h.look.Give()
	buf, err := h.x.Buffer(ctx)
	if err != nil {
		return nil, err
	}
	defer buf.Release()
	room := buf.Bytes
	if len(room) < stripe.Block { // the smallest buffers are smaller
		room = vfs.AlignedBuffer(stripe.Block)
	}
	var info remotetier.ColumnInfo
	err = h.onDisk(ctx, func() error {
		r, err := h.dir.Open(ctx, key)
		if err != nil {
			return err
		}
		defer r.Close()
		info, err = remotetier.CheckRange(ctx, r, off, n, room)
		return err
	})
	if err != nil {
		return nil, err
	}
	h.count.checked.Add(min(n, max(0, info.ColumnData()-off)))
	return append(info.Page(), info.Content[:]...), nil
}

// CheckColumn lets the target read its column, a piece in each exchange.
func (r *Remote) CheckColumn(ctx context.Context, key remotetier.Key, pace remotetier.Pace) (remotetier.ColumnInfo, error) {
	if err := key.Check(); err != nil {
		return remotetier.ColumnInfo{}, err
	}
	return remotetier.CheckPieces(ctx, pace, func(off, n int64) (remotetier.ColumnInfo, error) {
		op := &fabric.Op{Request: newMessage(opCheck).putU64(uint64(off)).putU64(uint64(n)).putKey(key).b}
		if err := r.do(ctx, op); err != nil {
			return remotetier.ColumnInfo{}, err
		}
		if len(op.Reply) != checkReply {
			return remotetier.ColumnInfo{}, fmt.Errorf("check %v: %w: the reply is not understood", key, catalog.ErrCorrupt)
		}
		head, err := remotetier.ParseHeader(op.Reply[:pageSize])
		if err != nil {
			return remotetier.ColumnInfo{}, err
		}
		return remotetier.ColumnInfo{Header: *head, Content: catalog.Digest(op.Reply[pageSize:])}, nil
	})
}
