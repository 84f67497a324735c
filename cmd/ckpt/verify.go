package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newVerifyCmd(a *app) *cobra.Command {
	var all, deep bool
	cmd := &cobra.Command{
		Use: "verify REF | --all", Short: "Check the checksums of every copy", Args: args(0, 1),
		ValidArgsFunction: a.completeRef,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) == 1) {
				return usage("name one set, or all of them with --all")
			}
			ref := ""
			if !all {
				if ref = args[0]; checkRef(ref) != nil {
					return checkRef(ref)
				}
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("verify", 0, "bytes")
				res, err := c.Verify(cmd.Context(), ref, deep, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printVerify(w, res) }); err != nil {
					return err
				}
				if len(res.Bad) > 0 {
					return fmt.Errorf("verify: %w: %s", catalog.ErrCorrupt, plural(len(res.Bad), "bad copy", "bad copies"))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "every set")
	cmd.Flags().BoolVar(&deep, "deep", false, "also the BLAKE3 of every copy")
	return cmd
}

func printVerify(w io.Writer, r *wire.VerifyResult) {
	if len(r.Bad) > 0 {
		table(w, func(row func(...any)) {
			row("SET", "RANK", "TIER", "NODE", "WHAT IS WRONG")
			for _, b := range r.Bad {
				rank := fmt.Sprint(b.Rank)
				if b.Rank < 0 {
					rank = "manifest"
				}
				row(b.ID, rank, b.Tier, or(b.Node, "-"), b.Err)
			}
		})
	}
	fmt.Fprintf(w, "%s, %s, %s read, %d bad\n", plural(r.Sets, "set", "sets"), plural(r.Copies, "copy", "copies"), size(r.Bytes), len(r.Bad))
}
