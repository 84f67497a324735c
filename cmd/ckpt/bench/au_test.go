package bench

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestCompute: an accelerator that gets its batches in time is busy always; one
// that waits as long as it computes, half of the time.
func TestCompute(t *testing.T) {
	for _, tt := range []struct {
		name  string
		every time.Duration // between batches
		want  time.Duration // for 10 steps of 10 ms
	}{
		{"InTime", 5 * time.Millisecond, 100 * time.Millisecond},
		{"JustInTime", 10 * time.Millisecond, 100 * time.Millisecond},
		{"Late", 20 * time.Millisecond, 190 * time.Millisecond},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ready := make(chan time.Time)
				go func() {
					for range 10 {
						time.Sleep(tt.every)
						ready <- time.Now()
					}
				}()
				got, err := compute(t.Context(), 10*time.Millisecond, 10, ready)
				if err != nil || got != tt.want {
					t.Errorf("10 steps took %v, %v, want %v", got, err, tt.want)
				}
			})
		})
	}
}
