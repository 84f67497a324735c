package ckptd

import (
	"slices"
	"testing"
)

func TestNextPacks(t *testing.T) {
	for _, c := range []struct {
		last, pack, ahead, packs int
		want                     []int
	}{
		{-1, 0, 2, 9, []int{1, 2}},
		{0, 1, 2, 9, []int{2, 3}},
		{0, 2, 2, 9, []int{3, 4}}, // one was left out
		{0, 3, 2, 9, nil},         // a jump
		{5, 4, 2, 9, nil},         // back
		{4, 4, 2, 9, nil},         // again
		{6, 7, 4, 9, []int{8}},
		{7, 8, 4, 9, nil},
		{0, 1, 0, 9, nil},
	} {
		if got := nextPacks(c.last, c.pack, c.ahead, c.packs); !slices.Equal(got, c.want) {
			t.Errorf("nextPacks(%d, %d, %d, %d) = %v, want %v", c.last, c.pack, c.ahead, c.packs, got, c.want)
		}
	}
}
