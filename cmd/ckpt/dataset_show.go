package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newDatasetShowCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show NAME[@V]", Short: "A version's content, packs, readers and timeline", Args: args(1, 1),
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDatasetRef(args[0]); err != nil {
				return err
			}
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				d, err := c.DatasetVersion(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(d, func(w io.Writer) { a.printVersion(w, d) })
			})
		},
	}
}

func checkDatasetRef(s string) error {
	_, err := catalog.ParseDatasetRef(s)
	return err
}

// withDataset is with, for commands about datasets.
func (a *app) withDataset(ctx context.Context, do func(c *ckpt.Client) error) error {
	return a.with(ctx, func(c *ckpt.Client) error { return withDatasetHint(do(c)) })
}

func (a *app) printVersion(w io.Writer, d *wire.DatasetDetail) {
	table(w, func(row func(...any)) {
		row("version", d.Ref)
		state := string(d.State)
		if d.State == catalog.Committed {
			state += ", " + versionLevel(&d.DatasetVersion)
		}
		if d.Reason != "" {
			state += ": " + d.Reason
		}
		row("state", state)
		if d.State == catalog.Committed {
			row("content", fmt.Sprintf("%s of %s in %s", plural(int(d.Samples), "sample", "samples"), size(d.Bytes), plural(int(d.Files), "file", "files")))
			row("stored", fmt.Sprintf("%s in %s and the index", size(d.Stored), plural(d.Packs, "pack", "packs")))
			row("digest", d.Digest)
		}
		row("begun", fmt.Sprintf("%s (%s ago)", clock(d.Begun), a.since(d.Begun)))
		if !d.Committed.IsZero() {
			row("committed", fmt.Sprintf("%s (%s later)", clock(d.Committed), d.Committed.Sub(d.Begun).Round(1e6)))
		}
		if d.Pinned {
			row("pinned", "yes")
		}
		if len(d.Tags) > 0 {
			row("tags", pairs(d.Tags))
		}
		if d.Schema != "" {
			row("schema", d.Schema)
		}
		row("set", d.ID)
		if len(d.Leases) > 0 {
			row("read by", strings.Join(d.Leases, ", "))
		}
	})
	tellTrouble(w, &d.DatasetVersion)
	if len(d.PackList) > 0 {
		fmt.Fprintln(w)
		table(w, func(row func(...any)) {
			row("PACK", "LEVEL", "SIZE", "SAMPLES", "KIND", "SHARED", "SET")
			for i, p := range d.PackList {
				if i == maxRows {
					row("…", fmt.Sprintf("%d more; --json lists all", len(d.PackList)-i))
					break
				}
				level, kind, shared := p.Level.String(), "files", "-"
				if p.Level == catalog.LevelNone {
					level = "missing"
				}
				if p.Raw {
					kind = "one file"
				}
				if p.Shared {
					shared = "yes"
				}
				row(p.Pack, level, size(p.Size), p.Samples, kind, shared, p.ID)
			}
		})
	}
	if len(d.Events) > 0 {
		fmt.Fprintln(w)
		printEvents(w, d.Events)
	}
}
