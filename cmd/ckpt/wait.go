package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newWaitCmd(a *app) *cobra.Command {
	var level, timeout string
	cmd := &cobra.Command{
		Use: "wait REF", Short: "Wait until a set is at a level or safer", Args: args(1, 1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx := cmd.Context()
			l, err := catalog.ParseLevel(level)
			if err != nil {
				return err
			}
			if err := checkRef(args[0]); err != nil {
				return err
			}
			if timeout != "" {
				d, err := parseSpan(timeout)
				if err != nil {
					return err
				}
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, d)
				defer cancel()
			}
			return a.with(ctx, func(c *ckpt.Client) error {
				s, err := c.Wait(ctx, args[0], l)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) { fmt.Fprintf(w, "%s is %v\n", s.ID, s.Level) })
			})
		},
	}
	cmd.Flags().StringVar(&level, "level", "remote", "staged, local, replicated, remote or verified")
	cmd.Flags().StringVar(&timeout, "timeout", "", "give up after this time, with exit code 7 (default: never)")
	return cmd
}
