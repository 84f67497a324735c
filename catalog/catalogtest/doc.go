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

import (
	"fmt"

	"github.com/ckptd/ckptd/catalog"
)

// maxKey bounds a key, in bytes.
const maxKey = 1024

// checkKey reports ErrInvalid unless key is one or more legal tokens.
func checkKey(key string) error {
	token := 0
	for i := range len(key) {
		switch c := key[i]; {
		case c == '.' && token > 0:
			token = 0
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '=', c == '/':
			token++
		default:
			return fmt.Errorf("key %q: %w", key, catalog.ErrInvalid)
		}
	}
	if token == 0 || len(key) > maxKey {
		return fmt.Errorf("key %q: %w", key, catalog.ErrInvalid)
	}
	return nil
}

func checkPrefix(prefix string) error {
	if prefix == "" {
		return nil
	}
	return checkKey(prefix)
}

// covers reports whether prefix, a sequence of whole tokens, covers key.
func covers(prefix, key string) bool {
	n := len(prefix)
	return n == 0 || len(key) >= n && key[:n] == prefix && (len(key) == n || key[n] == '.')
}
