package catalog

import (
	"fmt"
	"strings"
)

// Level says how safe a set is. Levels are ordered: each includes those below.
type Level uint8

const (
	LevelNone  Level = iota // nothing is promised
	Staged                  // in the arena of a daemon: survives the trainer and a restart of the daemon
	Local                   // on its node's disks, committed: survives power loss
	Replicated              // on another node too: survives the loss of a node
	Remote                  // coded over the remote targets: survives all compute nodes and m targets
	Verified                // the remote copy was read back and its BLAKE3 matched
)

var levelNames = [...]string{"none", "staged", "local", "replicated", "remote", "verified"}

func (l Level) String() string {
	if int(l) < len(levelNames) {
		return levelNames[l]
	}
	return fmt.Sprintf("Level(%d)", uint8(l))
}

// ParseLevel reads the name of a level.
func ParseLevel(s string) (Level, error) {
	for i, name := range levelNames {
		if s == name {
			return Level(i), nil
		}
	}
	return 0, fmt.Errorf("level %.80q: %w: want one of %s", s, ErrInvalid, strings.Join(levelNames[1:], ", "))
}

func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

func (l *Level) UnmarshalText(b []byte) error {
	v, err := ParseLevel(string(b))
	if err == nil {
		*l = v
	}
	return err
}
