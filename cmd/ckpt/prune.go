package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newPruneCmd(a *app) *cobra.Command {
	var keep catalog.Retention
	var within, level string
	var dry bool
	cmd := &cobra.Command{
		Use: "prune RUN", Short: "Remove sets that no rule keeps", Args: args(1, 1),
		Long: `Removes the sets of a run that no rule keeps; a set kept by any rule stays. Without
rules, those of the run's policy count. Whatever the rules, the newest set at each
level stays, and pinned sets, sets somebody reads, and sets whose successor is not
yet as safe.`,
		ValidArgsFunction: a.completeRun,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if within != "" {
				if keep.KeepWithin, err = parseSpan(within); err != nil {
					return err
				}
			}
			if level != "" {
				if keep.KeepLevel, err = catalog.ParseLevel(level); err != nil {
					return err
				}
			}
			if keep.KeepLast < 0 || keep.KeepEvery < 0 {
				return usage("a negative number of sets or steps")
			}
			rules := &keep
			if keep == (catalog.Retention{}) {
				rules = nil
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p, err := c.Prune(cmd.Context(), args[0], rules, dry)
				if err != nil {
					return err
				}
				return a.print(p, func(w io.Writer) { printPrune(w, p) })
			})
		},
	}
	f := cmd.Flags()
	f.IntVar(&keep.KeepLast, "keep-last", 0, "keep this many newest sets")
	f.Int64Var(&keep.KeepEvery, "keep-every", 0, "keep sets whose step is a multiple of this")
	f.StringVar(&within, "keep-within", "", "keep sets committed within this time, as 12h or 7d")
	f.StringVar(&keep.KeepBest, "keep-best", "", "keep the best by METRIC[:min|max]")
	f.StringVar(&level, "keep-level", "", "only sets at this level or safer count for --keep-last")
	f.BoolVar(&dry, "dry-run", false, "only print what would be done")
	return cmd
}

// printPrune prints the same lines for a dry run as for the real one, but for the last.
func printPrune(w io.Writer, p *wire.Prune) {
	table(w, func(row func(...any)) {
		for _, s := range p.Keep {
			row("keep", s.Ref, s.Level, size(s.Size), s.Why)
		}
		for _, s := range p.Remove {
			row("remove", s.Ref, s.Level, size(s.Size), s.Why)
		}
	})
	verb := "removed"
	if p.DryRun {
		verb = "would remove"
	}
	fmt.Fprintf(w, "%s %s, %s\n", verb, plural(len(p.Remove), "set", "sets"), size(p.Freed))
}
