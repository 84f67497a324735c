package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/sdk/ckpt"
)

const completeTimeout = 2 * time.Second // a shell waits for us

// completeRun offers the runs there are.
func (a *app) completeRun(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeFrom(cmd, prefix, false)
}

// completeRef offers runs with "@", and after that the steps.
func (a *app) completeRef(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 && cmd.Name() != "rm" && cmd.Name() != "diff" {
		return nil, cobra.ShellCompDirectiveDefault
	}
	return a.completeFrom(cmd, prefix, true)
}

func (a *app) completeFrom(cmd *cobra.Command, prefix string, ref bool) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, prefix, func(ctx context.Context, c *ckpt.Client) (names []string, more bool, err error) {
		run, _, hasStep := strings.Cut(prefix, "@")
		if !ref || !hasStep {
			runs, err := c.Runs(ctx)
			for _, r := range runs {
				if ref {
					r.Name += "@"
				}
				names = append(names, r.Name)
			}
			return names, ref, err
		}
		sets, err := c.Sets(ctx, run, false)
		if len(sets) > 0 {
			names = append(names, run+"@latest")
		}
		for _, s := range sets {
			names = append(names, s.Ref)
		}
		return names, false, err
	})
}

// completeDraft offers what is being written into mounts of this node.
func (a *app) completeDraft(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.offer(cmd, prefix, func(ctx context.Context, c *ckpt.Client) (names []string, _ bool, err error) {
		s, err := c.Status(ctx)
		if err != nil || len(args) > 0 {
			return nil, false, err
		}
		for _, d := range s.Drafts {
			names = append(names, d.Name)
		}
		return names, false, nil
	})
}

// offer asks the daemon for names and gives those that begin with prefix. more:
// what is typed goes on behind the name.
func (a *app) offer(cmd *cobra.Command, prefix string, ask func(context.Context, *ckpt.Client) (names []string, more bool, err error)) ([]string, cobra.ShellCompDirective) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	var out []string
	directive := cobra.ShellCompDirectiveNoFileComp
	err := a.with(ctx, func(c *ckpt.Client) error {
		names, more, err := ask(ctx, c)
		for _, name := range names {
			if strings.HasPrefix(name, prefix) {
				out = append(out, name)
			}
		}
		if more && len(names) > 0 {
			directive |= cobra.ShellCompDirectiveNoSpace
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return out, directive
}
