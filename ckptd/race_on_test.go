//go:build race

package ckptd

// thin is how many crash points stand for one under the race detector, which
// makes each of them about ten times as slow.
const thin = 5
