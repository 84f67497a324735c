package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

// Targets are added and taken out, and a policy names a pool, while a daemon
// that began with none runs on.
func TestTargetsByHand(t *testing.T) {
	d := startDaemon(t, "--remote", "catalog", "--target-probe", "200ms", "--target-down", "1s")
	if m := into[wire.Targets](d, "target", "ls"); len(m.Targets) != 0 || m.Version != 0 {
		t.Errorf("before there are any: %+v", m)
	}
	dirs := t.TempDir()
	for _, name := range []string{"a", "b", "c"} {
		added := into[wire.Target](d, "target", "add", "dir:"+filepath.Join(dirs, name)+",name="+name+",pool=fast,domain=disk-"+name)
		if added.Name != name || added.Node != "n1" || added.Pool != "fast" || added.State != catalog.TargetUp {
			t.Errorf("added %+v", added)
		}
	}
	for _, c := range []struct {
		code int
		args []string
	}{
		{2, []string{"target", "add", "ftp:x"}},
		{2, []string{"target", "add", "dir:" + dirs + "/z"}},               // no name
		{6, []string{"target", "add", "dir:" + dirs + "/a,name=b"}},        // another target's directory
		{1, []string{"target", "add", "tcp:127.0.0.1:1"}},                  // nobody there
		{3, []string{"target", "rm", "nobody"}},                            //
		{6, []string{"target", "rm", "a"}},                                 // not drained
		{2, []string{"policy", "run", "--layout", "2+1"}},                  // set is missing
		{2, []string{"policy", "run", "set", "--layout", "8+2"}},           // too wide
		{2, []string{"policy", "run", "set", "--remote", "slow"}},          // no such pool
		{2, []string{"policy", "run", "set", "--compress", "lzma"}},        //
		{2, []string{"policy", "run", "set", "layout=2+1", "--unit", "3"}}, // no unit
	} {
		if code, out, errs := d.ckpt(c.args...); code != c.code {
			t.Errorf("%v: exit code %d, want %d: %s%s", c.args, code, c.code, out, errs)
		}
	}
	p := into[wire.PolicyRequest](d, "policy", "run", "set", "--layout", "2+1", "--unit", "64KiB", "--remote", "fast", "keep-last=3").Policy
	want := catalog.Policy{Layout: "2+1", Unit: 64 << 10, Remote: "fast", Retention: catalog.Retention{KeepLast: 3}}
	if p != want {
		t.Errorf("policy %+v, want %+v", p, want)
	}
	if p = into[wire.PolicyRequest](d, "policy", "run", "set", "--unit=", "--keep-last", "").Policy; p.Unit != 0 || p.Retention.KeepLast != 0 || p.Layout != "2+1" {
		t.Errorf("after two went back to the default: %+v", p)
	}
	paths, _ := files(t, 4)
	d.must(append([]string{"save", "run@1"}, paths...)...)
	d.must("wait", "run@1", "--level", "verified", "--timeout", "60s")
	detail := into[wire.SetDetail](d, "show", "run@1")
	got := slices.Sorted(slices.Values(detail.Shards[0].Remote.Targets))
	if strings.Join(got, " ") != "a b c" {
		t.Errorf("columns are on %v", got)
	}
	out := d.must("target", "ls")
	for _, word := range []string{"NAME", "LATENCY", "disk-a", "fast", "up", "dir:" + filepath.Join(dirs, "a") + " on n1"} {
		if !strings.Contains(out, word) {
			t.Errorf("target ls has no %q:\n%s", word, out)
		}
	}
	d.must("status")

	// One directory is lost with its disk: status says so, by its exit code too.
	if err := os.Rename(filepath.Join(dirs, "a"), filepath.Join(dirs, "gone")); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(time.Minute); ; <-tick.C {
		code, out, _ := d.ckpt("status")
		if code == 1 && strings.Contains(out, "target a: down") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("status with a lost directory: exit code %d\n%s", code, out)
		}
	}
	d.must("target", "rm", "a", "--force")
	if m := into[wire.Targets](d, "target", "ls"); len(m.Targets) != 2 {
		t.Errorf("after it was taken out: %+v", m)
	}
	d.must("restore", "run@1", filepath.Join(t.TempDir(), "out"))
	if words, _ := (&app{socket: d.socket}).completeTarget(newRoot(&app{}), nil, ""); strings.Join(words, " ") != "b c" {
		t.Errorf("completion offers %v", words)
	}
}
