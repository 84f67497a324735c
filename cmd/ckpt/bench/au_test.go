package bench

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestCompute: within its window an accelerator that gets its batches in time
// is busy always; one that waits as long as it computes, half of the time.
func TestCompute(t *testing.T) {
	for _, tt := range []struct {
		name  string
		every time.Duration // between batches
		want  time.Duration // in a window of 200 ms
	}{
		{"InTime", 5 * time.Millisecond, 200 * time.Millisecond},
		{"JustInTime", 10 * time.Millisecond, 200 * time.Millisecond},
		{"Late", 20 * time.Millisecond, 100 * time.Millisecond},
		{"Never", time.Hour, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ready := make(chan time.Time)
				stop := make(chan struct{})
				defer close(stop)
				from := time.Now().Add(100 * time.Millisecond)
				go func() {
					for {
						select {
						case <-time.After(tt.every):
						case <-stop:
							return
						}
						select {
						case ready <- time.Now():
						case <-stop:
							return
						}
					}
				}()
				if got := compute(t.Context(), 10*time.Millisecond, ready, from, from.Add(200*time.Millisecond)); got != tt.want {
					t.Errorf("busy %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestClimb: the number that is found is the largest that is busy enough, or as
// near below it as is asked for, after few tries.
func TestClimb(t *testing.T) {
	for _, tt := range []struct{ most, least, tries int }{
		{0, 0, 1},
		{1, 1, 2},
		{2, 2, 4},
		{3, 3, 4},
		{15, 15, 8},
		{47, 45, 11},
		{512, 512, 10},
		{9999, 512, 10},
	} {
		c, tries := climb{enough: 0.9}, 0
		for {
			k, more := c.next()
			if !more {
				break
			}
			tries++
			busy := 0.95
			if k > tt.most {
				busy = 0.5
			}
			c.learn(k, busy)
		}
		if c.fed < tt.least || c.fed > tt.most || tries > tt.tries {
			t.Errorf("of at most %d: found %d after %d tries; want %d or more after %d", tt.most, c.fed, tries, tt.least, tt.tries)
		}
	}
}
