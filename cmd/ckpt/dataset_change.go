package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newDatasetVerifyCmd(a *app) *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use: "verify NAME[@V]", Short: "Check the checksums of every copy of a version's index and packs", Args: args(1, 1),
		Long: `Reads the copies of a version's index and packs that are on this node, cached ones too, and,
with --deep or where the node keeps none itself, those on the remote tier. A pack that the catalog
does not have is bad, too. Exit code 4 when anything is bad. Ctrl-C stops it.`,
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDatasetRef(args[0]); err != nil {
				return err
			}
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("verify", 0, "bytes")
				res, err := c.VerifyDataset(cmd.Context(), args[0], deep, p.set)
				p.end()
				if err != nil {
					return err
				}
				if err := a.print(res, func(w io.Writer) { printVersionVerify(w, res) }); err != nil {
					return err
				}
				if len(res.Bad) > 0 {
					return fmt.Errorf("verify %s: %w: %s", args[0], catalog.ErrCorrupt, plural(len(res.Bad), "bad copy", "bad copies"))
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "also the copies on the remote tier, with their BLAKE3")
	return cmd
}

func printVersionVerify(w io.Writer, r *wire.VerifyResult) {
	if len(r.Bad) > 0 {
		table(w, func(row func(...any)) {
			row("SET", "TIER", "NODE", "WHAT IS WRONG")
			for _, b := range r.Bad {
				row(b.ID, b.Tier, or(b.Node, "-"), b.Err)
			}
		})
	}
	fmt.Fprintf(w, "index and %s, %s, %s read, %d bad\n", plural(r.Sets-1, "pack", "packs"), plural(r.Copies, "copy", "copies"), size(r.Bytes), len(r.Bad))
}

func newDatasetRmCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME@V...", Short: "Remove versions; packs that no version names any more follow", Args: args(1, -1),
		Long: `Removes versions. One that is pinned or being read stays, and the command says so. The bytes go
after the daemon's --grace; packs that another version names stay, and the others are collected
when no import can be using them (--pack-patience of ckptd serve).`,
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, ref := range args {
				if err := checkDatasetRef(ref); err != nil {
					return err
				}
				if !strings.Contains(ref, "@") {
					return usage("rm %s: say which version, as %s@1; `ckpt dataset ls %s` lists them", ref, ref, ref)
				}
			}
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				for _, ref := range args {
					s, err := c.RemoveDataset(cmd.Context(), ref)
					if err != nil {
						return err
					}
					if err := a.printChanged(s, func(name string) string { return fmt.Sprintf("%s is %s", name, s.State) }); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func newDatasetPinCmd(a *app, pin bool) *cobra.Command {
	use, short := "pin", "Keep a version: it cannot be removed"
	if !pin {
		use, short = "unpin", "Let a version be removed again"
	}
	return &cobra.Command{
		Use: use + " NAME[@V]", Short: short, Args: args(1, 1),
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDatasetRef(args[0]); err != nil {
				return err
			}
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.PinDataset(cmd.Context(), args[0], pin)
				if err != nil {
					return err
				}
				return a.printChanged(s, func(name string) string { return fmt.Sprintf("%s is %sned", name, use) })
			})
		},
	}
}

func newDatasetTagCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "tag NAME[@V] K=V...", Short: "Set tags of a version; K= sets an empty one, K- removes one", Args: args(2, -1),
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkDatasetRef(args[0]); err != nil {
				return err
			}
			tags, err := parseTags(args[1:])
			if err != nil {
				return err
			}
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.TagDataset(cmd.Context(), args[0], tags)
				if err != nil {
					return err
				}
				return a.printChanged(s, func(name string) string { return name + "  " + or(pairs(s.Tags), "(no tags)") })
			})
		},
	}
}

// printChanged prints the set that a version is, or a line that names the
// version.
func (a *app) printChanged(s *wire.Set, line func(name string) string) error {
	name := s.ID
	if dataset, ok := catalog.DatasetName(catalog.Run(s.Run)); ok {
		name = fmt.Sprintf("%s@%d", dataset, s.Step)
	}
	return a.print(s, func(w io.Writer) { fmt.Fprintln(w, line(name)) })
}

// completeDataset offers datasets, and with versions what is behind the "@".
func (a *app) completeDataset(versions bool) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 && cmd.Name() != "rm" {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.offer(cmd, prefix, func(ctx context.Context, c *ckpt.Client) (names []string, more bool, err error) {
			name, _, hasVersion := strings.Cut(prefix, "@")
			if versions && hasVersion {
				list, err := c.DatasetVersions(ctx, name, false)
				for _, v := range list {
					names = append(names, v.Ref)
				}
				return names, false, err
			}
			list, err := c.Datasets(ctx)
			for _, d := range list {
				if versions {
					d.Name += "@"
				}
				names = append(names, d.Name)
			}
			return names, versions, err
		})
	}
}
