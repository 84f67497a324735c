package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier/s3/bucket"
	"github.com/ckptd/ckptd/sdk/bundle"
	"github.com/ckptd/ckptd/sdk/bundle/objects"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newExportCmd(a *app) *cobra.Command {
	var from, maxFile string
	var hf bool
	var opt hfOptions
	cmd := &cobra.Command{
		Use: "export REF DEST", Short: "Copy a set out as plain files that are complete and readable alone",
		Long: `Copies a set to DEST, a directory or s3://BUCKET/PREFIX?endpoint=https://HOST:PORT: for each
rank rank-NNNNN.safetensors, which any tool that reads safetensors reads (a raw shard: rank-NNNNN.bin), and its checksums; the
set's tags in set.json; and at last manifest.json. Without that the set is not there. Every byte
is checked on the way. Credentials of a bucket come from AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY, ~/.aws/credentials, or the machine's role.

An export that was interrupted leaves whole files and no manifest: the same command goes on
from them. ` + "`ckpt import`" + ` brings the set back, here or elsewhere.

With --hf the new folder DEST gets whole tensors in Hugging Face's layout instead: model.safetensors,
or numbered files and model.safetensors.index.json; pieces that ranks hold are put together. It
appears when all is there. Choose the model's tensors, under its own names, with --strip model.`,
		Args: args(2, 2), ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			if hf {
				return a.exportHFTo(cmd.Context(), args[0], from, args[1], maxFile, opt)
			}
			if len(opt.only) > 0 || opt.strip != "" || cmd.Flags().Changed("max-file") {
				return usage("--only, --strip and --max-file are for --hf: an export is the whole set")
			}
			to, err := storeOf(args[1])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error { return a.export(cmd.Context(), c, args[0], from, to) })
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "read from this tier only: local, peer or remote")
	cmd.Flags().BoolVar(&hf, "hf", false, "whole tensors in Hugging Face's layout, to be loaded by from_pretrained beside a config.json")
	cmd.Flags().StringArrayVar(&opt.only, "only", nil, "with --hf: only tensors whose name matches; may be repeated")
	cmd.Flags().StringVar(&opt.strip, "strip", "", "with --hf: only tensors whose name begins so, and without that beginning")
	cmd.Flags().StringVar(&maxFile, "max-file", "5GiB", "with --hf: most bytes of tensors in a file")
	return cmd
}

// storeOf reads DEST or SRC.
func storeOf(spec string) (bundle.Store, error) {
	switch {
	case strings.HasPrefix(spec, bucket.Scheme):
		where, err := bucket.Parse(spec)
		if err != nil {
			return nil, err
		}
		b, err := bucket.Open(where, bucket.Options{})
		if err != nil {
			return nil, err
		}
		return objects.New(b), nil
	case spec == "" || strings.Contains(spec, "://"):
		return nil, usage("%q is no place this program knows; want a directory or s3://BUCKET/PREFIX?endpoint=URL", spec)
	}
	return bundle.NewDir(spec), nil
}

// exported is what --json prints.
type exported struct {
	Set   string   `json:"set"`
	Dest  string   `json:"dest"`
	Files []string `json:"files"`
	Bytes int64    `json:"bytes"`
	Sent  int64    `json:"sent"` // bytes written now
	Kept  int64    `json:"kept"` // bytes that were there already, and right
}

