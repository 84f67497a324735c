package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newScrubCmd(a *app) *cobra.Command {
	var target string
	var wait bool
	cmd := &cobra.Command{
		Use: "scrub", Short: "Look at every byte of the remote tier where it lies (exit code 1 when something stays bad)", Args: args(0, 0),
		Long: `Lets every target read its columns and hold them against their checksums, and holds what
is there against the catalog: flipped bits, missing, cut, foreign and stale columns are
found and mended, columns that no record names go after a grace. No column travels over
the network but those that are mended, and those of posix: and s3: remotes, which cannot
read for themselves. The daemons do the same every --scrub-every, at --scrub-rate; of such
remotes they then look at the ends of columns only.

With --wait it tells of the progress. Ctrl-C, or no --wait, leaves the work to the daemons.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("scrub", 0, "sets")
				res, err := c.Scrub(cmd.Context(), target, wait, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printScrub(w, res) }); err != nil {
					return err
				}
				if len(res.Left) > 0 {
					return errQuiet
				}
				return nil
			})
		},
	}
	cmd.Flags().StringVar(&target, "target", "", "only this target (default all)")
	cmd.Flags().BoolVar(&wait, "wait", false, "until it is done")
	_ = cmd.RegisterFlagCompletionFunc("target", a.completeTarget)
	return cmd
}

func printScrub(w io.Writer, r *wire.ScrubResult) {
	if r.Started {
		fmt.Fprintf(w, "the daemons scrub %s; `ckpt why` tells what they find of a set\n", plural(r.Targets, "target", "targets"))
		return
	}
	for _, l := range r.Left {
		fmt.Fprintln(w, "left: "+l)
	}
	fmt.Fprintf(w, "%s on %s, %s: %d bad, %d mended, %d that no record names\n", plural(int(r.Columns), "column", "columns"), plural(r.Targets, "target", "targets"), size(r.Bytes), r.Bad, r.Mended, r.Extra)
}
