package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newStatusCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "The node, its tiers, its backlog, and anything wrong (exit code 1 when so)", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.Status(cmd.Context())
				if err != nil {
					return err
				}
				if err := a.print(s, func(w io.Writer) { a.printStatus(w, s) }); err != nil {
					return err
				}
				if len(s.Trouble) > 0 {
					return errQuiet
				}
				return nil
			})
		},
	}
}

func (a *app) printStatus(w io.Writer, s *wire.Status) {
	table(w, func(row func(...any)) {
		row("node", fmt.Sprintf("%s, ckptd %s, up %s", s.Node, s.Version, a.since(s.Started)))
		row("socket", s.Socket)
		row("data", s.Data)
		cat := s.Catalog.URL
		if !s.Catalog.Connected {
			cat += ", not connected"
		}
		cat += ", " + plural(s.Catalog.Sets, "set", "sets")
		if s.Catalog.Coordinator != "" {
			cat += ", coordinator " + s.Catalog.Coordinator
		}
		row("catalog", cat)
		arena := fmt.Sprintf("%s, %s lent", size(s.Arena.Size), size(s.Arena.Lent))
		if s.Arena.Waiting > 0 {
			arena += fmt.Sprintf(", %d waiting", s.Arena.Waiting)
		}
		if !s.Arena.Warm {
			arena += ", warming up"
		}
		row("arena", arena)
		local := fmt.Sprintf("%s used", size(s.Local.Used))
		if s.Local.Quota > 0 {
			local += " of " + size(s.Local.Quota)
		}
		row("local", fmt.Sprintf("%s, %s reserved, %s free", local, size(s.Local.Reserved), size(s.Local.Free)))
		for _, d := range s.Local.Disks {
			line := fmt.Sprintf("%s: %s used, %s free", d.Dir, size(d.Used), size(d.Free))
			if d.Err != "" {
				line += ", " + d.Err
			}
			row("  disk", line)
		}
		row("remote", fmt.Sprintf("layout %s, %s", s.Remote.Layout, plural(len(s.Remote.Targets), "target", "targets")))
		for _, t := range s.Remote.Targets {
			row("  target", targetLine(t))
		}
		row("backlog", fmt.Sprintf("%d votes, %d shards to drain (%s), %d to verify", s.Backlog.Votes, s.Backlog.Drain, size(s.Backlog.DrainBytes), s.Backlog.Verify))
		k := s.Cache
		row("cache", fmt.Sprintf("%s of %s in %s, %d hits, %d misses, %d evicted, %s from peers, %s from remote", size(k.Used), size(k.Settings.Cache),
			plural(k.Copies, "pack", "packs"), k.Hits, k.Misses, k.Evicted, size(k.Peer), size(k.Remote)))
		for _, d := range s.Drafts {
			row("draft", draftLine(a, d))
		}
		for _, r := range k.Reading {
			row("  reader", fmt.Sprintf("%s: rank %d of %d at sample %d; %s ahead, %d samples looked at, %s", r.Set, r.Rank, r.World, r.At, plural(r.Ahead, "pack", "packs"), r.Lookahead, plural(r.Retries, "retry", "retries")))
		}
		for i := range s.Mounts {
			row("mount", mountLine(&s.Mounts[i]))
		}
		if s.Repair != "" {
			row("repair", s.Repair)
		}
		if len(s.Trouble) == 0 {
			row("trouble", "none")
		}
		for _, t := range s.Trouble {
			row("TROUBLE", t)
		}
	})
}

func draftLine(a *app, d wire.Draft) string {
	line := fmt.Sprintf("%s: %s, %s", d.Name, plural(d.Files, "file", "files"), size(d.Bytes))
	switch {
	case d.Committing:
		return line + ", being committed"
	case d.Writers > 0:
		return fmt.Sprintf("%s, %d open for writing", line, d.Writers)
	}
	return fmt.Sprintf("%s, untouched for %s; to be removed %s", line, a.since(d.Changed), d.Until.Format("2006-01-02 15:04"))
}

func targetLine(t wire.Target) string {
	line := t.Name
	if t.Domain != "" {
		line += " in " + t.Domain
	}
	if t.Pool != "" {
		line += " of pool " + t.Pool
	}
	if t.Err != "" {
		return line + ": " + or(t.Trouble, t.Err)
	}
	line = fmt.Sprintf("%s: %s free of %s", line, size(t.Free), size(t.Total))
	if t.Trouble != "" {
		line += ", " + t.Trouble
	}
	return line
}
