package source

import (
	"fmt"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// cleanPath checks a name from an archive and drops its empty and "." parts.
// "" is the root. What would leave the root is ErrCorrupt.
func cleanPath(name string) (string, error) {
	bad := func(why string) (string, error) {
		return "", fmt.Errorf("name %.200q: %w: %s", name, catalog.ErrCorrupt, why)
	}
	switch {
	case strings.IndexByte(name, 0) >= 0:
		return bad("it holds a zero byte")
	case strings.HasPrefix(name, "/"):
		return bad("it begins at the root of the file system; pack it with relative names (tar -C FOLDER .)")
	}
	var kept []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
			continue
		case part == "..":
			return bad(`it holds ".."; pack it with names below one folder`)
		case len(part) > MaxName:
			return bad(fmt.Sprintf("a part is longer than %d bytes", MaxName))
		}
		kept = append(kept, part)
	}
	clean := strings.Join(kept, "/")
	if len(clean) > MaxPath {
		return bad(fmt.Sprintf("it is longer than %d bytes", MaxPath))
	}
	return clean, nil
}

// stemOf splits a member's path as WebDataset does: all up to the first dot of
// the base name is the sample, what follows names the field. ok is false for a
// name without a dot, or with nothing before it: such a file is in no sample.
func stemOf(path string) (key, field string, ok bool) {
	base := strings.LastIndexByte(path, '/') + 1
	dot := strings.IndexByte(path[base:], '.')
	if dot <= 0 {
		return "", "", false
	}
	return path[:base+dot], path[base+dot+1:], true
}
