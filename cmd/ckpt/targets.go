package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newTargetCmd(a *app) *cobra.Command {
	return group("target", "The places of the remote tier", newTargetLsCmd(a), newTargetAddCmd(a), newTargetDrainCmd(a), newTargetUndrainCmd(a), newTargetRebalanceCmd(a), newTargetRmCmd(a))
}

func newTargetLsCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "Every target of the cluster: its state, room and trouble", Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				t, err := c.Targets(cmd.Context())
				if err != nil {
					return err
				}
				t.Targets = nonNil(t.Targets)
				return a.print(t, func(w io.Writer) { a.printTargets(w, t.Targets) })
			})
		},
	}
}

func (a *app) printTargets(w io.Writer, targets []wire.Target) {
	table(w, func(row func(...any)) {
		row("NAME", "STATE", "DOMAIN", "POOL", "FREE", "TOTAL", "COLUMNS", "ERRORS", "LATENCY", "SEEN", "SCRUBBED", "ADDRESSES", "TROUBLE")
		for _, t := range targets {
			row(t.Name, cmp.Or(t.State, catalog.TargetUp), or(t.Domain, "-"), or(t.Pool, "-"), size(t.Free), size(t.Total),
				count(t.Columns), t.Errors, latency(t.Latency), a.since(t.Seen), a.since(t.Scrubbed), addresses(t), or(t.Trouble, t.Err))
		}
	})
}

// count is a number that may be unknown.
func count(n int64) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprint(n)
}

// latency shows seconds.
func latency(s float64) string {
	if s <= 0 {
		return "-"
	}
	return time.Duration(s * float64(time.Second)).Round(10 * time.Microsecond).String()
}

// addresses says where a target is, and who alone reaches it.
func addresses(t wire.Target) string {
	where := strings.Join(t.Addrs, " ")
	if t.Scheme != "" && !strings.HasPrefix(where, t.Scheme+":") {
		where = t.Scheme + ":" + where
	}
	if t.Node != "" {
		where += " on " + t.Node
	}
	return or(where, "-")
}

func newTargetAddCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "add SPEC", Short: "Enter a target that does not register itself", Args: args(1, 1),
		Long: `Enters a target into the cluster's map, so that every daemon that was started with
--remote catalog uses it. SPEC is what ckptd serve --remote takes:

  ` + catalog.TargetSyntax + `

A target that runs with ckptd target --nats enters itself.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := catalog.ParseTarget(args[0]); err != nil {
				return err
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				t, err := c.AddTarget(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) { fmt.Fprintf(w, "%s is a member, %s\n", t.Name, addresses(*t)) })
			})
		},
	}
}

func newTargetRmCmd(a *app) *cobra.Command {
	var force bool
	var node string
	cmd := &cobra.Command{
		Use: "rm NAME", Short: "Take a drained target out of the cluster", Args: args(1, 1),
		Long: `Takes a target out of the cluster's map: daemons stop using it. One that may still hold
columns is refused: drain it first. With --force it goes all the same, and what it holds
counts as lost. A target whose process runs on, or that a daemon's flags name, comes back
when that process is started again.`,
		ValidArgsFunction: a.completeTarget,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				t, err := c.RemoveTarget(cmd.Context(), args[0], node, force)
				if err != nil {
					return err
				}
				return a.print(t, func(w io.Writer) { fmt.Fprintf(w, "%s is no member any more\n", t.Name) })
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "although it is not drained: what it holds counts as lost")
	cmd.Flags().StringVar(&node, "node", "", "node that has the target to itself (default the daemon asked)")
	return cmd
}

// completeTarget offers the members.
func (a *app) completeTarget(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	var names []string
	err := a.with(ctx, func(c *ckpt.Client) error {
		t, err := c.Targets(ctx)
		if err != nil {
			return err
		}
		for _, t := range t.Targets {
			if strings.HasPrefix(t.Name, prefix) {
				names = append(names, t.Name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
