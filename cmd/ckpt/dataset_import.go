package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/datasets"
	"github.com/ckptd/ckptd/datasets/source"
	"github.com/ckptd/ckptd/datasets/store"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// datasetImport is one `ckpt dataset import`.
type datasetImport struct {
	*app
	src, name         string
	format, level     string
	packSize, rawFrom int64 // MiB
	tags              []string
	opt               datasets.Options
	skipSpecial       bool
	until             catalog.Level
	fields            map[string]*string
}

func newDatasetImportCmd(a *app) *cobra.Command {
	j := &datasetImport{app: a}
	cmd := &cobra.Command{
		Use: "import SRC NAME", Short: "Make a folder, tars or files of records the next version of a dataset",
		Long: `Makes SRC the next version of the dataset NAME. SRC is a folder, a file, a tar (also .tar.gz
and .tar.zst), several as name-{000..127}.tar or a folder of them, or "-" for a tar on standard
input. Files are kept as they are; --format says what a sample is:

  tree         every file
  tar          every member of a tar
  webdataset   members of a tar that share a name up to its first dot
  jsonl        every line           parquet      every row group
  npy          every row            safetensors  every tensor
  mds          of MosaicML streaming             ffrecord

Content that is stored already is not stored again, and files with the path, size and time of
the newest version are not read (--rehash reads them). Nothing is visible before the end. An
import that was cut short goes on when it is run again. While the daemon is away, or a full
node brings packs to the remote tier, the import waits and says so (--patience).`,
		Args: args(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			j.src, j.name = args[0], args[1]
			return j.run(cmd.Context())
		},
	}
	f := cmd.Flags()
	f.StringVar(&j.format, "format", string(source.Auto), "what a sample is: auto, tree, tar, webdataset, jsonl, parquet, npy, safetensors, mds, ffrecord")
	f.Int64Var(&j.packSize, "pack-size", 256, "MiB of a pack of small files, 64 to 1024")
	f.Int64Var(&j.rawFrom, "raw-from", 64, "MiB from which on a file is a pack by itself, up to half of --pack-size")
	f.BoolVar(&j.opt.Rehash, "rehash", false, "read every file, whatever its time says")
	f.BoolVar(&j.opt.Force, "force", false, "make a version even when nothing changed")
	f.BoolVar(&j.skipSpecial, "skip-special", false, "leave out sockets, devices and pipes")
	f.StringVar(&j.level, "level", "local", "return when the version is at this level")
	f.StringArrayVar(&j.tags, "tag", nil, "NAME=VALUE, kept with the version")
	f.DurationVar(&j.opt.Patience, "patience", time.Minute, "give up when the daemon is away, or a full node drains nothing, for so long")
	f.IntVar(&j.opt.Workers, "workers", 0, "files read at a time (default: by the number of processors)")
	return cmd
}

// settle checks everything that can be checked before a byte is read.
func (j *datasetImport) settle() (source.Options, error) {
	var err error
	if j.until, err = catalog.ParseLevel(j.level); err != nil {
		return source.Options{}, err
	}
	if _, err := catalog.DatasetRun(j.name); err != nil {
		return source.Options{}, err
	}
	j.fields = make(map[string]*string)
	for _, kv := range j.tags {
		k, v, ok := strings.Cut(kv, "=")
		if !ok || k == "" {
			return source.Options{}, usage("tag %q; want NAME=VALUE", kv)
		}
		j.fields[k] = &v
	}
	if j.packSize < 64 || j.packSize > 1024 || j.rawFrom < 1 || j.rawFrom > j.packSize/2 {
		return source.Options{}, usage("--pack-size %d --raw-from %d: want packs of 64 to 1024 MiB, and files by themselves from 1 MiB up to half a pack", j.packSize, j.rawFrom)
	}
	j.opt.PackSize, j.opt.RawFrom = j.packSize<<20, j.rawFrom<<20
	format, err := source.ParseFormat(j.format)
	return source.Options{Format: format, SkipSpecial: j.skipSpecial, Stdin: os.Stdin}, err
}

func (j *datasetImport) run(ctx context.Context) error {
	opt, err := j.settle()
	if err != nil {
		return err
	}
	return j.with(ctx, func(c *ckpt.Client) error {
		st, err := store.New(c, j.name)
		if err != nil {
			return err
		}
		src, err := source.Open(j.src, opt)
		if err != nil {
			return err
		}
		defer src.Close()
		begin := time.Now()
		v, err := j.importAll(ctx, src, st, opt)
		if err != nil {
			return j.cut(fmt.Errorf("import %s as %s: %w", j.src, j.name, err))
		}
		took := time.Since(begin)
		if len(j.fields) > 0 {
			if _, err := c.Tag(ctx, v.Set.String(), j.fields); err != nil {
				return err
			}
		}
		if j.until > catalog.Local {
			if err := j.wait(ctx, c, st, v); err != nil {
				return err
			}
		}
		return j.tell(v, took)
	})
}

