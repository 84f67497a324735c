package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

func newTagCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "tag REF K=V...", Short: "Set tags of a set; K= sets an empty one, K- removes one", Args: args(2, -1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			tags, err := parseTags(args[1:])
			if err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.Tag(cmd.Context(), args[0], tags)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) { fmt.Fprintf(w, "%s  %s\n", s.ID, or(pairs(s.Tags), "(no tags)")) })
			})
		},
	}
}

// parseTags reads K=V, and K- as a removal.
func parseTags(args []string) (map[string]*string, error) {
	tags := make(map[string]*string)
	for _, arg := range args {
		if k, v, ok := strings.Cut(arg, "="); ok && k != "" {
			tags[k] = &v
		} else if k, ok := strings.CutSuffix(arg, "-"); ok && k != "" {
			tags[k] = nil
		} else {
			return nil, usage("tag %q; want K=V, or K- to remove it", arg)
		}
	}
	return tags, nil
}
