package order

import (
	"errors"
	"math"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func cursors() []Cursor {
	return []Cursor{
		{Dataset: "imagenet@3", Digest: digest(1), Seed: 7, Epoch: 2, At: 512},
		{Dataset: "text/web-2026@999999999999", Digest: digest(2), Seed: math.MaxUint64, Epoch: math.MaxUint64, At: MaxSamples, Mode: Window(MaxSamples, MaxGroup)},
		{Dataset: "a@1", Digest: digest(3), Mode: Window(1, 1)},
	}
}

func TestCursorText(t *testing.T) {
	for _, c := range cursors() {
		got, err := ParseCursor(c.String())
		if err != nil || got != c {
			t.Errorf("ParseCursor(%q) = %+v, %v", c.String(), got, err)
		}
	}
	if got, want := cursors()[0].String(), "imagenet@3;digest=0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f20;seed=7;epoch=2;at=512;mode=global"; got != want {
		t.Errorf("String = %q, want %q", got, want)
	}
}

func TestCursorRefusesHostileText(t *testing.T) {
	good := cursors()[1].String()
	refused := func(s string) {
		t.Helper()
		if c, err := ParseCursor(s); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("ParseCursor(%.300q) = %+v, %v, want ErrInvalid", s, c, err)
		}
	}
	for i := range len(good) - len("16777216") + 1 { // what is shorter still ends in a number
		refused(good[:i])
	}
	for _, r := range [][2]string{
		{"text/", "../"}, {"text/", "/"}, {"@999999999999", "@0"}, {"@999999999999", "@01"}, {"@999999999999", "@latest"}, {"@999999999999", ""},
		{"seed=", "seed=0"}, {"seed=", "seed=+"}, {"seed=", "seed=-"}, {"seed=", "seed= "}, {"seed=", "seed=9"}, {"seed=", "Seed="},
		{"epoch=", "epoch=0x"}, {"at=2", "at=-2"}, {"at=2", "at=9"}, {"mode=window:", "mode=window"}, {"mode=window:", "mode=window:0"},
		{"mode=window:", "mode=global:"}, {"mode=", "mode=;"}, {"digest=02", "digest=0"}, {"digest=02", "digest=0G"}, {"digest=02030405060708090a", "digest=02030405060708090A"},
		{";", ";;"}, {";", "; "}, {";", "\n;"}, {"text", strings.Repeat("x", 2000)}, {"text", "te\x00xt"}, {"text", "te\xffxt"},
	} {
		if s := strings.Replace(good, r[0], r[1], 1); s != good {
			refused(s)
		} else {
			t.Errorf("%q is not in the text", r[0])
		}
	}
	for _, s := range []string{"", ";", good + ";", good + " ", " " + good, good + "\n", strings.ReplaceAll(good, ";", "&"), strings.Repeat(";", 1<<16)} {
		refused(s)
	}
}

func FuzzParseCursor(f *testing.F) {
	for _, c := range cursors() {
		f.Add(c.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		c, err := ParseCursor(s)
		if err != nil {
			if !errors.Is(err, catalog.ErrInvalid) {
				t.Errorf("%v has no class", err)
			}
			return
		}
		if got := c.String(); got != s {
			t.Errorf("%q prints as %q", s, got)
		}
	})
}