func (a *app) export(ctx context.Context, c *ckpt.Client, ref, from string, to bundle.Store) error {
	r, err := c.Open(ctx, ref, ckpt.From(from))
	if err != nil {
		return err
	}
	defer r.Close()
	info, err := c.Resolve(ctx, r.ID().String())
	if err != nil {
		return err
	}
	total := int64(0)
	for i := range r.Manifest().Shards {
		total += r.Manifest().Shards[i].Size
	}
	begin := time.Now()
	p := a.progress("export", total, "bytes")
	defer p.end()
	done, err := bundle.Export(ctx, r, info, to, bundle.Options{Progress: p.add})
	p.end()
	if errors.Is(err, context.Canceled) && !a.json {
		fmt.Fprintf(a.err, "%s holds whole files and no manifest; the same command goes on from there\n", to)
	}
	if err != nil {
		return err
	}
	out := exported{Set: r.ID().String(), Dest: to.String(), Files: done.Files, Bytes: done.Bytes, Sent: done.Sent, Kept: done.Kept}
	took := time.Since(begin)
	return a.print(out, func(w io.Writer) {
		kept := ""
		if done.Kept > 0 {
			kept = fmt.Sprintf(", %s of it were there", size(done.Kept))
		}
		fmt.Fprintf(w, "%s  %s in %s to %s%s, %s/s\n", out.Set, size(done.Bytes), plural(len(out.Files), "file", "files"), to, kept, size(int64(float64(total)/took.Seconds())))
	})
}

func newImportCmd(a *app) *cobra.Command {
	var level string
	var opt bundle.ImportOptions
	cmd := &cobra.Command{
		Use: "import SRC [RUN@STEP]", Short: "Bring an exported set back, here or into another catalog",
		Long: `Saves the set that ` + "`ckpt export`" + ` wrote to SRC, a directory or a bucket's prefix, under its own name or as RUN@STEP,
with its metadata, metrics and tags. Every byte is checked against the manifest and its checksums
before the set becomes visible; it appears as a whole or not at all.

A set that is there with these very bytes is left alone; one with others is never overwritten.
A job that saves to the run is not disturbed: the import refuses unless --new-attempt is given,
which fences it.`,
		Args: args(1, 2),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if len(args) == 2 {
				ref, err := catalog.ParseRef(args[1])
				if err != nil {
					return err
				}
				if ref.Step == catalog.Latest || ref.Attempt != 0 || ref.Level != catalog.LevelNone {
					return usage("%s; want RUN@STEP", args[1])
				}
				opt.To = ckpt.At(string(ref.Run), ref.Step)
			}
			if opt.Until, err = catalog.ParseLevel(level); err != nil {
				return err
			}
			from, err := storeOf(args[0])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error { return a.importSet(cmd.Context(), c, from, opt) })
		},
	}
	cmd.Flags().StringVar(&level, "level", "local", "return when the set is at this level")
	cmd.Flags().BoolVar(&opt.NewAttempt, "new-attempt", false, "begin a new attempt of the run, and fence whoever saves to it")
	return cmd
}

// imported is what --json prints.
type imported struct {
	Set     string        `json:"set"`
	From    string        `json:"from"`   // SRC
	Source  string        `json:"source"` // the set as it was exported
	Bytes   int64         `json:"bytes"`
	Level   catalog.Level `json:"level"`
	Already bool          `json:"already"` // it was there with these bytes
}

func (a *app) importSet(ctx context.Context, c *ckpt.Client, from bundle.Store, opt bundle.ImportOptions) error {
	s, err := bundle.Open(ctx, from)
	if err != nil {
		return err
	}
	begin := time.Now()
	p := a.progress("import", s.Size(), "bytes")
	defer p.end()
	opt.Progress = p.add
	done, err := bundle.Import(ctx, c, s, opt)
	p.end()
	if err != nil {
		return err
	}
	out := imported{Set: done.Set.ID, From: from.String(), Source: s.ID().String(), Bytes: s.Size(), Level: done.Set.Level, Already: done.Already}
	took := time.Since(begin)
	return a.print(out, func(w io.Writer) {
		if out.Already {
			fmt.Fprintf(w, "%s  was there with these very bytes, %v\n", out.Set, out.Level)
			return
		}
		fmt.Fprintf(w, "%s  %s in %s from %s, %v, %s/s\n", out.Set, size(out.Bytes), plural(len(s.Manifest().Shards), "shard", "shards"), from, out.Level, size(int64(float64(out.Bytes)/took.Seconds())))
	})
}
