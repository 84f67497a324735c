package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/bundle"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
	"github.com/ckptd/ckptd/shardwriter/shardfile"
)

const restoresAtOnce = 2 // shards; each has several reads in flight

func newRestoreCmd(a *app) *cobra.Command {
	var only []string
	var from string
	cmd := &cobra.Command{
		Use: "restore REF DEST", Short: "Write a set's shards as plain files, and its manifest",
		Long: `Writes rank-NNNNN.safetensors for each rank, and manifest.json, into the new folder DEST.
A raw shard is written under the name of the file that it was.
Every byte is checked on the way. DEST appears when all is there, or not at all.
With --only the files hold the tensors that match (*, ? and [a-z] as in a shell); raw
shards whose file name matches come whole.`,
		Args: args(2, 2), ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			for _, g := range only {
				if _, err := path.Match(g, ""); err != nil {
					return usage("pattern %q: %v", g, err)
				}
			}
			if err := freeDest(args[1]); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				r, err := c.Open(cmd.Context(), args[0], ckpt.From(from))
				if err != nil {
					return err
				}
				defer r.Close()
				return a.restore(cmd.Context(), r, args[1], only)
			})
		},
	}
	cmd.Flags().StringArrayVar(&only, "only", nil, "only tensors, and raw files, whose name matches; may be repeated")
	cmd.Flags().StringVar(&from, "from", "", "read from this tier only: local, peer or remote")
	return cmd
}

