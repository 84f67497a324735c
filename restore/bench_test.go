package restore

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// bigManifest is a model of so many tensors cut by rows over so many ranks,
// one tensor in ten replicated: what FSDP saves. Its slices are shared, as far
// as a parsed manifest's are not, to keep the benchmark itself small.
func bigManifest(ranks, tensors int) *catalog.Manifest {
	names := make([]string, tensors)
	for i := range names {
		names[i] = fmt.Sprintf("model.layers.%d.mlp.experts.%d.down_proj.weight", i/64, i%64)
	}
	rows := int64(8)
	global, shape, vector := []int64{rows * int64(ranks), 1024}, []int64{rows, 1024}, []int64{1024}
	m := &catalog.Manifest{Version: 1, Set: catalog.SetID{Run: "big", Step: 1, Attempt: 1}, World: ranks}
	for r := range ranks {
		start := []int64{int64(r) * rows, 0}
		s := catalog.Shard{Rank: r, Size: 4096, Header: 4096, Tensors: make([]catalog.Tensor, tensors)}
		for i := range s.Tensors {
			t := &s.Tensors[i]
			if *t = (catalog.Tensor{Name: names[i], DType: "BF16", Shape: shape, Global: global, Start: start, Offset: s.Size, Size: 2 * rows * 1024}); i%10 == 0 {
				t.Shape, t.Global, t.Start, t.Size = vector, nil, nil, 2048
			}
			s.Size += t.Size
		}
		m.Shards = append(m.Shards, s)
	}
	return m
}

func benchPlan(b *testing.B, m *catalog.Manifest, want Want) {
	b.Helper()
	b.ReportAllocs()
	var p *Plan
	for b.Loop() {
		var err error
		if p, err = NewPlan(m, want); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(p.Reads)), "reads")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	reads := len(p.Reads)
	p = nil
	runtime.GC()
	runtime.ReadMemStats(&after)
	if reads > 0 {
		b.ReportMetric(float64(before.HeapAlloc-after.HeapAlloc)/(1<<20), "MiB-kept")
		runtime.KeepAlive(m)
	}
}

// A rank of a new world of 384 takes its box of each of 10,000 tensors out of
// what 512 ranks saved: 5,120,000 entries in the manifest.
func BenchmarkReshardOneRank(b *testing.B) {
	const ranks, tensors = 512, 10_000
	m := bigManifest(ranks, tensors)
	var want Want
	total := m.Shards[0].Tensors[1].Global[0]
	const world = 384
	for i, t := range m.Shards[0].Tensors {
		if t.Global == nil {
			want.Pieces = append(want.Pieces, Piece{Name: t.Name})
		} else {
			from, to := total*int64(i%world)/world, total*int64(i%world+1)/world
			want.Pieces = append(want.Pieces, Piece{Name: t.Name, Start: []int64{from, 0}, Shape: []int64{to - from, 1024}})
		}
	}
	benchPlan(b, m, want)
}

// The same rank of the same world, and everything whole.
func BenchmarkSameRank(b *testing.B) { benchPlan(b, bigManifest(512, 10_000), Want{Ranks: []int{17}}) }
func BenchmarkWhole(b *testing.B)    { benchPlan(b, bigManifest(512, 10_000), Want{}) }

func BenchmarkRanges(b *testing.B) {
	p, err := NewPlan(bigManifest(8, 10_000), Want{})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		for _, rank := range p.Ranks() {
			p.Ranges(rank)
		}
	}
}

// Columns out of rows, in runs of 256 bytes, against a plain copy.
func BenchmarkScatter(b *testing.B) {
	const rows, cols = 8192, 4096
	m := &catalog.Manifest{World: 1, Shards: []catalog.Shard{{Size: 4096 + rows*cols, Header: 4096, Tensors: []catalog.Tensor{
		{Name: "w", DType: "U8", Shape: []int64{rows, cols}, Offset: 4096, Size: rows * cols},
	}}}}
	for _, width := range []int64{256, cols / 2, cols} {
		b.Run(fmt.Sprint("run=", width), func(b *testing.B) {
			var want Want
			for c := int64(0); c < cols; c += width {
				want.Pieces = append(want.Pieces, Piece{"w", []int64{0, c}, []int64{rows, width}})
			}
			p, err := NewPlan(m, want)
			if err != nil {
				b.Fatal(err)
			}
			w, err := p.Scatter(0, buffers(p))
			if err != nil {
				b.Fatal(err)
			}
			src := make([]byte, 1<<20)
			b.SetBytes(rows * cols)
			for b.Loop() {
				for off := int64(0); off < 4096+rows*cols; off += 1 << 20 {
					if _, err := w.WriteAt(src[:min(1<<20, 4096+rows*cols-off)], off); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
