package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newRepairCmd(a *app) *cobra.Command {
	var run string
	var wait bool
	cmd := &cobra.Command{
		Use: "repair", Short: "Rebuild what is missing on the remote tier (exit code 1 when something stays so)", Args: args(0, 0),
		Long: `Looks at every column of every set on the remote tier, or of one run, and rebuilds those
that are missing or not what they should be, from any others. Targets that are down are
not waited for. The daemons do the same by themselves, and wait --repair-after for a
target to come back. Damage inside a column shows when it is read: ckpt scrub looks for it.

With --wait it tells of the progress. Ctrl-C, or no --wait, leaves the work to the daemon.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if run != "" {
				if _, err := catalog.ParseRun(run); err != nil {
					return err
				}
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("repair", 0, "blobs")
				res, err := c.Repair(cmd.Context(), run, wait, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printRepair(w, res) }); err != nil {
					return err
				}
				if len(res.Left) > 0 {
					return errQuiet
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&run, "run", "", "only the sets of this run (default all)")
	cmd.Flags().BoolVar(&wait, "wait", false, "until it is done")
	return cmd
}

func printRepair(w io.Writer, r *wire.RepairResult) {
	if r.Started {
		fmt.Fprintln(w, "the daemon repairs; `ckpt status` tells how far it is")
		return
	}
	for _, l := range r.Left {
		fmt.Fprintln(w, "left: "+l)
	}
	fmt.Fprintf(w, "%s looked at, %s rebuilt or moved, %s written\n", plural(r.Blobs, "blob", "blobs"), plural(r.Columns, "column", "columns"), size(r.Bytes))
}

func newTargetDrainCmd(a *app) *cobra.Command {
	var node string
	var background bool
	cmd := &cobra.Command{
		Use: "drain NAME", Short: "Move the columns of a target away, so that it may be removed", Args: args(1, 1),
		Long: `Moves every column of a target to others and then says that it may be removed. It takes no
new columns from the start, and is read until the end. Redundancy is never less than before:
a column goes when its successor is durable and recorded. Ctrl-C leaves the work to the
daemons; ckpt target undrain takes it back.`,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("drain "+args[0], 0, "columns")
				t, err := c.DrainTarget(cmd.Context(), args[0], node, false, !background, p.set)
				p.end()
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) {
					if t.State != catalog.TargetDrained {
						fmt.Fprintf(w, "%s is being drained; `ckpt target ls` tells when it is done\n", t.Name)
						return
					}
					fmt.Fprintf(w, "%s is drained: stop its process and take it out with `ckpt target rm %s`\n", t.Name, t.Name)
				})
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node that has the target to itself (default the daemon asked)")
	cmd.Flags().BoolVar(&background, "background", false, "do not wait for the end")
	return cmd
}

func newTargetUndrainCmd(a *app) *cobra.Command {
	var node string
	cmd := &cobra.Command{
		Use: "undrain NAME", Short: "Take a drain back: the target takes new columns again", Args: args(1, 1),
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				t, err := c.DrainTarget(cmd.Context(), args[0], node, true, false, nil)
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) { fmt.Fprintf(w, "%s is %s\n", t.Name, t.State) })
			})
		},
	}
	cmd.Flags().StringVar(&node, "node", "", "node that has the target to itself (default the daemon asked)")
	return cmd
}

func newTargetRebalanceCmd(a *app) *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use: "rebalance", Short: "Move columns from the fullest targets to the emptiest", Args: args(0, 0),
		Long: `Moves columns from the fullest targets of each pool to the emptiest until they differ by less
than 5 % of their room. New sets go to the emptier targets anyway; this is for what is there
already when targets have joined. Columns of a set stay in different failure domains. A column
goes when its successor is durable and recorded; the moves are paced as --repair-rate says.
Ctrl-C leaves the work to the daemon.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("rebalance", 0, "blobs")
				res, err := c.RebalanceTargets(cmd.Context(), dryRun, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printRebalance(w, res) }); err != nil {
					return err
				}
				if len(res.Left) > 0 {
					return errQuiet
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only tell what would move")
	return cmd
}

func printRebalance(w io.Writer, r *wire.RebalanceResult) {
	if len(r.Moves) > 0 {
		table(w, func(row func(...any)) {
			row("FROM", "TO", "COLUMNS", "SIZE")
			for _, m := range r.Moves {
				row(m.From, m.To, m.Columns, size(m.Bytes))
			}
		})
	}
	for _, l := range r.Left {
		fmt.Fprintln(w, "left: "+l)
	}
	verb := "moved"
	if r.DryRun {
		verb = "would move"
	}
	fmt.Fprintf(w, "%s %s, %s; targets are %.0f %% to %.0f %% full\n", plural(r.Columns, "column", "columns"), verb, size(r.Bytes), 100*r.Least, 100*r.Most)
}
