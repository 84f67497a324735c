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
