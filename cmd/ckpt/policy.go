package main

import (
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

func newPolicyCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "policy RUN [set KEY=VALUE...]", Short: "Replication, layout and retention of a run", Args: args(1, -1),
		Long: `Prints the policy of a run, or changes parts of it:

  layout=4+2          columns and parity of its shards on the remote tier
  unit=1MiB           stripe unit
  compress=zstd|none  compress shards on their way to the remote tier, without loss
  drain=yes|no        keep sets on their nodes only
  verify=yes|no       stop at level remote
  replicas=N          extra nodes that hold each shard
  incomplete=2h       abort a set still being written after this time
  keep-last=N  keep-every=STEPS  keep-within=7d  keep-best=METRIC[:min|max]  keep-level=LEVEL

KEY= gives the node's default back.`,
		ValidArgsFunction: a.completeRun,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 && (args[1] != "set" || len(args) == 2) {
				return usage("it is: %s", cmd.UseLine())
			}
			return a.with(cmd.Context(), func(c *ckpt.Client) error {
				p, err := c.Policy(cmd.Context(), args[0])
				if err != nil {
					return err
				}
				if len(args) > 1 {
					for _, kv := range args[2:] {
						if err := setPolicy(&p, kv); err != nil {
							return err
						}
					}
					if p, err = c.SetPolicy(cmd.Context(), args[0], p); err != nil {
						return err
					}
				}
				return a.print(wire.PolicyRequest{Run: args[0], Policy: p}, func(w io.Writer) { printPolicy(w, p) })
			})
		},
	}
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
