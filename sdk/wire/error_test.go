package wire

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func TestEveryClassHasARow(t *testing.T) {
	for _, class := range append([]error{ErrUnauthorized}, catalog.Classes...) {
		e := ErrorOf(fmt.Errorf("seal a@1: %w: because", class))
		if e.Code == "internal" || e.Status() == http.StatusInternalServerError {
			t.Errorf("%v has no row", class)
		}
		// The class survives the wire, alone.
		far := (&Message{T: "error", Code: e.Code, Text: e.Message}).Err()
		for _, other := range catalog.Classes {
			if got, want := errors.Is(far, other), other == class; got != want {
				t.Errorf("%v over the wire: Is(%v) = %v", class, other, got)
			}
		}
	}
	if got := ErrorOf(errors.New("disk on fire")); got.Code != "internal" || got.Status() != 500 || got.Unwrap() != nil {
		t.Errorf("an unknown error is %+v", got)
	}
	if ErrorOf(nil) != nil {
		t.Error("nil is an error")
	}
}

func TestErrorsKeepTheirHint(t *testing.T) {
	near := fmt.Errorf("save: %w", WithHint(fmt.Errorf("%w: 3 GB short", catalog.ErrNoSpace), "prune %s", "a"))
	m := ErrorMessage(near)
	if m.Hint != "prune a" || m.Code != "no_space" {
		t.Errorf("got %+v", m)
	}
	far := fmt.Errorf("rank 3: %w", m.Err())
	if got := ErrorOf(far); got.Hint != "prune a" || got.Code != "no_space" {
		t.Errorf("second hop: %+v", got)
	}
	if (&Message{T: "sealed", Code: "corrupt"}).Err() != nil {
		t.Error("a message that is no error has one")
	}
}

// TestTheDocumentTellsTheTable compares PROTOCOL.md's error codes with the code's.
func TestTheDocumentTellsTheTable(t *testing.T) {
	doc, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile("(?m)^\\| `([a-z_]+)` \\| ([0-9]{3}) \\|").FindAllStringSubmatch(string(doc), -1)
	told := map[string]string{}
	for _, r := range rows {
		told[r[1]] = r[2]
	}
	if len(told) != len(codes)+1 || told["internal"] != "500" {
		t.Errorf("PROTOCOL.md has %d codes, the code %d and internal", len(told), len(codes))
	}
	for _, c := range codes {
		if got, want := told[c.code], fmt.Sprint(c.status); got != want {
			t.Errorf("%s: PROTOCOL.md says %q, the code %s", c.code, got, want)
		}
	}
}
