// Package cmd holds the programs, each in its folder; here is the test of the
// whole tree's layers. Changing the architecture is changing these tables.
package cmd

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/ckptd/ckptd"

// layers says, for every package of the tree, which others it may import.
// Test files may import anything of the tree.
var layers = map[string][]string{
	"catalog": nil,

	"shardwriter/shardfile": {"catalog"},
	"shardwriter":           {"shardwriter/shardfile", "catalog"},
	"restore":               {"shardwriter/shardfile", "catalog"},
	"localtier/vfs":         {"catalog"},
	"localtier":             {"localtier/vfs", "catalog"},
	"remotetier/stripe":     {"catalog"},
	"remotetier/traffic":    {"catalog"},
	"remotetier":            {"remotetier/stripe", "remotetier/traffic", "catalog"},
	"remotetier/planes":     {"catalog"},
	"remotetier/plain":      {"remotetier", "remotetier/stripe", "catalog"},
	"datasets/tarview":      {"catalog"},
	"datasets/order":        {"catalog"},
	"datasets/pack":         {"catalog"},
	"datasets/index":        {"catalog"},
	"sdk/wire":              {"catalog"},
	"sdk/ckpt":              {"datasets/index", "datasets/order", "sdk/wire", "catalog"},
	"sdk/bundle":            {"sdk/ckpt", "shardwriter/shardfile", "sdk/wire", "catalog"},

	"datasets":        {"datasets/source", "datasets/pack", "datasets/index", "catalog"},
	"datasets/store":  {"datasets", "sdk/ckpt", "sdk/wire", "catalog"},
	"datasets/source": {"shardwriter/shardfile", "catalog"},

	// Drivers: what only a program, or a test, plugs in.
	"remotetier/s3/bucket":    {"catalog"},
	"remotetier/s3":           {"remotetier", "remotetier/plain", "remotetier/s3/bucket", "catalog"},
	"sdk/bundle/objects":      {"sdk/bundle", "remotetier/s3/bucket", "sdk/wire", "catalog"},
	"catalog/natscatalog":     {"catalog"},
	"remotetier/fabric":       {"remotetier/traffic", "catalog"},
	"remotetier/fabric/frame": {"remotetier/fabric", "catalog"},
	"remotetier/fabric/rails": {"remotetier/fabric", "catalog"},
	"remotetier/fabric/ofi":   {"remotetier/fabric/frame", "remotetier/fabric/rails", "remotetier/fabric", "catalog"},
	"remotetier/fabric/tcp":   {"remotetier/fabric/frame", "remotetier/fabric/rails", "remotetier/fabric", "catalog"},
	"remotetier/target":       {"remotetier", "remotetier/stripe", "remotetier/traffic", "remotetier/fabric", "localtier/vfs", "catalog"},
	"fuse":                    {"catalog"},
	"remotetier/posix":        {"remotetier", "remotetier/plain", "localtier/vfs", "catalog"},

	// What a mount shows, over what the daemon has.
	"ckptd/tree": {"fuse", "datasets/index", "datasets/order", "datasets/tarview", "catalog"},

	// The daemon and the programs.
	"ckptd/packs": {"restore", "localtier", "catalog"},
	"ckptd": {
		"ckptd/packs", "datasets/index", "datasets/order", "remotetier/traffic", "restore", "shardwriter", "shardwriter/shardfile", "localtier", "localtier/vfs",
		"remotetier", "remotetier/stripe", "remotetier/planes", "ckptd/tree", "fuse", "sdk/wire", "catalog",
	},
	"cmd/ckptd": {"ckptd", "catalog/natscatalog", "remotetier/posix", "remotetier/s3", "remotetier/s3/bucket", "remotetier/target", "remotetier/fabric", "remotetier/fabric/ofi", "remotetier/fabric/tcp", "localtier", "localtier/vfs", "remotetier", "remotetier/stripe", "remotetier/traffic", "sdk/wire", "catalog"},
	"cmd/ckpt":  {"cmd/ckpt/bench", "datasets", "datasets/source", "datasets/store", "datasets/order", "sdk/ckpt", "sdk/bundle", "sdk/bundle/objects", "remotetier/s3/bucket", "shardwriter/shardfile", "sdk/wire", "catalog"},
	// The yardsticks of a benchmark are the parts that the product is made of.
	"cmd/ckpt/bench": {"datasets", "datasets/source", "datasets/store", "datasets/pack", "datasets/index", "datasets/order", "remotetier", "remotetier/target", "remotetier/fabric", "remotetier/fabric/tcp", "sdk/ckpt", "remotetier/planes", "shardwriter/shardfile", "catalog/natscatalog", "sdk/wire", "catalog"},

	// Helpers of tests: no program may contain them.
	"cmd":                          nil,
	"catalog/catalogtest":          {"catalog"},
	"localtier/vfs/vfstest":        {"localtier/vfs", "catalog"},
	"remotetier/targettest":        {"remotetier", "remotetier/stripe", "catalog"},
	"remotetier/fabric/fabrictest": {"remotetier/fabric", "catalog"},
	"remotetier/s3/s3test":         {"remotetier/s3/bucket"},
}

