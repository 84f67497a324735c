//go:build !race

package ckptd

const thin = 1 // every crash point
