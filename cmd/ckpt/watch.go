package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newWatchCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "watch [RUN]", Short: "Changes of sets as they happen, until Ctrl-C", Args: args(0, 1),
		ValidArgsFunction: a.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			run := ""
			if len(args) == 1 {
				run = args[0]
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				for s, err := range c.Watch(cmd.Context(), run) {
					if cmd.Context().Err() != nil {
						return nil // Ctrl-C is how one leaves
					}
					if err != nil {
						return err
					}
					if a.json {
						if err := json.NewEncoder(a.out).Encode(s); err != nil {
							return err
						}
						continue
					}
					state := string(s.State)
					if s.State == catalog.Committed {
						state = s.Level.String()
					}
					fmt.Fprintf(a.out, "%s  %s  %s  %s\n", clock(a.now()), s.ID, state, size(s.Size))
				}
				return nil
			})
		},
	}
}
