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

func runKey(run Run) string                   { return "run." + escape(string(run)) }
func setKey(id SetID) string                  { return "set." + setToken(id) }
func partPrefix(id SetID) string              { return "part." + setToken(id) }
func partKey(id SetID, node string) string    { return partPrefix(id) + "." + escape(node) }
func logKey(id SetID) string                  { return "log." + setToken(id) }
func leasePrefix(id SetID) string             { return "lease." + setToken(id) }
func leaseKey(id SetID, holder string) string { return leasePrefix(id) + "." + escape(holder) }
func nodeKey(node string) string              { return "node." + escape(node) }
func bulkPrefix(d Digest) string              { return "bulk." + d.String() }
func bulkKey(d Digest, chunk int) string      { return fmt.Sprintf("%s.%06d", bulkPrefix(d), chunk) }

const coordKey = "coord"

// CheckNode reports what is wrong with a node's (or lease holder's) name.
func CheckNode(name string) error {
	if name == "" || len(name) > MaxComponentLen {
		return fmt.Errorf("node name %q: %w: want 1 to %d bytes", name, ErrInvalid, MaxComponentLen)
	}
	for _, c := range []byte(name) {
		if !isNameByte(c) {
			return fmt.Errorf("node name %q: %w: use letters, digits, '-', '_' and '.'", name, ErrInvalid)
		}
	}
	return nil
}
