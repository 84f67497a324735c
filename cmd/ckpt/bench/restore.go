package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

// readers is how many reads the yardstick of a restore has in flight: as many
// as the product.
const readers = 4

func benchRestore(ctx context.Context, b *bench) (err error) {
	data, err := randomMemory(b.opt.Size, 2)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	d, err := b.startNetworked(ctx, arenaFor(b.opt.Size))
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	// The drain waits until the local figures are taken.
	run := "bench/restore"
	if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{NoDrain: true, NoVerify: true}); err != nil {
		return err
	}
	at, err := b.saveLocal(ctx, d, run, data)
	if err != nil {
		return err
	}
	if err := b.restoreLocal(ctx, d, at, data); err != nil {
		return err
	}
	if err := b.loadMapped(ctx, d, at, data); err != nil {
		return err
	}
	if err := d.drain(ctx, run, at.ref); err != nil {
		return err
	}
	if err := b.amplification(ctx, d, at, data); err != nil {
		return err
	}
	return b.restoreRemote(ctx, d, at, data)
}

// saveLocal saves data and waits until it is on the disk.
func (b *bench) saveLocal(ctx context.Context, d *daemon, run string, data []byte) (*saved, error) {
	set, _, err := save(ctx, d.client, run, 1, data)
	if err != nil {
		return nil, err
	}
	if err := set.Wait(ctx, ckpt.Local); err != nil {
		return nil, err
	}
	return lookUp(ctx, d.client, set.ID.String(), 0)
}

// drain lets a run's sets go to the targets and waits for one of them.
func (d *daemon) drain(ctx context.Context, run, ref string) error {
	if _, err := d.client.SetPolicy(ctx, run, catalog.Policy{NoVerify: true}); err != nil {
		return err
	}
	if err := d.kick(ctx, ref); err != nil {
		return err
	}
	_, err := d.client.Wait(ctx, ref, ckpt.Remote)
	return err
}

// kick makes the daemon look at what there is to drain now, instead of within
// its next five seconds: any change of a committed set does.
func (d *daemon) kick(ctx context.Context, ref string) error {
	now := time.Now().String()
	_, err := d.client.Tag(ctx, ref, map[string]*string{"bench": &now})
	return err
}

// readInto restores a shard into memory.
func readInto(ctx context.Context, c *ckpt.Client, at *saved, p []byte, opts ...ckpt.OpenOption) error {
	r, err := c.Open(ctx, at.ref, opts...)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.ReadShard(ctx, 0, p)
}

// readWhole restores a shard into fresh memory and gives it to use.
func readWhole(ctx context.Context, c *ckpt.Client, at *saved, opts ...ckpt.OpenOption) (p []byte, err error) {
	if p, err = mapMemory(at.size); err != nil {
		return nil, err
	}
	if err := readInto(ctx, c, at, p, opts...); err != nil {
		return nil, errors.Join(err, unix.Munmap(p))
	}
	return p, nil
}

func (b *bench) restoreLocal(ctx context.Context, d *daemon, at *saved, data []byte) error {
	var rate, plain []float64
	for i := range b.opt.Pairs + 1 {
		b.logf("restore: pair %d of %d", i, b.opt.Pairs)
		if err := errors.Join(ctx.Err(), dropCache(at.path)); err != nil {
			return err
		}
		var p []byte
		yard, err := took(func() (err error) {
			if p, err = mapMemory(at.size); err != nil {
				return err
			}
			return plainRead(at.path, p, readers)
		})
		if err == nil {
			err = same(p[at.header:], data, at.header)
		}
		if err = errors.Join(err, unix.Munmap(p), dropCache(at.path)); err != nil {
			return err
		}
		product, err := took(func() (err error) {
			p, err = readWhole(ctx, d.client, at)
			return err
		})
		if err != nil {
			return err
		}
		if err := errors.Join(same(p[at.header:], data, at.header), unix.Munmap(p)); err != nil {
			return err
		}
		if i > 0 {
			rate, plain = append(rate, perSecond(len(data), product)), append(plain, perSecond(len(data), yard))
		}
	}
	b.versus("restore.local", rate, plain, "%s by Open and ReadShard into fresh memory, cold, CRC32C of every block; O_DIRECT reads of 8 MiB, %d in flight, into fresh memory", amount(float64(len(data)), "B"), readers)
	return nil
}

// touch reads every byte once.
func touch(p []byte) (sum uint64) {
	for ; len(p) >= 64; p = p[64:] {
		q := p[:64:64]
		sum ^= binary.LittleEndian.Uint64(q) ^ binary.LittleEndian.Uint64(q[8:]) ^ binary.LittleEndian.Uint64(q[16:]) ^ binary.LittleEndian.Uint64(q[24:]) ^
			binary.LittleEndian.Uint64(q[32:]) ^ binary.LittleEndian.Uint64(q[40:]) ^ binary.LittleEndian.Uint64(q[48:]) ^ binary.LittleEndian.Uint64(q[56:])
	}
	for _, c := range p {
		sum ^= uint64(c)
	}
	return sum
}

