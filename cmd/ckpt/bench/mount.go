package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	"github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/wire"
)

const (
	mountRun   = "bench/mount"
	mountLarge = "large.bin" // of the dataset: a pack by itself
	mountRaw   = 8 << 20     // bytes from which on a file is one
)

// benchMount reads what a daemon has on its disk through a mount of it: a shard
// of a checkpoint and a large file of a dataset, beside the files that they are;
// small files of a dataset, beside the same in a folder; and writes a draft.
func benchMount(ctx context.Context, b *bench) (err error) {
	data, err := randomMemory(b.opt.Size, 5)
	if err != nil {
		return err
	}
	defer unix.Munmap(data)
	d, err := b.start(ctx, arenaFor(b.opt.Size))
	if err != nil {
		return err
	}
	defer func() { err = d.finish(err) }()
	shard, err := b.saveLocal(ctx, d, mountRun, data)
	if err != nil {
		return err
	}
	folder := filepath.Join(b.dir, "files")
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	small := smallFiles(b.opt.Size)
	b.logf("mount: %s as a shard and as a file of a dataset, beside %d files of %d bytes", amount(float64(len(data)), "B"), small, importFile)
	if err := fillFolder(ctx, folder, small); err != nil {
		return err
	}
	if err := plainWrite(filepath.Join(folder, mountLarge), data); err != nil {
		return err
	}
	if err := d.importFolder(ctx, "mount", folder, datasets.Options{RawFrom: mountRaw}); err != nil {
		return err
	}
	pack, err := d.packOf(ctx, "mount@1", mountLarge)
	if err != nil {
		return err
	}
	at, how, err := b.mount(ctx, d)
	if err != nil {
		return err
	}
	tree := filepath.Join(at, "datasets/mount/1")
	for _, l := range []largeFile{
		{"mount", "a shard of a checkpoint", filepath.Join(at, "checkpoints", mountRun, "1/rank-00000.safetensors"), shard.path, shard.header},
		{"mount.pack", "a large file of a dataset, which is a pack", filepath.Join(tree, mountLarge), pack.path, 0},
	} {
		if err := b.readLarge(ctx, l, data, how); err != nil {
			return err
		}
	}
	if err := b.writeLarge(ctx, at, data, how); err != nil {
		return err
	}
	return b.readSmall(ctx, tree, folder, small)
}

// mount mounts the daemon's tree; the daemon's end takes it away. how says in
// which way large files are read.
func (b *bench) mount(ctx context.Context, d *daemon) (dir, how string, err error) {
	dir = filepath.Join(b.run, "mount")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", "", err
	}
	d.mounted = dir
	m, err := d.client.Mount(ctx, wire.MountRequest{Dir: dir})
	switch {
	case err != nil:
		return "", "", err
	case m.Passthrough:
		return dir, "passthrough", nil
	}
	return dir, "no passthrough: " + m.Why, nil
}

// unmounted takes away the mount of a daemon that has ended, if it left it.
func unmounted(dir string) error {
	err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EPERM) { // a user's, that is to say fusermount3's
		if exec.Command("mountpoint", "-q", dir).Run() == nil {
			return exec.Command("fusermount3", "-uz", "--", dir).Run()
		}
		return nil
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil // it is gone, as it should be
	}
	return err
}

// importFolder makes a folder the first version of a dataset, on the disk.
func (d *daemon) importFolder(ctx context.Context, name, folder string, opt datasets.Options) error {
	st, err := store.New(d.client, name)
	if err != nil {
		return err
	}
	src, err := source.Open(folder, source.Options{Format: source.Tree})
	if err != nil {
		return err
	}
	defer src.Close()
	v, err := datasets.Import(ctx, src, st, opt)
	if err != nil {
		return err
	}
	_, err = d.client.Wait(ctx, v.Set.String(), catalog.Local)
	return err
}

// packOf is the pack that a file of a version is.
func (d *daemon) packOf(ctx context.Context, ref, path string) (at *saved, err error) {
	ds, err := d.client.OpenDataset(ctx, ref)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, ds.Close()) }()
	i, err := ds.Index().Find(path)
	if err != nil {
		return nil, err
	}
	e, err := ds.Index().Entry(i)
	if err != nil {
		return nil, err
	}
	p, err := ds.Index().Pack(e.Pack)
	if err != nil {
		return nil, err
	}
	if !p.Raw || p.Size != e.Size {
		return nil, fmt.Errorf("%s: %w: it is a part of a pack", path, catalog.ErrInvalid)
	}
	return lookUp(ctx, d.client, p.Set.String(), 0)
}