// cut says what to do about an import that did not come to its end.
func (j *datasetImport) cut(err error) error {
	const goesOn = "nothing of the version is visible; what is stored is taken up when the import is run again"
	switch {
	case errors.Is(err, catalog.ErrNoSpace):
		return wire.WithHint(err, "%s. Make room first: `ckpt status` shows the disks, `ckpt prune RUN` and `ckpt dataset rm` what can go; a larger --quota, or a remote tier (--remote) that takes what is committed", goesOn)
	case errors.Is(err, catalog.ErrUnavailable):
		return wire.WithHint(err, "%s. Is the daemon running? `ckptd serve` starts one; --patience waits for it longer", goesOn)
	case errors.Is(err, catalog.ErrConflict):
		return wire.WithHint(err, "%s, when nobody writes to %s", goesOn, j.src)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return wire.WithHint(err, "%s. Make that file readable, or import a folder without it", goesOn)
	}
	return err
}

// importAll shows progress while it imports. On a terminal a second walk adds up
// the sizes, so that the bar knows its end.
func (j *datasetImport) importAll(ctx context.Context, src source.Source, st datasets.Store, opt source.Options) (datasets.Version, error) {
	p := j.progress("import", src.Facts().Bytes, "bytes")
	defer p.end()
	ctx, cancel := context.WithCancel(ctx)
	var sizing sync.WaitGroup
	defer sizing.Wait()
	defer cancel()
	if p.bar && !src.Facts().Stream {
		sizing.Go(func() { j.size(ctx, opt, p) })
	}
	o := j.opt
	o.Progress, o.Waiting = func(_, bytes int64) { p.add(bytes) }, p.wait
	return datasets.Import(ctx, src, st, o)
}

// size tells the bar how many bytes there are. What goes wrong here goes wrong,
// and is told, in the import.
func (j *datasetImport) size(ctx context.Context, opt source.Options, p *progress) {
	src, err := source.Open(j.src, opt)
	if err != nil {
		return
	}
	defer src.Close()
	total := int64(0)
	for it, err := range src.Items(ctx) {
		if err != nil {
			return
		}
		total += it.Size
	}
	p.total(total)
}

// wait waits for the version, its packs first.
func (j *datasetImport) wait(ctx context.Context, c *ckpt.Client, st *store.Store, v datasets.Version) error {
	made, err := st.Version(ctx, v.Set) // by now another import may have made a newer one
	if err != nil {
		return err
	}
	packs, err := datasets.PacksOf(made)
	if err := errors.Join(err, made.Close()); err != nil {
		return err
	}
	for _, set := range append(packs, v.Set) {
		if _, err := c.Wait(ctx, set.String(), j.until); err != nil {
			return err
		}
	}
	return nil
}

func (j *datasetImport) tell(v datasets.Version, took time.Duration) error {
	ref := fmt.Sprintf("%s@%d", j.name, v.Set.Step)
	row := struct {
		Dataset  string         `json:"dataset"`
		Version  int64          `json:"version"`
		Set      string         `json:"set"`
		New      bool           `json:"new"`
		Format   source.Format  `json:"format"`
		Digest   catalog.Digest `json:"digest"`
		Files    int64          `json:"files"`
		Bytes    int64          `json:"bytes"`
		Samples  int64          `json:"samples"`
		NewBytes int64          `json:"new_bytes"`
		NewPacks int            `json:"new_packs"`
		OldPacks int            `json:"old_packs"`
		Unread   int64          `json:"unread_files"`
		Known    int64          `json:"known_files"`
		Skipped  int64          `json:"skipped"`
		Seconds  float64        `json:"seconds"`
	}{j.name, v.Set.Step, v.Set.String(), !v.Unchanged, v.Format, v.Digest, v.Files, v.Bytes, v.Samples, v.NewBytes, v.NewPacks, v.OldPacks, v.Unread, v.Known, v.Skipped, took.Seconds()}
	return j.print(row, func(w io.Writer) {
		if v.Unchanged {
			fmt.Fprintf(w, "%s  nothing changed: no new version (--force makes one)\n", ref)
			return
		}
		fmt.Fprintf(w, "%s  %s, %s in %d files (%s); %s new in %s, %s/s\n", ref, plural(int(v.Samples), "sample", "samples"), size(v.Bytes), v.Files, v.Format,
			size(v.NewBytes), plural(v.NewPacks, "pack", "packs"), size(int64(float64(v.Bytes)/took.Seconds())))
		if v.Skipped > 0 {
			fmt.Fprintf(w, "left out: %s\n", plural(int(v.Skipped), "special file", "special files"))
		}
	})
}
