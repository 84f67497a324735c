package ckptd

import (
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func TestTellCrowded(t *testing.T) {
	for targets, want := range map[string]string{
		"":            "",
		"a b c":       "",
		"a b a":       "2 of its columns are on target a",
		"c a a c c b": "2 of its columns are on target a, 3 of its columns are on target c",
	} {
		if got := tellCrowded(&catalog.Place{Targets: strings.Fields(targets)}); got != want {
			t.Errorf("%q: %q, want %q", targets, got, want)
		}
	}
}
