package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newPinCmd(a *app, pin bool) *cobra.Command {
	use, short := "pin", "Keep a set whatever the retention says"
	if !pin {
		use, short = "unpin", "Let the retention decide about a set again"
	}
	return &cobra.Command{
		Use: use + " REF", Short: short, Args: args(1, 1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.Pin(cmd.Context(), args[0], pin)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) { fmt.Fprintf(w, "%s is %sned\n", s.ID, use) })
			})
		},
	}
}
