package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
)

func TestCheckShuffle(t *testing.T) {
	t.Run("JSON", func(t *testing.T) {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"dataset", "check-shuffle", "--samples", "50000", "--seed", "3", "--json"}, &out, &errs); code != 0 {
			t.Fatalf("exit code %d: %s", code, errs.String())
		}
		var got struct {
			Orders []shuffled `json:"orders"`
		}
		if err := json.Unmarshal(out.Bytes(), &got); err != nil {
			t.Fatal(err)
		}
		by := map[string]shuffled{}
		for _, r := range got.Orders {
			by[r.Order] = r
		}
		global, random, buffer, none := by["global"], by["random"], by["buffer of 1,000"], by["not shuffled"]
		if math.Abs(global.Displacement-random.Displacement) > 0.01 || math.Abs(global.Mixing-random.Mixing) > 0.02 {
			t.Errorf("global %+v, random %+v", global, random)
		}
		if buffer.Displacement > 0.05 || none.Displacement != 0 || none.Adjacent != 1 {
			t.Errorf("buffer %+v, not shuffled %+v", buffer, none)
		}
	})
	t.Run("Table", func(t *testing.T) {
		var out, errs bytes.Buffer
		if code := run(t.Context(), []string{"dataset", "check-shuffle", "--samples", "5000", "--slice", "100", "--group", "4"}, &out, &errs); code != 0 || !strings.Contains(out.String(), "window:100:4") {
			t.Errorf("exit code %d: %s%s", code, out.String(), errs.String())
		}
	})
	for _, bad := range [][]string{{}, {"--samples", "0"}, {"--samples", "-1"}, {"--samples", "10", "--group", "0", "--slice", "-1"}, {"--samples", "10", "--batch", "0"}} {
		var out, errs bytes.Buffer
		if got := run(t.Context(), append([]string{"dataset", "check-shuffle"}, bad...), &out, &errs); got != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", bad, got, errs.String())
		}
	}
}
