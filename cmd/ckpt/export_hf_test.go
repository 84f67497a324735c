package main

import (
	"reflect"
	"testing"
)

func TestPlanHF(t *testing.T) {
	of := func(sizes ...int64) (out []hfTensor) {
		for _, n := range sizes {
			out = append(out, hfTensor{size: n})
		}
		return out
	}
	for _, c := range []struct {
		sizes []int64
		most  int64
		want  [][]int64
	}{
		{[]int64{3}, 10, [][]int64{{3}}},
		{[]int64{3, 7, 1}, 10, [][]int64{{3, 7}, {1}}},
		{[]int64{30, 1, 30}, 10, [][]int64{{30}, {1}, {30}}}, // a tensor is never cut
		{[]int64{0, 0, 10, 0}, 10, [][]int64{{0, 0, 10, 0}}},
	} {
		var got [][]int64
		for _, file := range planHF(of(c.sizes...), c.most) {
			var sizes []int64
			for _, x := range file {
				sizes = append(sizes, x.size)
			}
			got = append(got, sizes)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("planHF(%v, %d) = %v, want %v", c.sizes, c.most, got, c.want)
		}
	}
	if got, want := hfNames(2), []string{"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}; !reflect.DeepEqual(got, want) {
		t.Errorf("hfNames(2) = %v, want %v", got, want)
	}
}
