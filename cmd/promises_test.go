package cmd

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

const promises = 13 // of the project's contract

var (
	goTest  = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w*)\(`)
	pyTest  = regexp.MustCompile(`(?m)^\s*(?:async )?def (test_\w+)\(`)
	aTest   = regexp.MustCompile("`((?:Test|Fuzz|test_)\\w+)`")
	promise = regexp.MustCompile(`^\| (\d+) `)
)

// TestEveryPromiseIsAttacked: ARCHITECTURE.md names, for each promise, tests
// that exist.
func TestEveryPromiseIsAttacked(t *testing.T) {
	exist := map[string]bool{}
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != ".." && name[0] == '.' {
			return filepath.SkipDir
		}
		find := goTest
		if strings.HasPrefix(name, "test_") && strings.HasSuffix(name, ".py") {
			find = pyTest
		} else if !strings.HasSuffix(name, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		for _, m := range find.FindAllSubmatch(b, -1) {
			exist[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	doc, err := os.ReadFile("../ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	attacked := map[int]int{}
	for line := range strings.Lines(string(doc)) {
		tests := aTest.FindAllStringSubmatch(line, -1)
		for _, m := range tests {
			if !exist[m[1]] {
				t.Errorf("ARCHITECTURE.md names %s, which does not exist", m[1])
			}
		}
		if m := promise.FindStringSubmatch(line); m != nil {
			n, err := strconv.Atoi(m[1])
			if err != nil {
				t.Fatal(err)
			}
			attacked[n] += len(tests)
		}
	}
	for n := 1; n <= promises; n++ {
		if attacked[n] == 0 {
			t.Errorf("ARCHITECTURE.md names no test that attacks promise %d", n)
		}
	}
}
