package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newShowCmd(a *app) *cobra.Command {
	var tensors bool
	cmd := &cobra.Command{
		Use: "show REF", Short: "A set's shards, nodes, places and timeline", Args: args(1, 1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.Set(cmd.Context(), args[0], tensors)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) { a.printDetail(w, s) })
			})
		},
	}
	cmd.Flags().BoolVarP(&tensors, "tensors", "t", false, "also the tensors")
	return cmd
}

// maxRows bounds the shards printed for people; --json has them all.
const maxRows = 64

func (a *app) printDetail(w io.Writer, s *wire.SetDetail) {
	a.printSet(w, s)
	if len(s.Shards) > 0 {
		fmt.Fprintln(w)
		table(w, func(row func(...any)) {
			row("RANK", "LEVEL", "SIZE", "NODES", "REMOTE", "FILE")
			for i, sh := range s.Shards {
				if i == maxRows {
					row("…", fmt.Sprintf("%d more; --json lists all", len(s.Shards)-i))
					break
				}
				row(sh.Rank, sh.Level, size(sh.Size), or(strings.Join(sh.Local, ","), "-"), placeLine(sh.Remote), or(sh.Path, "-")+wasLine(sh.File)+badLine(sh.Bad))
			}
		})
	}
	if len(s.Events) > 0 {
		fmt.Fprintln(w)
		printEvents(w, s.Events)
	}
	if len(s.Tensors) > 0 {
		fmt.Fprintln(w)
		table(w, func(row func(...any)) {
			row("TENSOR", "DTYPE", "SHAPE", "SIZE", "PIECE")
			for _, t := range s.Tensors {
				piece := ""
				if len(t.Global) > 0 {
					piece = fmt.Sprintf("at %s of %s", shapeOf(t.Start), shapeOf(t.Global))
				}
				row(t.Name, t.DType, shapeOf(t.Shape), size(t.Size), piece)
			}
		})
	}
}

// printSet tells about a set as a whole.
func (a *app) printSet(w io.Writer, s *wire.SetDetail) {
	table(w, func(row func(...any)) {
		row("set", s.ID)
		state := string(s.State)
		if s.State == catalog.Committed {
			state += ", " + s.Level.String()
		}
		if s.Reason != "" {
			state += ": " + s.Reason
		}
		row("state", state)
		row("size", fmt.Sprintf("%s in %s", size(s.Size), plural(s.World, "shard", "shards")))
		row("begun", fmt.Sprintf("%s (%s ago)", clock(s.Begun), a.since(s.Begun)))
		if !s.Committed.IsZero() {
			row("committed", fmt.Sprintf("%s (%s later)", clock(s.Committed), s.Committed.Sub(s.Begun).Round(1e6)))
		}
		if s.Pinned {
			row("pinned", "yes")
		}
		if len(s.Tags) > 0 {
			row("tags", pairs(s.Tags))
		}
		if len(s.Metrics) > 0 {
			row("metrics", pairs(s.Metrics))
		}
		if !s.Manifest.IsZero() {
			row("manifest", s.Manifest)
		}
		if len(s.Missing) > 0 {
			row("missing", "ranks "+ranksOf(s.Missing))
		}
	})
}

func printEvents(w io.Writer, events []catalog.Event) {
	table(w, func(row func(...any)) {
		for _, e := range events {
			row(clock(e.Time), e.Node, e.What, e.Detail)
		}
	})
}

func placeLine(p *catalog.Place) string {
	if p == nil {
		return "-"
	}
	how := p.Layout
	if p.Encoding != "" {
		how += ", compressed to " + size(p.Size) + ","
	}
	return fmt.Sprintf("%s on %s", how, strings.Join(p.Targets, ","))
}

// wasLine names the file that a raw shard was.
func wasLine(file string) string {
	if file == "" {
		return ""
	}
	return fmt.Sprintf(" was %q", file)
}

func badLine(bad string) string {
	if bad == "" {
		return ""
	}
	return " BAD: " + bad
}

func shapeOf(s []int64) string {
	return strings.ReplaceAll(fmt.Sprint(s), " ", ",")
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// ranksOf prints ranks as ranges: 0-3,7.
func ranksOf(ranks []int) string {
	var out []string
	for i := 0; i < len(ranks); {
		j := i
		for j+1 < len(ranks) && ranks[j+1] == ranks[j]+1 {
			j++
		}
		if i == j {
			out = append(out, fmt.Sprint(ranks[i]))
		} else {
			out = append(out, fmt.Sprintf("%d-%d", ranks[i], ranks[j]))
		}
		i = j + 1
	}
	return strings.Join(out, ",")
}
