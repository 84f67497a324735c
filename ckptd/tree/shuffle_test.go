package tree

import (
	"testing"

	"github.com/ckptd/ckptd/datasets/tarview"
)

func TestParseShuffle(t *testing.T) {
	for p, want := range map[string]shuffled{
		"7":                          {seed: 7},
		"7/0":                        {seed: 7},
		"7/3/2-of-8.tar":             {seed: 7, epoch: 3, share: tarview.Share{Rank: 2, World: 8}, tar: true},
		"7/3/00002-of-00008.tar":     {seed: 7, epoch: 3, share: tarview.Share{Rank: 2, World: 8}, tar: true},
		"7/3/from-100":               {seed: 7, epoch: 3, share: tarview.Share{At: 100}},
		"7/3/from-100/0-of-1.tar":    {seed: 7, epoch: 3, share: tarview.Share{At: 100, World: 1}, tar: true},
		"7/3/window":                 {seed: 7, epoch: 3, window: true},
		"7/3/window-50-4/from-9":     {seed: 7, epoch: 3, window: true, slice: 50, group: 4, share: tarview.Share{At: 9}},
		"7/3/window-50-4/0-of-2.tar": {seed: 7, epoch: 3, window: true, slice: 50, group: 4, share: tarview.Share{World: 2}, tar: true},
		"18446744073709551615/1":     {seed: 1<<64 - 1, epoch: 1},
	} {
		if got, err := parseShuffle(p); err != nil || got != want {
			t.Errorf("%s = %+v, %v; want %+v", p, got, err, want)
		}
	}
	for _, p := range []string{
		"", "x", "-1", "+1", "01", "1/x", "1/01", "1/2/3", "1/2/0-of-0.tar", "1/2/1-of-1.tar", "1/2/0-of-1", "1/2/0-of-1.tar/x",
		"1/2/from-", "1/2/from-x", "1/2/from-1/window", "1/2/window-", "1/2/window-0-1", "1/2/window-5", "1/2/window-x-y", "1/2/windows",
		"1/2/0-of-99999999999.tar", "1/2/0-of-2000000.tar", "18446744073709551616", "1/2/0-of-1.tar.gz",
	} {
		if got, err := parseShuffle(p); err == nil {
			t.Errorf("%q = %+v, want an error", p, got)
		}
	}
}
