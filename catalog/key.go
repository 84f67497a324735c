package catalog

import (
	"fmt"
	"strings"
)

// Keys are tokens joined by dots, so a dot inside a name is written "=2E".
// "=" itself cannot occur in a name.
func escape(name string) string { return strings.ReplaceAll(name, ".", "=2E") }

func setToken(id SetID) string {
	return fmt.Sprintf("%s.%012d-%06d", escape(string(id.Run)), id.Step, id.Attempt)
}

func runKey(run Run) string                { return "run." + escape(string(run)) }
func setKey(id SetID) string               { return "set." + setToken(id) }
func partPrefix(id SetID) string           { return "part." + setToken(id) }
func partKey(id SetID, node string) string { return partPrefix(id) + "." + escape(node) }
func logKey(id SetID) string               { return "log." + setToken(id) }
func nodeLogKey(id SetID, node string) string {
	if node == "" {
		return logKey(id)
	}
	return logKey(id) + "." + escape(node)
}
func leasePrefix(id SetID) string             { return "lease." + setToken(id) }
func leaseKey(id SetID, holder string) string { return leasePrefix(id) + "." + escape(holder) }
func nodeKey(node string) string              { return "node." + escape(node) }
func bulkPrefix(d Digest) string              { return "bulk." + d.String() }
func bulkKey(d Digest, chunk int) string      { return fmt.Sprintf("%s.%06d", bulkPrefix(d), chunk) }

const (
	coordKey           = "coord"
	rebuiltKey         = "rebuilt"
	targetMapKey       = "targets"
	targetStatusPrefix = "target"
	scrubPrefix        = "scrub"
)

// targetStatusKey names a target's status; node is empty for one that all reach.
func targetStatusKey(name, node string) string { return keyOfTarget(targetStatusPrefix, name, node) }

// scrubKey names the record of how far a target's scrub is.
func scrubKey(name, node string) string { return keyOfTarget(scrubPrefix, name, node) }

func keyOfTarget(prefix, name, node string) string {
	key := prefix + "." + targetEscaper.Replace(name)
	if node != "" {
		key += "." + escape(node)
	}
	return key
}

// targetEscaper also hides what a target's name may hold and a key may not.
var targetEscaper = strings.NewReplacer(".", "=2E", ":", "=3A", "@", "=40")

// MaxKey bounds a record's key, in bytes: a run and a node of the longest names,
// every byte a dot, fit. A NATS subject must fit into one protocol line of 4 KiB.
const MaxKey = 2048

// CheckKey reports ErrInvalid unless key is one that a Driver stores: legal
// tokens joined by dots.
func CheckKey(key string) error {
	token := 0
	for i := range len(key) {
		switch c := key[i]; {
		case c == '.' && token > 0:
			token = 0
		case isNameByte(c) && c != '.', c == '=', c == '/':
			token++
		default:
			return fmt.Errorf("key %.80q: %w", key, ErrInvalid)
		}
	}
	if token == 0 || len(key) > MaxKey {
		return fmt.Errorf("key %.80q of %d bytes: %w", key, len(key), ErrInvalid)
	}
	return nil
}

// CheckNode reports what is wrong with a node's name.
func CheckNode(name string) error { return checkName("node", name, MaxComponentLen) }

// CheckTargetName reports what is wrong with the name of a target of the remote tier.
func CheckTargetName(name string) error {
	bad := func(c rune) bool { return c > 0x7f || !isNameByte(byte(c)) && c != ':' && c != '@' && c != '/' }
	if name == "" || len(name) > MaxTargetName || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("target name %.80q: %w: want 1 to %d letters, digits and any of -_.:@/", name, ErrInvalid, MaxTargetName)
	}
	return nil
}

// checkHolder is CheckNode for who holds a lease: a node's name and some more.
func checkHolder(name string) error { return checkName("lease holder", name, 2*MaxComponentLen) }

func checkName(what, name string, most int) error {
	if name == "" || len(name) > most {
		return fmt.Errorf("%s name %.80q: %w: want 1 to %d bytes", what, name, ErrInvalid, most)
	}
	for _, c := range []byte(name) {
		if !isNameByte(c) {
			return fmt.Errorf("%s name %.80q: %w: use letters, digits, '-', '_' and '.'", what, name, ErrInvalid)
		}
	}
	return nil
}
