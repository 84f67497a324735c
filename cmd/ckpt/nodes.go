package main

import (
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newNodeCmd(a *app) *cobra.Command {
	return group("node", "The nodes", &cobra.Command{
		Use: "ls", Short: "Every daemon the catalog knows", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				nodes, err := c.Nodes(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(map[string]any{"nodes": nonNil(nodes)}, func(w io.Writer) { a.printNodes(w, nodes) })
			})
		},
	})
}

func (a *app) printNodes(w io.Writer, nodes []wire.Node) {
	table(w, func(row func(...any)) {
		row("NODE", "ALIVE", "SEEN", "USED", "CAPACITY", "BACKLOG", "ADDRESS", "TROUBLE")
		for _, n := range nodes {
			row(n.Name, yesNo(n.Alive), a.since(n.Seen), size(n.Used), size(n.Capacity), size(n.Backlog), or(n.Addr, "-"), strings.Join(n.Trouble, "; "))
		}
	})
}

func newTargetCmd(a *app) *cobra.Command {
	return group("target", "The places of the remote tier", &cobra.Command{
		Use: "ls", Short: "Every target with its room", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				targets, err := c.Targets(cmd.Context())
				if err != nil {
					return err
				}
				return a.print(map[string]any{"targets": nonNil(targets)}, func(w io.Writer) { printTargets(w, targets) })
			})
		},
	})
}

func printTargets(w io.Writer, targets []wire.Target) {
	table(w, func(row func(...any)) {
		row("TARGET", "DOMAIN", "FREE", "TOTAL", "TROUBLE")
		for _, t := range targets {
			row(t.Name, or(t.Domain, "-"), size(t.Free), size(t.Total), t.Err)
		}
	})
}
