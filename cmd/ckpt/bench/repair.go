package bench

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/zeebo/blake3"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
)

// benchRepair takes a column of a drained shard away, has it rebuilt, and
// compares the new one with it, byte by byte.
func benchRepair(ctx context.Context, b *bench) (err error) {
	data, err := randomMemory(b.opt.Size, 6)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	d, err := b.startNetworked(ctx, arenaFor(b.opt.Size))
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	run := "bench/repair"
	if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{NoDrain: true, NoVerify: true}); err != nil {
		return err
	}
	at, err := b.saveLocal(ctx, d, run, data)
	if err != nil {
		return err
	}
	if err := d.drain(ctx, run, at.ref); err != nil {
		return err
	}
	place, files, err := columns(ctx, d, at)
	if err != nil {
		return err
	}
	st, err := os.Stat(files[0])
	if err != nil {
		return err
	}
	column := st.Size()
	parts := repairParts(b.dir, files, data, column)
	var product, yard []float64
	for i := range b.opt.Pairs + 1 {
		b.logf("repair: pair %d of %d", i, b.opt.Pairs)
		if err := ctx.Err(); err != nil {
			return err
		}
		sum, err := measure(parts, column)
		if err != nil {
			return err
		}
		away := files[0] + ".away"
		if err := os.Rename(files[0], away); err != nil {
			return err
		}
		cpu, err := cpuOf(d.processes(), func() error {
			res, err := d.client.Repair(ctx, run, true, nil)
			if err == nil && (res.Columns != 1 || len(res.Left) > 0) {
				err = fmt.Errorf("repair: %w: %d columns were rebuilt, want 1; left: %v", catalog.ErrUnavailable, res.Columns, res.Left)
			}
			return err
		})
		if err != nil {
			return err
		}
		if err := errors.Join(sameFiles(files[0], away), os.Remove(away)); err != nil {
			return err
		}
		if i > 0 {
			product, yard = append(product, perGiB(cpu, column)), append(yard, sum)
		}
	}
	b.versus("repair.cpu", product, yard, "for each GiB of a lost data column of layout %s that is rebuilt on its target, daemon and targets over loopback TCP, %s; alone: %s", place.Layout, amount(float64(column), "B"), account(parts))
	return nil
}

// repairParts are the parts that no rebuilding of a column can avoid: others are
// read, what comes of them is held against the blob's hash, and written.
func repairParts(dir string, files []string, data []byte, column int64) []*part {
	const k, m = layoutK, layoutM
	return []*part{
		{name: "sendfile of k columns over loopback TCP", do: sendFiles(files[1:k+1], column)},
		{name: "CRC32C of k+1 columns", do: func() error { return errors.Join(sumCRC(data)(), sumCRC(data[:len(data)/k])()) }},
		{name: "Reed-Solomon", do: rebuildFirst(data, k, m, 1)},
		{name: "BLAKE3 of the blob", do: func() error {
			h := blake3.New()
			if _, err := h.Write(data); err != nil {
				return err
			}
			sink += uint64(h.Sum(nil)[0])
			return nil
		}},
		{name: "loopback TCP of the column", do: sendMemory(data[:len(data)/k], 1, 0)},
		{name: "O_DIRECT write of it", do: func() error { return writeColumns(dir, data[:len(data)/k], 1, 0) }},
	}
}

// sameFiles compares two files.
func sameFiles(got, want string) error {
	p, err := os.ReadFile(want)
	if err != nil {
		return err
	}
	st, err := os.Stat(got)
	if err != nil {
		return err
	}
	if st.Size() != int64(len(p)) {
		return fmt.Errorf("%s: %w: %d bytes, want %d", got, catalog.ErrCorrupt, st.Size(), len(p))
	}
	return checkFile(got, 0, p)
}
