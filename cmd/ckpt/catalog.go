package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newCatalogCmd(a *app) *cobra.Command {
	rebuild := &cobra.Command{
		Use: "rebuild", Short: "Recreate the catalog from the tiers alone", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("rebuild", 0, "sets")
				res, err := c.Rebuild(cmd.Context(), p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printRebuild(w, res) }); err != nil {
					return err
				}
				if len(res.Problems) > 0 {
					return errQuiet
				}
				return nil
			})
		},
	}
	var mend bool
	fsck := &cobra.Command{
		Use: "fsck", Short: "Compare the catalog with the tiers (exit code 1 when they differ)", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("fsck", 0, "sets")
				res, err := c.Fsck(cmd.Context(), mend, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printFsck(w, res) }); err != nil {
					return err
				}
				for _, p := range res.Problems {
					if !p.Mended {
						return errQuiet
					}
				}
				return nil
			})
		},
	}
	fsck.Flags().BoolVar(&mend, "mend", false, "mend what can be")
	return group("catalog", "The catalog itself", rebuild, fsck)
}

func printRebuild(w io.Writer, r *wire.RebuildResult) {
	for _, p := range r.Problems {
		fmt.Fprintln(w, "problem: "+p)
	}
	fmt.Fprintf(w, "%s, %s, %s\n", plural(r.Runs, "run", "runs"), plural(r.Sets, "set", "sets"), plural(r.Shards, "shard", "shards"))
}

func printFsck(w io.Writer, r *wire.FsckResult) {
	mended := 0
	for _, p := range r.Problems {
		state := "differs"
		if p.Mended {
			state = "mended "
			mended++
		}
		fmt.Fprintf(w, "%s  %s  %s\n", state, or(p.ID, "-"), p.What)
	}
	fmt.Fprintf(w, "%s, %s, %d mended\n", plural(r.Sets, "set", "sets"), plural(len(r.Problems), "difference", "differences"), mended)
}
