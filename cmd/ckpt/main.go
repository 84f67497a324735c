// Command ckpt looks at checkpoints and acts on them, through the ckptd daemon
// of this node.
//
//  1. Everything it prints for people has a twin with --json, with the field
//     names of package wire.
//  2. Its exit code tells what happened: 0 done, 1 failed, 2 usage, 3 not
//     found, 4 corrupt, 5 no space, 6 conflict or fenced, 7 not yet at the level
//     asked for.
//  3. Stopped by Ctrl-C, it leaves things as if it had not run; an export leaves
//     whole files, which are no set without their manifest, to go on from.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

var version = "dev" // set by the linker

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
