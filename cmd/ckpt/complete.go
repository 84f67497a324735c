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
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	var out []string
	directive := cobra.ShellCompDirectiveNoFileComp
	err := a.with(ctx, func(c *ckpt.Client) error {
		run, _, hasStep := strings.Cut(prefix, "@")
		if !ref || !hasStep {
			runs, err := c.Runs(ctx)
			for _, r := range runs {
				name := r.Name
				if ref {
					name += "@"
					directive |= cobra.ShellCompDirectiveNoSpace
				}
				if strings.HasPrefix(name, prefix) {
					out = append(out, name)
				}
			}
			return err
		}
		sets, err := c.Sets(ctx, run, false)
		if len(sets) > 0 {
			out = append(out, run+"@latest")
		}
		for _, s := range sets {
			if strings.HasPrefix(s.Ref, prefix) {
				out = append(out, s.Ref)
			}
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return out, directive
}

// completeDraft offers what is being written into mounts of this node.
func (a *app) completeDraft(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	parent := cmd.Context()
	if parent == nil {
		parent = context.Background()
	}
	ctx, cancel := context.WithTimeout(parent, completeTimeout)
	defer cancel()
	var out []string
	err := a.with(ctx, func(c *ckpt.Client) error {
		s, err := c.Status(ctx)
		if err != nil {
			return err
		}
		for _, d := range s.Drafts {
			if len(args) == 0 && strings.HasPrefix(d.Name, prefix) {
				out = append(out, d.Name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
