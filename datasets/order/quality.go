package order

import (
	"math"
	"math/rand/v2"
)

// Quality says how well a sequence of samples is shuffled, measured over some
// of its positions.
type Quality struct {
	Displacement float64 `json:"displacement"` // mean distance of a sample from its place in the files, as a share of all samples; random: 1/3
	Adjacent     float64 `json:"adjacent"`     // share of neighbours that are neighbours in the files too; random: 2/n
	Slices       float64 `json:"slices"`       // mean number of slices that a batch has samples of; 0: not measured
	Mixing       float64 `json:"mixing"`       // that, as a share of what a random batch has; random: 1
	Measured     int64   `json:"measured"`     // positions looked at
}

// Mix says what a batch is, and a slice, a stretch of the files that is about a
// pack long. The zero value measures no mixing.
type Mix struct {
	Batch, Slice int64 // samples
	Most         int64 // batches to look at, evenly spread; 0: all
}

// Measure looks at the sequence at of n samples.
func Measure(n int64, at func(pos int64) int64, mix Mix) Quality {
	var q Quality
	if n < 2 {
		return q
	}
	batch := mix.Batch
	if batch <= 0 {
		batch = 1 << 16
	}
	batch = min(batch, n)
	batches := n / batch
	if mix.Most > 0 {
		batches = min(batches, mix.Most)
	}
	seen := map[int64]int64{} // slice -> the batch that met it last
	var moved float64
	var near, pairs, met int64
	for b := range batches {
		// The last position of a batch and the first of the next are neighbours only where both are looked at.
		begin := b * (n / batches)
		var last int64
		for i := range batch {
			s := at(begin + i)
			moved += math.Abs(float64(s - (begin + i)))
			if i > 0 {
				pairs++
				if d := s - last; d == 1 || d == -1 {
					near++
				}
			}
			last = s
			if mix.Slice > 0 {
				if before, ok := seen[s/mix.Slice]; !ok || before != b {
					seen[s/mix.Slice] = b
					met++
				}
			}
		}
	}
	q.Measured = batches * batch
	q.Displacement = moved / float64(q.Measured) / float64(n)
	q.Adjacent = float64(near) / float64(max(pairs, 1))
	if mix.Slice > 0 {
		q.Slices = float64(met) / float64(batches)
		q.Mixing = q.Slices / expectedSlices(n, batch, mix.Slice)
	}
	return q
}

// expectedSlices is the mean number of slices in a random batch drawn without
// putting back.
func expectedSlices(n, batch, slice int64) float64 {
	full, rest := n/slice, n%slice
	expected := float64(full) * (1 - missed(n, batch, slice))
	if rest > 0 {
		expected += 1 - missed(n, batch, rest)
	}
	return expected
}

// missed is the chance that a random batch has none of size samples of n:
// C(n-size, batch) / C(n, batch).
func missed(n, batch, size int64) float64 {
	if n-size < batch {
		return 0
	}
	return math.Exp(logFactorial(n-size) + logFactorial(n-batch) - logFactorial(n-size-batch) - logFactorial(n))
}

func logFactorial(n int64) float64 {
	l, _ := math.Lgamma(float64(n) + 1)
	return l
}

// Random is a full random permutation of n samples, by Fisher and Yates: what
// the others are compared with. It needs 8 bytes a sample.
func Random(n int64, r *rand.Rand) []int64 {
	p := make([]int64, n)
	for i := range p {
		p[i] = int64(i)
	}
	r.Shuffle(len(p), func(i, j int) { p[i], p[j] = p[j], p[i] })
	return p
}

// Buffered is the shuffle that loaders do while they read the files from
// beginning to end: a buffer of size samples, of which a random one comes next.
// It needs 8 bytes a sample.
func Buffered(n, size int64, r *rand.Rand) []int64 {
	out := make([]int64, 0, n)
	buffer := make([]int64, 0, min(size, n))
	for next := range n {
		if int64(len(buffer)) < size {
			buffer = append(buffer, next)
			continue
		}
		i := r.IntN(len(buffer))
		out = append(out, buffer[i])
		buffer[i] = next
	}
	r.Shuffle(len(buffer), func(i, j int) { buffer[i], buffer[j] = buffer[j], buffer[i] })
	return append(out, buffer...)
}
