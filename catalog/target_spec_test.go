package catalog_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
)

func TestParseTarget(t *testing.T) {
	for spec, want := range map[string]catalog.TargetRecord{
		"dir:/data/a": {Scheme: "dir", Addrs: []string{"/data/a"}},
		"dir:/data/a,name=x,domain=rack,weight=0.5": {Scheme: "dir", Addrs: []string{"/data/a"}, Name: "x", Domain: "rack", Weight: 0.5},
		"tcp:h:1+[fe80::1]:2,pool=fast":             {Scheme: "tcp", Addrs: []string{"h:1", "[fe80::1]:2"}, Pool: "fast"},
		"tls:h:1,name=a@b:c/d":                      {Scheme: "tls", Addrs: []string{"h:1"}, Name: "a@b:c/d"},
		"posix:/lustre/ck":                          {Scheme: "posix", Addrs: []string{"/lustre/ck"}, Name: "posix:/lustre/ck", Pool: "posix:/lustre/ck"},
		"s3://b/p/?endpoint=http://h:9,name=cold":   {Scheme: "s3", Addrs: []string{"s3://b/p/?endpoint=http://h:9"}, Name: "cold", Pool: "cold"},
		"s3://b/p/": {Scheme: "s3", Addrs: []string{"s3://b/p/"}, Name: "s3:b/p", Pool: "s3:b/p"},
	} {
		if got, err := catalog.ParseTarget(spec); err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: %+v, %v, want %+v", spec, got, err, want)
		}
	}
	for _, spec := range []string{
		"", "x", "dir:", "tcp:", "tcp:h", "tcp:h:1+", "tcp:h:1+:2", "ftp:h:1", "dir:/a,weight=0", "dir:/a,weight=NaN", "dir:/a,weight=x", "dir:/a,name=",
		"dir:/a,name=a b", "dir:/a,colour=red", "s3:b", "s3://", "s3:///p", "posix:/" + strings.Repeat("x", 100), "tcp:" + strings.Repeat("h:1+", 8) + "h:1",
	} {
		_, err := catalog.ParseTarget(spec)
		wantClass(t, spec, err, catalog.ErrInvalid)
	}
}

// What is read as a target may stand in the map, once it has a name and an owner.
func FuzzParseTarget(f *testing.F) {
	for _, spec := range []string{"dir:/a,name=x", "tcp:h:1+[fe80::1]:2,pool=p,weight=2", "tls:h:1,domain=d", "posix:/l", "s3://b/p?endpoint=http://h:9,name=c", "ofi:h:1"} {
		f.Add(spec)
	}
	f.Fuzz(func(t *testing.T, spec string) {
		r, err := catalog.ParseTarget(spec)
		if err != nil {
			wantClass(t, spec, err, catalog.ErrInvalid)
			return
		}
		if r.State, r.By = catalog.TargetUp, "n1"; r.Name == "" {
			r.Name = "x"
		}
		if r.Scheme == "dir" {
			r.Node = "n1"
		}
		if err := r.Check(); err != nil {
			t.Errorf("%q gives %+v: %v", spec, r, err)
		}
	})
}
