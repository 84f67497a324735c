package plain

import (
	"fmt"
	"path"
	"strings"

	"github.com/ckptd/ckptd/remotetier"
)

// Kind says what a hidden name stands for.
type Kind string

// The kinds, by how their names end.
const (
	SidecarKind Kind = ".ckpt"  // the sidecar of a column whose data lies apart
	WholeKind   Kind = ".col"   // a column as one file
	DataKind    Kind = ".data"  // the data of a column that does not have the blob's name
	ClaimKind   Kind = ".plain" // whose data has the blob's name
)

// Split cuts a blob's name into its folder ("" for none) and its last part.
func Split(blob string) (folder, base string) {
	folder, base = path.Split(blob)
	return strings.TrimSuffix(folder, "/"), base
}

// Join is the opposite of Split, for any last part.
func Join(folder, base string) string {
	if folder == "" {
		return base
	}
	return folder + "/" + base
}

func columnName(key remotetier.Key) string {
	_, base := Split(key.Blob)
	return "." + base + "." + strings.TrimSuffix(key.File(), string(WholeKind))
}

// SidecarName is the last part of a sidecar's name.
func SidecarName(key remotetier.Key) string { return columnName(key) + string(SidecarKind) }

// WholeName is the last part of the name of a column kept whole.
func WholeName(key remotetier.Key) string { return columnName(key) + string(WholeKind) }

// DataName is the last part of the name of a column's data while the blob's
// own name is not free. It tells one writing of the column from another.
func DataName(key remotetier.Key, unique uint32) string {
	return fmt.Sprintf("%s.%08x%s", columnName(key), unique, DataKind)
}

// ClaimName is the last part of the name of the file that says whose data has
// the blob's name.
func ClaimName(base string) string { return "." + base + string(ClaimKind) }

// Parse reads the last part of a name: the column it belongs to, in a blob of
// that last part, and what it is. A claim has no generation and no column.
func Parse(name string) (key remotetier.Key, kind Kind, ok bool) {
	rest, ok := strings.CutPrefix(name, ".")
	if !ok {
		return key, "", false
	}
	kind = Kind(path.Ext(rest))
	rest = strings.TrimSuffix(rest, string(kind))
	switch kind {
	case ClaimKind:
		key.Blob = rest
		return key, kind, !strings.Contains(rest, "/") && remotetier.CheckBlob(rest) == nil
	case DataKind:
		i := len(rest) - 9
		if i < 0 || rest[i] != '.' || strings.Trim(rest[i+1:], "0123456789abcdef") != "" {
			return key, "", false
		}
		rest = rest[:i]
	case SidecarKind, WholeKind:
	default:
		return key, "", false
	}
	i := len(rest) - 22 // ".g<16>.c<2>"
	if i < 1 || rest[i] != '.' || strings.Contains(rest, "/") {
		return key, "", false
	}
	key, err := remotetier.ParseKey(rest[:i] + "/" + rest[i+1:] + string(WholeKind))
	return key, kind, err == nil
}
