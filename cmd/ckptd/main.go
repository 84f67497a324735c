// Command ckptd runs the node daemon, and targets of the remote tier.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/ckptd/ckptd/catalog"
)

// version is set by the linker.
var version = "dev"

func main() {
	// A write that bypasses the page cache holds its processor slot of the Go
	// scheduler until the disk has answered. On a small machine, or a small CPU
	// quota, a few of them would keep sessions waiting.
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(8, runtime.GOMAXPROCS(0)))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use: "ckptd", Short: "Keep the checkpoints of large training jobs",
		SilenceUsage: true, SilenceErrors: true, Version: version,
	}
	root.AddCommand(newServe(), newTarget())
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %v", catalog.ErrInvalid, err) })
	if err := root.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "ckptd:", err)
		switch {
		case errors.Is(err, catalog.ErrInvalid):
			os.Exit(2)
		case errors.Is(err, catalog.ErrNoSpace):
			os.Exit(5)
		case errors.Is(err, catalog.ErrConflict):
			os.Exit(6)
		}
		os.Exit(1)
	}
}
