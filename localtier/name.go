package localtier

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// Limits of blob names.
const (
	maxComponent = 200 // bytes between slashes: a seal's name adds up to 11, and file systems take 255
	maxDepth     = 16  // components
)

// checkName refuses what could leave the tier's folders or hide in them.
func checkName(name string) error {
	bad := func(why string) error { return fmt.Errorf("blob name %q: %w: %s", name, catalog.ErrInvalid, why) }
	if name == "" || len(name) > catalog.MaxSealName {
		return bad(fmt.Sprintf("want 1 to %d bytes", catalog.MaxSealName))
	}
	parts := strings.Split(name, "/")
	if len(parts) > maxDepth {
		return bad(fmt.Sprintf("more than %d parts", maxDepth))
	}
	for _, p := range parts {
		switch {
		case p == "":
			return bad("it has an empty part")
		case p[0] == '.':
			return bad("a part begins with a dot")
		case len(p) > maxComponent:
			return bad(fmt.Sprintf("a part is longer than %d bytes", maxComponent))
		}
		for _, c := range []byte(p) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.') {
				return bad(fmt.Sprintf("%q is not allowed", c))
			}
		}
	}
	return nil
}

// under reports whether name is prefix or lies in the folder prefix; the empty prefix holds all.
func under(name, prefix string) bool {
	prefix = strings.TrimSuffix(prefix, "/")
	return prefix == "" || name == prefix || len(name) > len(prefix) && name[len(prefix)] == '/' && name[:len(prefix)] == prefix
}

// Folders and files of a disk; see FORMAT.md.
const (
	shardsDir     = "shards"
	stagingDir    = "staging"
	quarantineDir = "quarantine"
	areasDir      = "areas"
	areaFiles     = "files" // in an area
	areaNote      = "AREA"  // in an area
	lockFile      = "LOCK"
	formatFile    = "FORMAT"
	formatText    = "ckptd local tier 1\n"
	tmpSuffix     = ".tmp"
	sealSuffix    = ".seal"
	nextSuffix    = ".seal.next"
)

func (d *disk) data(name string) string {
	return filepath.Join(d.dir, shardsDir, filepath.FromSlash(name))
}

func (d *disk) hidden(name, suffix string) string {
	dir, base := path.Split(name)
	return d.data(dir + "." + base + suffix)
}
func (d *disk) seal(name string) string     { return d.hidden(name, sealSuffix) }
func (d *disk) nextSeal(name string) string { return d.hidden(name, nextSuffix) }
