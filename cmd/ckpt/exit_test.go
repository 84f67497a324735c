package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

func TestEveryClassHasAnExitCodeAndAHint(t *testing.T) {
	want := map[error]int{
		catalog.ErrInvalid: 2, catalog.ErrCorrupt: 4, catalog.ErrNoSpace: 5, catalog.ErrFenced: 6, catalog.ErrConflict: 6,
		catalog.ErrIncomplete: 7, catalog.ErrUnavailable: 1, fs.ErrNotExist: 3, fs.ErrExist: 6, wire.ErrUnauthorized: 1,
	}
	for _, class := range append([]error{wire.ErrUnauthorized}, catalog.Classes...) {
		code, ok := want[class]
		if !ok {
			t.Errorf("%v: this test does not know its exit code", class)
		}
		var errs bytes.Buffer
		a := &app{err: &errs}
		if got := a.fail(t.Context(), fmt.Errorf("show a@1: %w", class)); got != code {
			t.Errorf("%v: exit code %d, want %d", class, got, code)
		}
		if s := errs.String(); !strings.HasPrefix(s, "ckpt: show a@1: ") || !strings.Contains(s, "\nhint: ") {
			t.Errorf("%v prints %q, want a message and a hint", class, s)
		}
		// The same when the error came over the wire.
		if got := a.fail(t.Context(), wire.ErrorOf(class)); got != code {
			t.Errorf("%v over the wire: exit code %d, want %d", class, got, code)
		}
	}
}

func TestTheDaemonsHintComesFirst(t *testing.T) {
	var errs bytes.Buffer
	a := &app{err: &errs}
	a.fail(t.Context(), wire.WithHint(fmt.Errorf("save: %w", catalog.ErrNoSpace), "buy a disk"))
	if want := "ckpt: save: not enough space\nhint: buy a disk\n"; errs.String() != want {
		t.Errorf("got %q, want %q", errs.String(), want)
	}
	errs.Reset()
	if code := a.fail(t.Context(), errors.New("odd")); code != 1 || errs.String() != "ckpt: odd\n" {
		t.Errorf("unknown error: %d, %q", code, errs.String())
	}
	errs.Reset()
	if code := a.fail(t.Context(), errQuiet); code != 1 || errs.Len() != 0 {
		t.Errorf("said already: %d, %q", code, errs.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if code := a.fail(ctx, fmt.Errorf("restore: %w", ctx.Err())); code != 1 || errs.String() != "ckpt: interrupted\n" {
		t.Errorf("Ctrl-C: %d, %q", code, errs.String())
	}
}

func TestUsageErrorsExitWith2(t *testing.T) {
	for _, args := range [][]string{
		{"nope"}, {"ls", "--nope"}, {"ls", "a", "b"}, {"show"}, {"show", "a"}, {"show", "a@x"}, {"catalog", "nope"},
		{"verify"}, {"verify", "a@1", "--all"}, {"tag", "a@1", "x"}, {"wait", "a@1", "--level", "good"},
		{"wait", "a@1", "--timeout", "soon"}, {"save", "a@latest", "f.npz"}, {"save", "a@1", "f.npz", "--metric", "x"},
		{"prune", "a", "--keep-within", "7x"}, {"prune", "a", "--keep-last", "-1"}, {"policy", "a", "get"},
		{"restore", "a@1", "/nope/x", "--only", "["}, {"diff", "a@1", "a"}, {"rm", "a"}, {"pin", "@"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), append([]string{"--socket", "/nope"}, args...), &out, &errs); code != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", args, code, errs.String())
		}
	}
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"--socket", "/nope/sock", "ls"}, &out, &errs); code != 1 || !strings.Contains(errs.String(), "/nope/sock") || !strings.Contains(errs.String(), "ckptd serve") {
		t.Errorf("no daemon: %d %s", code, errs.String())
	}
}

func TestEveryCommandHasHelp(t *testing.T) {
	want := "catalog completion diff help ls node pin policy prune restore rm save show status tag target unpin verify wait watch why"
	root := newRoot(&app{})
	root.InitDefaultCompletionCmd()
	root.InitDefaultHelpCmd()
	have := map[string]bool{}
	for _, c := range root.Commands() {
		have[c.Name()] = true
		if c.Short == "" && !c.Hidden {
			t.Errorf("%s has no help", c.Name())
		}
	}
	for _, name := range strings.Fields(want) {
		if !have[name] {
			t.Errorf("there is no command %s", name)
		}
	}
}
