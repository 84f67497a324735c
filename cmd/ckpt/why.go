package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newWhyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "why REF", Short: "What happened to a set, in order, and what is missing", Args: args(1, 1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				y, err := c.Why(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(y, func(w io.Writer) { printWhy(w, y) })
			})
		},
	}
}

func printWhy(w io.Writer, y *wire.Why) {
	for _, s := range y.Story {
		fmt.Fprintln(w, s)
	}
	if len(y.Missing) > 0 {
		fmt.Fprintln(w, "\nmissing:")
		for _, m := range y.Missing {
			fmt.Fprintln(w, "  "+m)
		}
	}
	if y.Older != "" {
		fmt.Fprintf(w, "\nthe newest set before it with a good copy is %s\n", y.Older)
	}
}
