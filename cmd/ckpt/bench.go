package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/cmd/ckpt/bench"
)

func newBenchCmd(a *app) *cobra.Command {
	var opt bench.Options
	var amount string
	var report bool
	cmd := &cobra.Command{
		Use: "bench [save|restore|drain|fabric|repair|catalog|order|dataset|mount|au|all]", Short: "Measure this machine against the plainest programs that do the same (exit code 1 when a bar is missed)",
		Long: `Measure ckptd on this machine, with a daemon of its own, beside the plainest programs
that do the same work, in turn. Every byte moved is compared. It takes some minutes,
and the disk, the memory and the processors to itself: stop what else is running.`,
		Args: args(0, 1), ValidArgs: []string{"save", "restore", "drain", "fabric", "repair", "catalog", "order", "dataset", "mount", "au", "all"},
		RunE: func(cmd *cobra.Command, names []string) (err error) {
			if len(names) > 0 {
				opt.Suite = names[0]
			}
			if opt.Size, err = parseSize(amount); err != nil {
				return err
			}
			opt.Log = func(line string) { fmt.Fprintln(a.err, line) }
			r, err := bench.Run(cmd.Context(), opt)
			if err != nil {
				return err
			}
			if err := a.print(r, func(w io.Writer) { err = r.Print(w) }); err != nil {
				return err
			}
			if err == nil && !r.OK() && !report {
				return errQuiet
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&amount, "size", "1GiB", "bytes of a checkpoint")
	f.StringVar(&opt.Dir, "dir", "", "directory on the disk to measure (default below the user's cache directory)")
	f.StringVar(&opt.Daemon, "daemon", "", "the ckptd program (default beside this one, then in PATH)")
	f.IntVar(&opt.Pairs, "pairs", 5, "turns of product and yardstick; the median counts")
	f.BoolVar(&opt.Full, "full", false, "drain 10 GiB for daemon.memory, not four times --size")
	f.BoolVar(&report, "report", false, "exit with 0 also when a bar is missed")
	cmd.AddCommand(newBenchModelCmd(a), newBenchCompressCmd(a))
	return cmd
}

func newBenchModelCmd(a *app) *cobra.Command {
	var from, amount string
	cmd := &cobra.Command{
		Use: "model", Short: "What the figures of one node mean for 16,384 ranks and a 405B model", Args: args(0, 0),
		RunE: func(*cobra.Command, []string) (err error) {
			var figures bench.Figures
			if from != "" {
				size, err := parseSize(amount)
				if err != nil {
					return err
				}
				b, err := os.ReadFile(from)
				if err != nil {
					return err
				}
				var r bench.Report
				if err := json.Unmarshal(b, &r); err != nil {
					return usage("--from %s: %v", from, err)
				}
				figures = bench.FiguresOf(&r, size)
			}
			steps := bench.Model(figures)
			if err := a.print(steps, func(w io.Writer) { err = bench.PrintModel(w, steps) }); err != nil {
				return err
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "file with what `ckpt bench --json` printed (default figures of a machine with 2 cores)")
	cmd.Flags().StringVar(&amount, "size", "1GiB", "the --size of that run")
	return cmd
}

func newBenchCompressCmd(a *app) *cobra.Command {
	var opt bench.Options
	cmd := &cobra.Command{
		Use: "compress [FILE...]", Short: "What compression on the way out saves of weights, and what it costs a core",
		Long: `Compresses the given .safetensors files as the drain does with --compress zstd, and plainly
with zstd and S2, in turn, and prints the ratio and the bytes a second of processor time.
Without files it takes the weights of the quickstart and their rounding to BF16.
It needs no daemon. The figures are only reported: no bar can be missed.`,
		Args: args(0, -1), ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"safetensors"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, files []string) error {
			opt.Log = func(line string) { fmt.Fprintln(a.err, line) }
			r, err := bench.Compress(cmd.Context(), files, opt)
			if err != nil {
				return err
			}
			if perr := a.print(r, func(w io.Writer) { err = r.Print(w) }); perr != nil {
				return perr
			}
			return err
		},
	}
	cmd.Flags().IntVar(&opt.Pairs, "pairs", 5, "turns of each; the median counts")
	return cmd
}

// newBenchWorkerCmd is a process that `ckpt bench` starts.
func newBenchWorkerCmd(a *app) *cobra.Command {
	return &cobra.Command{
		Use: bench.WorkerCommand + " ARG", Hidden: true, Args: args(1, 1),
		RunE: func(cmd *cobra.Command, arg []string) error {
			w, err := bench.ParseWorker(arg[0])
			if err != nil {
				return err
			}
			return w.Run(cmd.Context(), os.Stdin, a.out)
		},
	}
}
