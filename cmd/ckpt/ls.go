package main

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newLsCmd(a *app) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use: "ls [RUN]", Short: "Runs, or a run's sets: step, level, size, ranks, age, tags", Args: args(0, 1),
		ValidArgsFunction: a.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				if len(args) == 0 {
					runs, err := c.Runs(cmd.Context())
					if err != nil {
						return err
					}
					return a.print(map[string]any{"runs": nonNil(runs)}, func(w io.Writer) { a.printRuns(w, runs) })
				}
				sets, err := c.Sets(cmd.Context(), args[0], all)
				if err != nil {
					return err
				}
				return a.print(map[string]any{"sets": nonNil(sets)}, func(w io.Writer) { a.printSets(w, sets, all) })
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also sets that are being written, aborted or pruned")
	return cmd
}

// nonNil makes an empty list print as [] and not as null.
func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func (a *app) printRuns(w io.Writer, runs []wire.Run) {
	table(w, func(row func(...any)) {
		row("RUN", "SETS", "SIZE", "LATEST", "LEVEL", "AGE")
		for _, r := range runs {
			if r.Latest == nil {
				row(r.Name, r.Sets, size(r.Size), "-", "-", "-")
				continue
			}
			row(r.Name, r.Sets, size(r.Size), r.Latest.Step, r.Latest.Level, a.since(r.Latest.Committed))
		}
	})
}

func (a *app) printSets(w io.Writer, sets []wire.Set, all bool) {
	table(w, func(row func(...any)) {
		row("STEP", "LEVEL", "SIZE", "RANKS", "AGE", "TAGS")
		for _, s := range sets {
			level, when := any(s.Level), s.Committed
			if s.State != catalog.Committed {
				level, when = s.State, s.Begun
			}
			row(s.Step, level, size(s.Size), s.World, a.since(when), setTags(s))
		}
	})
}

// setTags is a set's tags; a pin shows among them.
func setTags(s wire.Set) string {
	tags := pairs(s.Tags)
	if s.Pinned {
		if tags != "" {
			tags = " " + tags
		}
		tags = "(pinned)" + tags
	}
	return tags
}
