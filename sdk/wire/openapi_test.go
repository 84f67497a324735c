package wire

import (
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

// TestOpenAPIHasThePathsOfTheDocument compares openapi.yaml with PROTOCOL.md.
func TestOpenAPIHasThePathsOfTheDocument(t *testing.T) {
	told, listed := documentPaths(t), openAPIPaths(t)
	if len(told) < 20 {
		t.Fatalf("only %d paths found in PROTOCOL.md", len(told))
	}
	slices.Sort(told)
	slices.Sort(listed)
	if !slices.Equal(told, listed) {
		t.Errorf("PROTOCOL.md:\n%s\nopenapi.yaml:\n%s", strings.Join(told, "\n"), strings.Join(listed, "\n"))
	}
}

// documentPaths reads the rows of PROTOCOL.md's HTTP table, as "GET /path".
func documentPaths(t *testing.T) []string {
	doc, err := os.ReadFile("PROTOCOL.md")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	path := regexp.MustCompile("/[a-z0-9/]+")
	method := regexp.MustCompile("GET|POST")
	for _, line := range strings.Split(string(doc), "\n") {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		if !strings.HasPrefix(cell, "`GET") && !strings.HasPrefix(cell, "`POST") {
			continue
		}
		methods := slices.Compact(method.FindAllString(cell, -1))
		for _, p := range path.FindAllString(cell, -1) {
			for _, m := range methods {
				out = append(out, m+" "+p)
			}
		}
	}
	return out
}

func openAPIPaths(t *testing.T) []string {
	var out []string
	path := ""
	for _, line := range strings.Split(openAPI(t, "paths:", "components:"), "\n") {
		if strings.HasPrefix(line, "  /") {
			path = strings.TrimSuffix(strings.TrimSpace(line), ":")
		}
		if m := strings.TrimSpace(line); m == "get:" || m == "post:" {
			out = append(out, strings.ToUpper(strings.TrimSuffix(m, ":"))+" "+path)
		}
	}
	return out
}

// openAPI gives the lines of openapi.yaml between two others; plain text, so
// that no YAML library is needed for one file.
func openAPI(t *testing.T, from, to string) string {
	doc, err := os.ReadFile("openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(doc), "\n"+from+"\n")
	if !ok {
		t.Fatalf("openapi.yaml has no %s", from)
	}
	rest, _, _ = strings.Cut(rest, "\n"+to+"\n")
	return rest
}

// TestOpenAPIHasTheFieldsOfTheTypes compares every schema with the JSON names
// of the Go type behind it.
func TestOpenAPIHasTheFieldsOfTheTypes(t *testing.T) {
	schemas := map[string][]string{}
	name := ""
	for _, line := range strings.Split(openAPI(t, "  schemas:", "end"), "\n") {
		switch {
		case strings.HasPrefix(line, "        "):
			field, _, _ := strings.Cut(strings.TrimSpace(line), ":")
			schemas[name] = append(schemas[name], field)
		case strings.HasPrefix(line, "    ") && line[4] != ' ':
			name, _, _ = strings.Cut(strings.TrimSpace(line), ":")
		}
	}
	for _, v := range []any{
		AttachRequest{}, AttachReply{}, WaitRequest{}, CommitRequest{}, Draft{}, TagRequest{}, PinRequest{}, RemoveRequest{}, PruneRequest{},
		PolicyRequest{}, VerifyRequest{}, FsckRequest{}, Run{}, Set{}, SetDetail{}, Shard{}, Why{}, Status{}, Disk{},
		Target{}, Targets{}, TargetAddRequest{}, TargetRemoveRequest{}, TargetDrainRequest{}, RepairRequest{}, RepairResult{}, RebalanceRequest{}, RebalanceResult{}, RebalanceMove{}, ScrubRequest{}, ScrubResult{}, Mount{}, Mounts{}, MountRequest{}, UnmountRequest{}, Node{}, Prune{}, PruneItem{}, Progress{}, VerifyResult{}, BadCopy{}, RebuildResult{}, FsckResult{},
		FsckProblem{}, Line{}, WarmRequest{}, WarmNode{}, WarmResult{}, DatasetNode{}, DatasetPlaces{}, DatasetSettings{}, Dataset{}, DatasetVersion{}, DatasetPack{}, DatasetDetail{}, Cache{}, Reader{}, catalog.Place{}, catalog.Event{}, catalog.Tensor{}, catalog.Manifest{},
		catalog.Retention{}, catalog.Policy{},
	} {
		typ := reflect.TypeOf(v)
		want, got := jsonNames(typ), schemas[typ.Name()]
		slices.Sort(want)
		slices.Sort(got)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: openapi.yaml has\n%v, the type\n%v", typ.Name(), got, want)
		}
	}
}

func jsonNames(typ reflect.Type) []string {
	var out []string
	for i := range typ.NumField() {
		f := typ.Field(i)
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" {
			out = append(out, name)
		} else if f.Anonymous {
			out = append(out, jsonNames(f.Type)...)
		}
	}
	return out
}
