package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// policyKeys are the parts of a policy: each is KEY=VALUE and --KEY VALUE.
var policyKeys = []struct{ key, value, help string }{
	{"layout", "K+M", "columns and parity of its shards on the remote tier, as 4+2"},
	{"unit", "SIZE", "stripe unit, as 1MiB"},
	{"remote", "POOL", "pool of targets that new shards go to: a group of stripe targets, or a posix or s3 engine"},
	{"compress", "zstd|none", "compress shards on their way to the remote tier, without loss"},
	{"drain", "yes|no", "no: keep sets on their nodes only"},
	{"verify", "yes|no", "no: stop at level remote"},
	{"replicas", "N", "extra nodes that hold each shard"},
	{"incomplete", "TIME", "abort a set still being written after this time, as 2h"},
	{"keep-last", "N", "keep this many newest sets"},
	{"keep-every", "STEPS", "keep sets whose step is divisible by this"},
	{"keep-within", "TIME", "keep sets committed less than this long ago, as 7d"},
	{"keep-best", "METRIC[:min|max]", "keep the best set by a metric"},
	{"keep-level", "LEVEL", "only sets at this level or safer count for keep-last"},
}

func newPolicyCmd(a *app) *cobra.Command {
	var help strings.Builder
	for _, k := range policyKeys {
		fmt.Fprintf(&help, "  %-28s %s\n", k.key+"="+k.value, k.help)
	}
	cmd := &cobra.Command{
		Use: "policy RUN [set KEY=VALUE... | set --KEY VALUE...]", Short: "Replication, layout and retention of a run", Args: args(1, -1),
		Long:              "Prints the policy of a run, or changes parts of it:\n\n" + help.String() + "\nKEY= gives the node's default back.",
		ValidArgsFunction: a.completePolicy,
		RunE: func(cmd *cobra.Command, args []string) error {
			changes := policyChanges(cmd, args)
			switch {
			case len(args) > 1 && (args[1] != "set" || len(changes) == 0), len(args) == 1 && len(changes) > 0:
				return usage("it is: %s", cmd.UseLine())
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p, err := c.Policy(cmd.Context(), args[0])
				if len(changes) > 0 && errors.Is(err, fs.ErrNotExist) { // a run may have a policy before its first launch
					p, err = catalog.Policy{}, nil
				}
				if err != nil {
					return err
				}
				for _, kv := range changes {
					if err := setPolicy(&p, kv); err != nil {
						return err
					}
				}
				if len(changes) > 0 {
					if p, err = c.SetPolicy(cmd.Context(), args[0], p); err != nil {
						return err
					}
				}
				return a.print(wire.PolicyRequest{Run: args[0], Policy: p}, func(w io.Writer) { printPolicy(w, p) })
			})
		},
	}
	for _, k := range policyKeys {
		cmd.Flags().String(k.key, "", "`"+k.value+"`: "+k.help)
	}
	return cmd
}

// policyChanges gives what is to be set as KEY=VALUE, from both ways to say it.
func policyChanges(cmd *cobra.Command, args []string) (changes []string) {
	changes = append(changes, args[min(len(args), 2):]...)
	for _, k := range policyKeys {
		if f := cmd.Flags().Lookup(k.key); f.Changed {
			changes = append(changes, k.key+"="+f.Value.String())
		}
	}
	return changes
}

// completePolicy offers runs, then set, then the keys.
func (a *app) completePolicy(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	var words []string
	switch {
	case len(args) == 0:
		return a.completeRun(cmd, args, prefix)
	case len(args) == 1:
		return []string{"set"}, cobra.ShellCompDirectiveNoFileComp
	case args[1] == "set":
		for _, k := range policyKeys {
			if word := k.key + "="; strings.HasPrefix(word, prefix) {
				words = append(words, word)
			}
		}
	}
	return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// setPolicy changes one field.
func setPolicy(p *catalog.Policy, kv string) (err error) {
	key, v, ok := strings.Cut(kv, "=")
	if !ok {
		return usage("%q; want KEY=VALUE", kv)
	}
	number := func() (n int64) {
		if v == "" {
			return 0
		}
		var perr error
		if n, perr = strconv.ParseInt(v, 10, 64); perr != nil || n < 0 {
			err = usage("%s=%q; want a number", key, v)
		}
		return n
	}
	duration := func() (d time.Duration) {
		if v != "" {
			d, err = parseSpan(v)
		}
		return d
	}
	no := func() bool {
		switch v {
		case "yes", "":
			return false
		case "no":
			return true
		}
		err = usage("%s=%q; want yes or no", key, v)
		return false
	}
	switch key {
	case "layout":
		p.Layout = v
	case "unit":
		p.Unit = 0
		if v != "" {
			p.Unit, err = parseSize(v)
		}
	case "remote":
		p.Remote = v
	case "compress":
		p.Compress = v
	case "drain":
		p.NoDrain = no()
	case "verify":
		p.NoVerify = no()
	case "replicas":
		p.Replicas = int(number())
	case "incomplete":
		p.Incomplete = duration()
	case "keep-last":
		p.Retention.KeepLast = int(number())
	case "keep-every":
		p.Retention.KeepEvery = number()
	case "keep-within":
		p.Retention.KeepWithin = duration()
	case "keep-best":
		p.Retention.KeepBest = v
	case "keep-level":
		p.Retention.KeepLevel = catalog.LevelNone
		if v != "" {
			p.Retention.KeepLevel, err = catalog.ParseLevel(v)
		}
	default:
		return usage("a policy has no %q", key)
	}
	return err
}

// parseSize reads bytes: 4096, 512KiB, 1MiB, 2GiB.
func parseSize(s string) (int64, error) {
	unit := int64(1)
	digits := s
	for suffix, u := range map[string]int64{"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30} {
		if d, ok := strings.CutSuffix(s, suffix); ok {
			digits, unit = strings.TrimSpace(d), u
		}
	}
	n, err := strconv.ParseInt(digits, 10, 32)
	if err != nil || n < 0 {
		return 0, usage("size %q; want one like 65536, 512KiB or 1MiB", s)
	}
	return n * unit, nil
}

func printPolicy(w io.Writer, p catalog.Policy) {
	const def = "(the node's default)"
	or0 := func(set bool, v any) any {
		if !set {
			return def
		}
		return v
	}
	table(w, func(row func(...any)) {
		row("layout", or(p.Layout, def))
		row("unit", or0(p.Unit > 0, size(p.Unit)))
		row("remote", or(p.Remote, "(the default pool)"))
		row("compress", or(p.Compress, def))
		row("drain", yesNo(!p.NoDrain))
		row("verify", yesNo(!p.NoVerify))
		row("replicas", p.Replicas)
		row("incomplete", or0(p.Incomplete > 0, span(p.Incomplete)))
		r := p.Retention
		if r == (catalog.Retention{}) {
			row("retention", "keeps everything")
			return
		}
		if r.KeepLast > 0 {
			row("keep-last", r.KeepLast)
		}
		if r.KeepEvery > 0 {
			row("keep-every", r.KeepEvery)
		}
		if r.KeepWithin > 0 {
			row("keep-within", span(r.KeepWithin))
		}
		if r.KeepBest != "" {
			row("keep-best", r.KeepBest)
		}
		if r.KeepLevel != catalog.LevelNone {
			row("keep-level", r.KeepLevel)
		}
	})
}
