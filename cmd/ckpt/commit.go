package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newCommitCmd(a *app) *cobra.Command {
	var req wire.CommitRequest
	var level string
	var metrics []string
	cmd := &cobra.Command{
		Use: "commit RUN@STEP", Short: "Make the files written into RUN/.write/STEP of a mount, on all nodes, a set", Args: args(1, 1),
		ValidArgsFunction: a.completeDraft,
		Long: `Makes one set of the files that programs wrote into MOUNT/checkpoints/RUN/.write/STEP, on this
node and on all others that have such a folder: every file is a shard under its own name, their
ranks follow the order of the names. The files must be closed. Until it is decided, nothing is
changed and Ctrl-C leaves the folders as they were.

--world and --nodes say how much there has to be, so that a node that is away or late is not
left out. It begins a new attempt of the run, so a job that saves to the same run is fenced;
--launch joins its attempt instead. On one node, renaming the folder does the same:
mv RUN/.write/STEP RUN/STEP.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			until, err := catalog.ParseLevel(level)
			if err != nil {
				return err
			}
			if req.Metrics, err = parseMetrics(metrics); err != nil {
				return err
			}
			req.Ref = args[0]
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("commit", 0, "bytes")
				set, err := c.CommitDraft(cmd.Context(), req, p.set)
				p.end()
				if err == nil && set.Level < until {
					set, err = c.Wait(cmd.Context(), set.ID, until)
				}
				if err != nil {
					return err
				}
				return a.print(set, func(w io.Writer) {
					fmt.Fprintf(w, "%s  %s in %s, %v\n", set.ID, size(set.Size), plural(set.World, "file", "files"), set.Level)
				})
			})
		},
	}
	cmd.Flags().IntVar(&req.World, "world", 0, "how many files there must be (default: as many as there are)")
	cmd.Flags().IntVar(&req.Nodes, "nodes", 0, "how many nodes must have the folder (default: as many as have it)")
	cmd.Flags().StringVar(&req.Launch, "launch", "", "the name of this launch (default: a new one)")
	cmd.Flags().StringVar(&level, "level", "local", "return when the set is at this level")
	cmd.Flags().StringArrayVar(&metrics, "metric", nil, "NAME=NUMBER, kept in the set's record")
	return cmd
}
