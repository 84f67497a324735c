// Package catalogtest checks a catalog.Driver, and has one in memory that can
// be made to fail.
//
//  1. Run holds a driver to every sentence of catalog.Driver's contract. It
//     runs against MemDriver, an embedded NATS server and a NATS cluster.
//  2. A MemDriver is a correct driver: it passes Run, starts no goroutine and
//     no timer, and Clone copies it at one instant.
//  3. A Fault fails operations before or after they took effect, cuts the
//     store off and heals it, and otherwise changes nothing.
package catalogtest

import "github.com/ckptd/ckptd/catalog"

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return catalog.CheckKey(prefix)
}

// covers reports whether prefix, a sequence of whole tokens, covers key.
func covers(prefix, key string) bool {
	n := len(prefix)
	return n == 0 || len(key) >= n && key[:n] == prefix && (len(key) == n || key[n] == '.')
}
