package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// exits is the one table from classes to exit codes and to what to do next when
// the daemon did not say. The first class that fits counts.
var exits = []struct {
	class error
	code  int
	hint  string
}{
	{catalog.ErrInvalid, 2, "`ckpt help` lists the commands, and --help after one explains it"},
	{catalog.ErrCorrupt, 4, "`ckpt why REF` tells which copies are good; `ckpt verify REF` checks them all"},
	{catalog.ErrNoSpace, 5, "`ckpt prune RUN --keep-last N --dry-run` shows what can go; `ckpt status` shows the disks"},
	{catalog.ErrFenced, 6, "a newer start of this run is active; this one is out of date and should stop"},
	{catalog.ErrConflict, 6, "`ckpt show REF` tells the state it is in; then try again"},
	{fs.ErrExist, 6, "what exists is never overwritten: choose another name, or remove it first"},
	{catalog.ErrIncomplete, 7, "`ckpt why REF` tells what is missing; `ckpt wait REF --level LEVEL` waits for it"},
	{fs.ErrNotExist, 3, "`ckpt ls` lists the runs, and `ckpt ls RUN` its sets"},
	{wire.ErrUnauthorized, 1, "the daemon serves the user who started it; ask that user, or start your own with `ckptd serve`"},
	{catalog.ErrUnavailable, 1, "is the daemon running? `ckptd serve` starts one; --socket or CKPTD_SOCKET names another"},
}

// errQuiet ends the program with code 1 when everything was said already.
var errQuiet = errors.New("see above")

// fail tells of err and gives the exit code.
func (a *app) fail(ctx context.Context, err error) int {
	if errors.Is(err, errQuiet) {
		return 1
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		fmt.Fprintln(a.err, "ckpt: interrupted")
		return 1
	}
	code, hint := 1, ""
	for _, e := range exits {
		if errors.Is(err, e.class) {
			code, hint = e.code, e.hint
			break
		}
	}
	told := wire.ErrorOf(err)
	if told.Hint != "" {
		hint = told.Hint
	}
	if a.json {
		told.Hint = hint
		_ = a.print(map[string]any{"error": told, "exit": code}, nil)
		return code
	}
	fmt.Fprintf(a.err, "ckpt: %v\n", err)
	if hint != "" {
		fmt.Fprintf(a.err, "hint: %s\n", hint)
	}
	return code
}
