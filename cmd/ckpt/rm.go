package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm REF...", Short: "Remove sets; their bytes go after the grace", Args: args(1, -1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, ref := range args {
				if err := checkRef(ref); err != nil {
					return err
				}
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				for _, ref := range args {
					s, err := c.Remove(cmd.Context(), ref)
					if err != nil {
						return err
					}
					if err := a.print(s, func(w io.Writer) { fmt.Fprintf(w, "%s is %s\n", s.ID, s.State) }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}
