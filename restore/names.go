package restore

import (
	"cmp"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/ckptd/ckptd/catalog"
)

// maxPatterns bounds Want.Only.
const maxPatterns = 10000

// matcher says which tensors a list of globs means. The syntax is that of
// path.Match, but "*" and "?" match "/" too: tensor names are dotted, and a
// slash in one separates nothing.
type matcher struct {
	given    []string
	patterns []string // with the slashes replaced
	hit      []bool   // by pattern: it matched something
	exact    map[string][]int
}

// noSlash replaces the one byte path.Match treats apart by one no name has.
func noSlash(s string) string { return strings.ReplaceAll(s, "/", "\x00") }

func newMatcher(globs []string) (*matcher, error) {
	if len(globs) > maxPatterns {
		return nil, fmt.Errorf("%d globs: %w: at most %d", len(globs), catalog.ErrInvalid, maxPatterns)
	}
	m := &matcher{given: globs, exact: map[string][]int{}}
	for i, g := range globs {
		if g == "" {
			g = "*"
		}
		m.exact[g] = append(m.exact[g], i) // a name is its own glob, even "w[0]"; thousands of them are one look-up each
		if !strings.ContainsAny(g, `*?[\`) {
			g = ""
		} else if _, err := path.Match(noSlash(g), ""); err != nil {
			return nil, fmt.Errorf("glob %q: %w: %v", g, catalog.ErrInvalid, err)
		}
		m.patterns = append(m.patterns, noSlash(g))
	}
	m.hit = make([]bool, len(globs))
	return m, nil
}

// match reports whether any glob matches the name, and remembers which did.
func (m *matcher) match(name string) bool {
	found := false
	for _, i := range m.exact[name] {
		m.hit[i], found = true, true
	}
	name = noSlash(name)
	for i, p := range m.patterns {
		if p == "" || found && m.hit[i] {
			continue
		}
		if p == "*" {
			m.hit[i], found = true, true
		} else if ok, _ := path.Match(p, name); ok { // the pattern was checked
			m.hit[i], found = true, true
		}
	}
	return found
}

// missing is the error for a glob that matched nothing, or nil. "*" may: a
// set without tensors is whole without any.
func (m *matcher) missing(names []string) error {
	for i, g := range m.given {
		if !m.hit[i] && m.patterns[i] != "*" {
			return notFound(g, names)
		}
	}
	return nil
}

// notFound is fs.ErrNotExist with the names that look most like the one asked for.
func notFound(name string, names []string) error {
	if len(names) == 0 {
		return fmt.Errorf("tensor %q: %w: there are no tensors", name, fs.ErrNotExist)
	}
	near := nearest(name, names)
	if len(near) == 0 {
		return fmt.Errorf("tensor %q: %w: there are %d, such as %s", name, fs.ErrNotExist, len(names), quoted(names[:min(3, len(names))]))
	}
	return fmt.Errorf("tensor %q: %w: did you mean %s?", name, fs.ErrNotExist, quoted(near))
}

func quoted(names []string) string {
	var b strings.Builder
	for i, n := range names {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", n[:min(len(n), 120)])
	}
	return b.String()
}

// Bounds of the search for near names: an error must not cost more than the plan.
const (
	maxNearNames = 20000
	maxNearLen   = 128
)

// nearest gives up to three names, nearest first, none of which differs in
// more than a third of its length.
func nearest(name string, names []string) []string {
	type scored struct {
		name string
		d    int
	}
	plain := strings.Trim(name, "*?")
	if plain == "" {
		return nil
	}
	var best []scored
	for _, n := range names[:min(len(names), maxNearNames)] {
		d := distance(plain, n)
		if d > max(len(plain), len(n))/3 && !strings.Contains(n, plain) && !strings.HasSuffix(plain, n) {
			continue
		}
		best = append(best, scored{n, d})
	}
	slices.SortStableFunc(best, func(a, b scored) int { return cmp.Compare(a.d, b.d) })
	var out []string
	for _, s := range best[:min(3, len(best))] {
		out = append(out, s.name)
	}
	return out
}

// distance is Levenshtein's, over the first maxNearLen bytes.
func distance(a, b string) int {
	a, b = a[:min(len(a), maxNearLen)], b[:min(len(b), maxNearLen)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			d := diag
			if a[i] != b[j] {
				d = min(diag, row[j], row[j+1]) + 1
			}
			diag, row[j+1] = row[j+1], d
		}
	}
	return row[len(b)]
}
