package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newDatasetWarmCmd(a *app) *cobra.Command {
	var nodes []string
	cmd := &cobra.Command{
		Use: "warm NAME@V", Short: "Bring a version's packs to nodes' disks (exit code 1 when a node misses some)", Args: args(1, 1),
		Long: `Brings every pack of a version to this node's disks, or to those of --nodes. Each pack comes
from the remote tier once; nodes pass it on to each other. What is counted are verified bytes.
Ctrl-C stops it; what has come stays.`,
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				p := a.progress("warm", 0, "bytes")
				res, err := c.WarmDataset(cmd.Context(), args[0], nodes, p.set)
				p.end()
				if err != nil {
					return err
				}
				missing := false
				for _, n := range res.Nodes {
					missing = missing || n.Verified < n.Total || n.Err != ""
				}
				if err := a.print(res, func(w io.Writer) { printWarm(w, res) }); err != nil {
					return err
				}
				if missing {
					return errQuiet
				}
				return nil
			})
		},
	}
	cmd.Flags().StringSliceVar(&nodes, "nodes", nil, "names of nodes, or all (default the daemon's own)")
	return cmd
}

func printWarm(w io.Writer, r *wire.WarmResult) {
	table(w, func(row func(...any)) {
		row("NODE", "VERIFIED", "OF", "")
		for _, n := range r.Nodes {
			row(n.Node, size(n.Verified), size(n.Total), n.Err)
		}
	})
}

func newDatasetLocateCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "locate NAME@V", Short: "Which nodes have how much of a version, as scores from 0 to 1", Args: args(1, 1),
		ValidArgsFunction: a.completeDataset(true),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDataset(cmd.Context(), func(c *ckpt.Client) error {
				res, err := c.LocateDataset(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(res, func(w io.Writer) {
					table(w, func(row func(...any)) {
						row("NODE", "SCORE", "BYTES", "PACKS", "")
						for _, n := range res.Nodes {
							row(n.Node, fmt.Sprintf("%.3f", n.Score), size(n.Bytes), fmt.Sprintf("%d of %d", n.Packs, res.Packs), n.Err)
						}
					})
				})
			})
		},
	}
}

func newDatasetSettingsCmd(a *app) *cobra.Command {
	var change wire.DatasetSettings
	var cache string
	cmd := &cobra.Command{
		Use: "settings", Short: "Show or change how the daemon caches and prefetches packs, until it restarts", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cache != "" {
				v, err := parseSize(cache)
				if err != nil {
					return err
				}
				change.Cache = v
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				s, err := c.DatasetSettings(cmd.Context(), change)
				if err != nil {
					return err
				}
				return a.print(s, func(w io.Writer) {
					table(w, func(row func(...any)) {
						row("cache", size(s.Cache))
						row("policy", s.Policy)
						row("ahead", plural(s.Ahead, "pack", "packs"))
						row("lookahead", fmt.Sprintf("%d samples", s.Lookahead))
						row("retries", s.Retries)
					})
				})
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&cache, "cache", "", "most bytes of copies, as 100GiB")
	f.StringVar(&change.Policy, "policy", "", "what is evicted: next (what is needed last), lru")
	f.IntVar(&change.Ahead, "ahead", 0, "packs that may be fetched before they are needed")
	f.Int64Var(&change.Lookahead, "lookahead", 0, "samples of a reader's order that are looked at")
	f.IntVar(&change.Retries, "retries", 0, "times that all sources of a pack are asked again")
	return cmd
}