// testOnly are the packages that no program may contain.
var testOnly = []string{"cmd", "catalog/catalogtest", "localtier/vfs/vfstest", "remotetier/targettest", "remotetier/fabric/fabrictest", "remotetier/s3/s3test"}

// foreign says which packages may import a module of somebody else, by the
// beginning of the import path; nil: every package. The longest beginning counts.
var foreign = map[string][]string{
	"golang.org/x/sys/":                nil,
	"golang.org/x/sync/":               nil,
	"github.com/cloudwego/hertz/":      {"ckptd"},
	"github.com/nats-io/":              {"catalog/natscatalog", "cmd/ckptd", "cmd/ckpt/bench"},
	"github.com/klauspost/reedsolomon": {"remotetier", "cmd/ckpt/bench"},
	"github.com/klauspost/compress/":   {"ckptd", "remotetier/planes", "datasets/source", "cmd/ckpt/bench"},
	"github.com/minio/minio-go/v7":     {"remotetier/s3/bucket", "remotetier/s3/s3test"},
	"github.com/zeebo/blake3":          {"datasets/pack", "datasets/index", "datasets/order", "remotetier", "cmd/ckpt/bench", "cmd/ckptd"},
	"github.com/hanwen/go-fuse/v2/":    {"fuse"},
	"github.com/spf13/cobra":           {"cmd/ckpt", "cmd/ckptd", "cmd/ckpt/bench"},
	"github.com/spf13/pflag":           {"cmd/ckpt", "cmd/ckptd"},
	"github.com/BurntSushi/toml":       {"cmd/ckptd"},
}

// drawers are names of packages that end up holding everything.
var drawers = []string{"util", "utils", "common", "misc", "helper", "helpers", "shared", "base", "lib"}

// source is one Go file of the tree.
type source struct {
	pkg     string // its folder, "/"-separated, from the root of the tree
	file    string // its path from the root of the tree
	test    bool
	imports []string
	doc     string // the package comment, if it has one
	name    string // of its package
}

// tree parses every Go file of the repository. It reads the files in this
// process, so that the test cache knows that the result depends on them.
func tree(t *testing.T) []source {
	t.Helper()
	var sources []source
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); p != ".." && (n[0] == '.' || n[0] == '_') || n == "testdata" || n == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(p) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), p, nil, parser.ImportsOnly|parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel("..", p)
		if err != nil {
			return err
		}
		file := filepath.ToSlash(rel)
		sources = append(sources, source{
			pkg: path.Dir(file), file: file, test: strings.HasSuffix(file, "_test.go"),
			imports: importsOf(f), doc: f.Doc.Text(), name: f.Name.Name,
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(sources) < 20 {
		t.Fatalf("found only %d Go files: is this the root of the tree?", len(sources))
	}
	return sources
}

func importsOf(f *ast.File) []string {
	var imports []string
	for _, spec := range f.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			imports = append(imports, p)
		}
	}
	return imports
}

