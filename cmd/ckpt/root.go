package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// app is what every command needs.
type app struct {
	out, err io.Writer
	socket   string
	json     bool
	now      func() time.Time
}

// run is the whole program; it returns the exit code.
func run(ctx context.Context, args []string, out, err io.Writer) int {
	a := &app{out: out, err: err, now: time.Now}
	root := newRoot(a)
	root.SetArgs(args)
	if e := root.ExecuteContext(ctx); e != nil {
		return a.fail(ctx, e)
	}
	return 0
}

func newRoot(a *app) *cobra.Command {
	root := group("ckpt", "Look at checkpoints and act on them",
		newStatusCmd(a), newLsCmd(a), newShowCmd(a), newSaveCmd(a), newCommitCmd(a), newRestoreCmd(a), newVerifyCmd(a), newWhyCmd(a),
		newPruneCmd(a), newRmCmd(a), newPinCmd(a, true), newPinCmd(a, false), newTagCmd(a), newWaitCmd(a), newWatchCmd(a),
		newDiffCmd(a), newExportCmd(a), newImportCmd(a), newPolicyCmd(a), newCatalogCmd(a), newNodeCmd(a), newTargetCmd(a), newRepairCmd(a), newScrubCmd(a), newMountCmd(a), newUnmountCmd(a),
		newDatasetCmd(a),
		newBenchCmd(a), newBenchWorkerCmd(a),
	)
	root.Long = `ckpt looks at checkpoints and acts on them, through the ckptd daemon of this node.

A set is named RUN@STEP, RUN@latest, or RUN@latest:LEVEL (staged, local, replicated,
remote, verified): the newest set at that level or safer.

Exit codes: 0 done, 1 failed, 2 usage, 3 not found, 4 corrupt, 5 no space,
6 conflict or fenced, 7 not yet at the level asked for.`
	root.Version = version
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%v", err) })
	root.PersistentFlags().StringVar(&a.socket, "socket", "", "the daemon's socket (default: CKPTD_SOCKET, then the user's, then /run/ckptd/ckptd.sock)")
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print JSON")
	return root
}

// group is a command that only has others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage("%s has no command %q", c.CommandPath(), args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(subs...)
	return c
}

// args checks the number of arguments; most < 0 is any number.
func args(least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return usage("wrong number of arguments; it is: %s", c.UseLine())
		}
		return nil
	}
}

func usage(format string, args ...any) error {
	return fmt.Errorf("%w: %s", catalog.ErrInvalid, fmt.Sprintf(format, args...))
}

func (a *app) dial(ctx context.Context) (*ckpt.Client, error) { return ckpt.Dial(ctx, a.socket) }

// with runs do with a client.
func (a *app) with(ctx context.Context, do func(c *ckpt.Client) error) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return do(c)
}

// print writes v as JSON when asked to, and otherwise what text writes.
func (a *app) print(v any, text func(w io.Writer)) error {
	if !a.json {
		text(a.out)
		return nil
	}
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// checkRef refuses a reference before anything is asked.
func checkRef(s string) error {
	_, err := catalog.ParseRef(s)
	return err
}