// freeDest refuses a destination that something is in.
func freeDest(dest string) error {
	list, err := os.ReadDir(dest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || len(list) > 0 {
		return fmt.Errorf("restore to %s: %w", dest, fs.ErrExist)
	}
	return nil
}

// restored is what --json prints.
type restored struct {
	Set   string   `json:"set"`
	Dest  string   `json:"dest"`
	Files []string `json:"files"`
	Bytes int64    `json:"bytes"`
}

// restore writes everything into a hidden folder beside dest and renames that.
func (a *app) restore(ctx context.Context, r *ckpt.Reader, dest string, only []string) (err error) {
	wanted, total, err := wantedOf(r.ID(), r.Manifest(), only)
	if err != nil {
		return err
	}
	names, err := fileNames(r.Manifest())
	if err != nil {
		return fmt.Errorf("restore %v: %w", r.ID(), err)
	}
	temp, err := hidden(dest, "restoring")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	begin := time.Now()
	p := a.progress("restore", total, "bytes")
	defer p.end()
	out := restored{Set: r.ID().String(), Dest: dest, Bytes: total}
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(restoresAtOnce)
	for rank := range r.Manifest().Shards {
		if wanted[rank].nothing() {
			continue
		}
		file := names[rank]
		out.Files = append(out.Files, file)
		group.Go(func() error {
			return create(filepath.Join(temp, file), func(f *os.File) error {
				if wanted[rank].whole {
					return copyWhole(gctx, r, rank, f, p)
				}
				return copySome(gctx, r, rank, wanted[rank].tensors, f, p)
			})
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	out.Files = append(out.Files, bundle.ManifestFile)
	if err := create(filepath.Join(temp, bundle.ManifestFile), func(f *os.File) error {
		_, err := f.Write(r.ManifestBytes())
		return err
	}); err != nil {
		return err
	}
	if err := publish(ctx, temp, dest); err != nil {
		return err
	}
	p.end()
	took := time.Since(begin)
	return a.print(out, func(w io.Writer) {
		fmt.Fprintf(w, "%s  %s in %s to %s, %s/s\n", out.Set, size(total), plural(len(out.Files)-1, "file", "files"), dest, size(int64(float64(total)/took.Seconds())))
	})
}

// fileNames names the files of a restored set, by rank: a raw shard's is its
// own. Two files of one name are refused before any byte moves.
func fileNames(m *catalog.Manifest) ([]string, error) {
	names := make([]string, len(m.Shards))
	taken := map[string]string{bundle.ManifestFile: "the manifest"}
	for rank := range m.Shards {
		s := &m.Shards[rank]
		names[rank] = bundle.ShardFile(rank)
		if s.Raw() {
			if err := catalog.CheckFile(s.File); err != nil {
				return nil, fmt.Errorf("rank %d: %w", rank, err)
			}
			names[rank] = s.File
		}
		if by, ok := taken[names[rank]]; ok {
			err := fmt.Errorf("rank %d: %w: its file %q has the name of %s", rank, catalog.ErrInvalid, names[rank], by)
			return nil, wire.WithHint(err, "`ckpt export %v DEST` writes each rank under a name of its own", m.Set)
		}
		taken[names[rank]] = fmt.Sprintf("rank %d's", rank)
	}
	return names, nil
}

// wanted is what is restored of one shard.
type wanted struct {
	whole   bool
	tensors []catalog.Tensor
}

func (w wanted) nothing() bool { return !w.whole && len(w.tensors) == 0 }

// wantedOf chooses, by rank: everything, or the tensors and the raw files whose
// names match.
func wantedOf(id catalog.SetID, m *catalog.Manifest, only []string) (list []wanted, total int64, err error) {
	matches := func(name string) bool {
		return slices.ContainsFunc(only, func(g string) bool {
			ok, _ := path.Match(g, name) // patterns were checked
			return ok
		})
	}
	list = make([]wanted, len(m.Shards))
	found := false
	for rank := range m.Shards {
		s, w := &m.Shards[rank], &list[rank]
		if len(only) == 0 || s.Raw() && matches(s.File) {
			w.whole, found, total = true, true, total+s.Size
			continue
		}
		for _, t := range s.Tensors {
			if matches(t.Name) {
				w.tensors, found, total = append(w.tensors, t), true, total+t.Size
			}
		}
	}
	if !found {
		return nil, 0, fmt.Errorf("no tensor and no raw file of %v matches %s: %w", id, strings.Join(only, " "), fs.ErrNotExist)
	}
	return list, total, nil
}

// create writes a new file and syncs it.
func create(path string, write func(f *os.File) error) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// hidden makes a folder beside dest in which that is made, until publish gives
// it its name.
func hidden(dest, doing string) (string, error) {
	parent, name := filepath.Split(filepath.Clean(dest))
	temp, err := os.MkdirTemp(or(parent, "."), "."+name+"."+doing+"-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(temp, 0o755); err != nil {
		return "", errors.Join(err, os.Remove(temp))
	}
	return temp, nil
}

// publish gives the folder its name. An empty folder in its place is replaced;
// anything else is not.
func publish(ctx context.Context, temp, dest string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := syncDir(temp); err != nil {
		return err
	}
	// os.Rename would not replace even an empty folder.
	if err := unix.Rename(temp, filepath.Clean(dest)); err != nil {
		if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.ENOTDIR) {
			err = fs.ErrExist
		}
		return fmt.Errorf("restore to %s: %w", dest, err)
	}
	return syncDir(filepath.Dir(filepath.Clean(dest)))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// copyWhole writes the shard as it is.
func copyWhole(ctx context.Context, r *ckpt.Reader, rank int, f *os.File, p *progress) error {
	n := r.Manifest().Shards[rank].Size
	if err := reserve(f, n); err != nil {
		return err
	}
	return r.CopyShard(ctx, rank, &countedWriter{f, p.add})
}

// reserve finds out early that the disk is too small.
func reserve(f *os.File, n int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, 0, n)
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%s: %w: %s do not fit", f.Name(), catalog.ErrNoSpace, size(n))
	}
	return nil // other file systems find out later
}

type countedWriter struct {
	w   io.WriterAt
	add func(int64)
}

func (c *countedWriter) WriteAt(p []byte, off int64) (int, error) {
	n, err := c.w.WriteAt(p, off)
	c.add(int64(n))
	return n, err
}

// copySome writes a new shard of some tensors. The tree of the Python SDK goes
// with the whole alone: it names tensors that are not here.
func copySome(ctx context.Context, r *ckpt.Reader, rank int, tensors []catalog.Tensor, f *os.File, p *progress) error {
	meta := make(map[string]string)
	for k, v := range r.Manifest().Shards[rank].Meta {
		if !strings.HasPrefix(k, "ckptd.") {
			meta[k] = v
		}
	}
	specs := make([]shardfile.Spec, len(tensors))
	for i, t := range tensors {
		specs[i] = shardfile.Spec{Name: t.Name, DType: t.DType, Shape: t.Shape, Global: t.Global, Start: t.Start}
	}
	h, err := shardfile.NewHeader(specs, meta)
	if err != nil {
		return fmt.Errorf("rank %d: %w: %w", rank, catalog.ErrCorrupt, err) // the manifest's own words
	}
	if err := reserve(f, h.FileSize); err != nil {
		return err
	}
	s, err := r.Shard(rank)
	if err != nil {
		return err
	}
	defer s.Close()
	return shardfile.Encode(f, h, func(i int) (io.Reader, error) {
		at := &shardAt{ctx, s, p.add}
		return io.NewSectionReader(at, tensors[i].Offset, tensors[i].Size), nil
	})
}

// shardAt reads a shard for as long as a context lives.
type shardAt struct {
	ctx context.Context
	s   *ckpt.ShardReader
	add func(int64)
}

func (r *shardAt) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.s.ReadAtContext(r.ctx, p, off)
	r.add(int64(n))
	return n, err
}