// plainMapped is what the safetensors library does: parse the header, map the
// file, hand out tensors; each is then touched.
func plainMapped(path string) (sum uint64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	h, err := shardfile.ReadHeader(f, st.Size())
	if err != nil {
		return 0, err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return 0, fmt.Errorf("map %s: %w", path, err)
	}
	defer unix.Munmap(m)
	for i := range h.Tensors {
		t := &h.Tensors[i]
		sum ^= touch(m[t.Offset:][:t.Size])
	}
	return sum, nil
}

// mapped is the same through the SDK.
func mapped(ctx context.Context, c *ckpt.Client, at *saved, opts ...ckpt.OpenOption) (sum uint64, err error) {
	r, err := c.Open(ctx, at.ref, opts...)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	s, err := r.Shard(0)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	m, err := s.BytesContext(ctx)
	if err != nil {
		return 0, err
	}
	for _, t := range r.Tensors() {
		sum ^= touch(m[t.Offset:][:t.Size])
	}
	return sum, nil
}

func (b *bench) loadMapped(ctx context.Context, d *daemon, at *saved, data []byte) error {
	want := touch(data)
	var checked, unchecked, plain []float64 // in turn: plain, checked, unchecked
	var coldChecked, coldPlain []float64
	measure := func(do func() (uint64, error)) (float64, error) {
		var sum uint64
		t, err := took(func() (err error) { sum, err = do(); return err })
		if err == nil && sum != want {
			err = fmt.Errorf("%s: %w: the bytes touched are not the ones saved", at.ref, catalog.ErrCorrupt)
		}
		return t.Seconds(), err
	}
	for i := range b.opt.Pairs + 1 {
		b.logf("mapped load: pair %d of %d", i, b.opt.Pairs)
		for _, cold := range []bool{true, false} {
			var v [3]float64
			for j, do := range []func() (uint64, error){
				func() (uint64, error) { return plainMapped(at.path) },
				func() (uint64, error) { return mapped(ctx, d.client, at) },
				func() (uint64, error) { return mapped(ctx, d.client, at, ckpt.NoCheck()) },
			} {
				if cold && j == 2 {
					continue
				}
				ready := warmCache
				if cold {
					ready = dropCache
				}
				if err := errors.Join(ctx.Err(), ready(at.path)); err != nil {
					return err
				}
				var err error
				if v[j], err = measure(do); err != nil {
					return err
				}
			}
			switch {
			case i == 0:
			case cold:
				coldPlain, coldChecked = append(coldPlain, v[0]), append(coldChecked, v[1])
			default:
				plain, checked, unchecked = append(plain, v[0]), append(checked, v[1]), append(unchecked, v[2])
			}
		}
	}
	what := "%s mapped by the SDK with checks %s and every byte touched once; header parsed, file mapped and touched as the safetensors library does; file in the page cache"
	b.versus("load.mmap", checked, plain, what+" (cold: %.0f ms against %.0f)", amount(float64(len(data)), "B"), "on", median(coldChecked)*1e3, median(coldPlain)*1e3)
	b.versus("load.mmap.unchecked", unchecked, plain, what, amount(float64(len(data)), "B"), "off")
	return nil
}

// columns are the files that hold a drained shard on the targets, by column.
func columns(ctx context.Context, d *daemon, at *saved) (*catalog.Place, []string, error) {
	set, err := d.client.Set(ctx, at.ref, false)
	if err != nil {
		return nil, nil, err
	}
	if len(set.Shards) != 1 || set.Shards[0].Remote == nil {
		return nil, nil, fmt.Errorf("%s: %w: it has no place on the targets", at.ref, catalog.ErrUnavailable)
	}
	place := set.Shards[0].Remote
	if want := fmt.Sprintf("%d+%d", layoutK, layoutM); place.Layout != want || len(place.Targets) != benchTargets {
		return nil, nil, fmt.Errorf("layout %s: %w: the yardsticks are for %s", place.Layout, catalog.ErrInvalid, want)
	}
	files := make([]string, len(place.Targets))
	for i, name := range place.Targets {
		t, err := d.target(name)
		if err != nil {
			return nil, nil, err
		}
		folder := filepath.Join(t.dir, "columns", filepath.FromSlash(place.Blob))
		found, err := filepath.Glob(filepath.Join(folder, fmt.Sprintf("g%016x.c%02d.col", place.Generation, i)))
		if err != nil || len(found) != 1 {
			return nil, nil, fmt.Errorf("target %s: %w: no column %d in %s (%v)", name, catalog.ErrUnavailable, i, folder, err)
		}
		files[i] = found[0]
	}
	return place, files, nil
}