func TestLayers(t *testing.T) {
	sources := tree(t)
	t.Run("EveryPackageHasARow", func(t *testing.T) {
		found := map[string]bool{}
		for _, s := range sources {
			found[s.pkg] = true
		}
		for pkg := range found {
			if _, ok := layers[pkg]; !ok {
				t.Errorf("package %s is not in the table: say in cmd/arch_test.go what it may import", pkg)
			}
		}
		for pkg := range layers {
			if !found[pkg] {
				t.Errorf("the table has a row for %s, which does not exist", pkg)
			}
		}
	})
	t.Run("ImportsWithinTheTree", func(t *testing.T) {
		for _, s := range sources {
			for _, imp := range s.imports {
				own, ok := strings.CutPrefix(imp, module+"/")
				if !ok || s.test {
					continue
				}
				if !slices.Contains(layers[s.pkg], own) {
					t.Errorf("%s imports %s; package %s may import %v", s.file, own, s.pkg, layers[s.pkg])
				}
				if slices.Contains(testOnly, own) && !slices.Contains(testOnly, s.pkg) {
					t.Errorf("%s imports %s, which is for tests", s.file, own)
				}
			}
		}
	})
	t.Run("ForeignImports", func(t *testing.T) {
		for _, s := range sources {
			for _, imp := range s.imports {
				host, _, _ := strings.Cut(imp, "/")
				if !strings.Contains(host, ".") || imp == module || strings.HasPrefix(imp, module+"/") {
					continue // the standard library, or ours
				}
				if users, ok := usersOf(imp); !ok {
					t.Errorf("%s imports %s: a new dependency is a decision; add it to the table and to README.md", s.file, imp)
				} else if users != nil && !slices.Contains(users, s.pkg) {
					t.Errorf("%s imports %s, which is for %v", s.file, imp, users)
				}
			}
		}
	})
	t.Run("NoDrawers", func(t *testing.T) {
		for _, s := range sources {
			for part := range strings.SplitSeq(s.pkg, "/") {
				if slices.Contains(drawers, part) {
					t.Errorf("%s lies in a package named %q: helpers live beside their user", s.file, part)
				}
			}
		}
	})
	t.Run("EveryPackageHasADoc", func(t *testing.T) {
		docs := map[string]string{} // package -> its package comments
		for _, s := range sources {
			if s.test && s.pkg != "cmd" {
				continue
			}
			docs[s.pkg] += s.doc
			want := "Package " + s.name + " "
			if s.name == "main" {
				want = "Command " + path.Base(s.pkg) + " "
			}
			if s.doc != "" && !strings.HasPrefix(s.doc, want) {
				t.Errorf("%s: the package comment does not begin with %q", s.file, want)
			}
		}
		for _, pkg := range slices.Sorted(maps.Keys(docs)) {
			if docs[pkg] == "" {
				t.Errorf("package %s has no doc comment", pkg)
			}
		}
	})
}

// TestEveryDependencyIsExplained: a dependency is a decision, one line in
// go.mod and one in README.md, and it goes when nobody imports it any more.
func TestEveryDependencyIsExplained(t *testing.T) {
	imported := func(mod string) bool {
		for _, s := range tree(t) {
			for _, imp := range s.imports {
				if imp == mod || strings.HasPrefix(imp, mod+"/") {
					return true
				}
			}
		}
		return false
	}
	gomod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(gomod)) {
		fields := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") || len(fields) < 2 || strings.Contains(line, "// indirect") {
			continue
		}
		mod := fields[0]
		if !imported(mod) {
			t.Errorf("nothing imports %s, but go.mod asks for it: run go mod tidy", mod)
			continue
		}
		name := path.Base(mod)
		if len(name) == 2 && name[0] == 'v' {
			name = path.Base(path.Dir(mod)) // a major version is not a name
		}
		if !strings.Contains(string(readme), name) {
			t.Errorf("README.md does not say what %s is for", mod)
		}
	}
}

// usersOf gives the packages that may import imp, by the longest row that fits.
func usersOf(imp string) (users []string, ok bool) {
	best := ""
	for prefix, u := range foreign {
		fits := imp == prefix || strings.HasPrefix(imp, strings.TrimSuffix(prefix, "/")+"/")
		if fits && len(prefix) > len(best) {
			best, users, ok = prefix, u, true
		}
	}
	return users, ok
}

// TestLayersHaveNoCycles holds the table itself: a layer never needs what stands on it.
func TestLayersHaveNoCycles(t *testing.T) {
	var visit func(pkg string, trail []string)
	done := map[string]bool{}
	visit = func(pkg string, trail []string) {
		if slices.Contains(trail, pkg) {
			t.Fatalf("cycle: %v -> %s", trail, pkg)
		}
		if done[pkg] {
			return
		}
		for _, next := range layers[pkg] {
			if _, ok := layers[next]; !ok {
				t.Errorf("the row of %s names %s, which has no row", pkg, next)
			}
			visit(next, append(slices.Clone(trail), pkg))
		}
		done[pkg] = true
	}
	for pkg := range layers {
		visit(pkg, nil)
	}
}
