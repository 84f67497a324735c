package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// fleet is two daemons that follow the catalog's targets, and targets that
// register there.
type fleet struct {
	t       *testing.T
	store   *store
	targets []*targetProcess
	nodes   []*daemon
	listen  []string
	c       []*ckpt.Client
}

func startFleet(t *testing.T, targets int, flags ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, store: &store{t: t, dir: t.TempDir(), addr: freePort(t, "127.0.0.1:0")}}
	f.store.up()
	t.Cleanup(f.store.down)
	for range targets {
		f.join()
	}
	for _, name := range []string{"n1", "n2"} {
		listen := freePort(t, "127.0.0.1:0")
		d := newDaemon(t, name, append([]string{"--listen", listen, "--nats", f.store.url(), "--remote", "catalog",
			"--target-probe", "300ms", "--target-down", "1500ms"}, flags...)...).start()
		f.nodes, f.listen, f.c = append(f.nodes, d), append(f.listen, listen), append(f.c, d.dial())
	}
	return f
}

// join starts one more target.
func (f *fleet) join() *targetProcess {
	f.t.Helper()
	n := len(f.targets)
	p := startTarget(f.t, fmt.Sprintf("t%d", n), "--nats", f.store.url(), "--heartbeat", "300ms", "--domain", fmt.Sprintf("rack%d", n))
	f.targets = append(f.targets, p)
	return p
}

// until waits until every daemon shows the targets as ok wants them.
func (f *fleet) until(what string, ok func([]wire.Target) error) {
	f.t.Helper()
	for i, c := range f.c {
		eventually(f.t, fmt.Sprintf("%s: %s", f.nodes[i].name, what), func() error {
			m, err := c.Targets(f.t.Context())
			if err != nil {
				return err
			}
			return ok(m.Targets)
		})
	}
}

// allUp wants that many targets, all up, used and with a recent heartbeat.
func allUp(n int) func([]wire.Target) error {
	return func(all []wire.Target) error {
		for _, t := range all {
			if t.State != catalog.TargetUp || t.Trouble != "" || t.Total == 0 || t.Columns < 0 || time.Since(t.Seen) > 10*time.Second {
				return fmt.Errorf("target %+v", t)
			}
		}
		if len(all) != n {
			return fmt.Errorf("%d targets, want %d", len(all), n)
		}
		return nil
	}
}

func (f *fleet) save(step int64) {
	f.t.Helper()
	if _, err := save(f.t.Context(), f.c[0], "run", step, 1, 0, 1, 3<<20); err != nil {
		f.t.Fatalf("save %d: %v", step, err)
	}
	mustWait(f.t, f.c[0], fmt.Sprintf("run@%d", step), catalog.Verified)
}

// place says where the shard of a step is.
func (f *fleet) place(step int64) *catalog.Place {
	f.t.Helper()
	d, err := f.c[1].Set(f.t.Context(), fmt.Sprintf("run@%d", step), false)
	if err != nil {
		f.t.Fatal(err)
	}
	return d.Shards[0].Remote
}

// trouble is what the status of a daemon says is wrong.
func (f *fleet) trouble(node int) string {
	f.t.Helper()
	s, err := f.c[node].Status(f.t.Context())
	if err != nil {
		f.t.Fatal(err)
	}
	return strings.Join(s.Trouble, "\n")
}

func (f *fleet) metrics(node int) string {
	f.t.Helper()
	r, err := http.Get("http://" + f.listen[node] + "/metrics")
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return string(b)
}

// TestStoryTargets: targets are killed, come back, join and are taken out, and
// the catalog goes away and comes back, while two daemons run and follow.
func TestStoryTargets(t *testing.T) {
	f := startFleet(t, 4)
	f.until("four are up", allUp(4))
	if _, err := f.c[0].Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	f.save(1)
	if p := f.place(1); p.Layout != "2+1" {
		t.Errorf("with four targets: %+v", p)
	}

	victim := f.targets[slices.IndexFunc(f.targets, func(p *targetProcess) bool { return p.name == f.place(1).Targets[0] })]
	victim.kill()
	seen := map[catalog.TargetState]bool{}
	f.until("the killed one is down", func(all []wire.Target) error {
		for _, t := range all {
			if t.Name == victim.name {
				if seen[t.State] = true; t.State == catalog.TargetDown && strings.Contains(t.Trouble, "down: nobody reaches it") {
					return nil
				}
			}
		}
		return fmt.Errorf("targets %+v", all)
	})
	if !seen[catalog.TargetSuspect] {
		t.Errorf("states on the way down: %v", seen)
	}
	for i := range f.c {
		if said := f.trouble(i); !strings.Contains(said, "target "+victim.name+": down") {
			t.Errorf("status of %s: %s", f.nodes[i].name, said)
		}
		if err := load(t.Context(), f.c[i], "run@1", "remote"); err != nil {
			t.Errorf("with one target down: %v", err)
		}
	}
	if metrics := f.metrics(0); !strings.Contains(metrics, fmt.Sprintf("ckptd_target_up{target=%q} 0\n", victim.name)) || strings.Count(metrics, "ckptd_target_up{") != 4 {
		t.Errorf("metrics: %s", metrics)
	}
	f.save(2)
	if p := f.place(2); slices.Contains(p.Targets, victim.name) || p.Layout != "2+1" {
		t.Errorf("with one of four down: %+v", p)
	}
	victim.start()
	f.until("the killed one is back", allUp(4))

	f.join()
	f.join()
	f.until("two more have joined", allUp(6))
	f.save(3)
	if p := f.place(3); p.Layout != "4+2" || !slices.Contains(p.Targets, "t4") || !slices.Contains(p.Targets, "t5") {
		t.Errorf("the drain after they joined: %+v", p)
	}

	f.store.down()
	if err := load(t.Context(), f.c[0], "run@3", "remote"); err != nil {
		t.Errorf("while the catalog is away: %v", err)
	}
	f.store.up()
	for i, c := range f.c {
		eventually(t, f.nodes[i].name+" is connected again", func() error {
			s, err := c.Status(t.Context())
			if err == nil && !s.Catalog.Connected {
				err = errors.New("it is not")
			}
			return err
		})
	}
	f.until("the catalog is back", allUp(6))

	gone := f.targets[5]
	if _, err := f.c[0].RemoveTarget(t.Context(), gone.name, "", false); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("taking out one that is in use: %v", err)
	}
	gone.kill()
	if _, err := f.c[0].RemoveTarget(t.Context(), gone.name, "", true); err != nil {
		t.Errorf("taking it out by force: %v", err)
	}
	f.until("five are left", allUp(5))
	if err := load(t.Context(), f.c[1], "run@3", "remote"); err != nil {
		t.Errorf("without the one that was taken out: %v", err)
	}
	if _, err := f.c[0].SetPolicy(t.Context(), "run", catalog.Policy{Layout: "8+2"}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "there are 5") {
		t.Errorf("a layout that is too wide: %v", err)
	}
}

// A target that does not register is added by hand, and goes by hand.
func TestTargetAddedByHand(t *testing.T) {
	f := startFleet(t, 0)
	p := startTarget(t, "x", "--domain", "rack9")
	if _, err := f.c[0].AddTarget(t.Context(), "tcp:"+freePort(t, "127.0.0.1:0")); err == nil {
		t.Error("a target that is not there was added")
	}
	row, err := f.c[0].AddTarget(t.Context(), "tcp:"+p.addr+",pool=slow")
	if err != nil || row.Name != "x" || row.Domain != "rack9" || row.Pool != "slow" {
		t.Fatalf("added %+v, %v", row, err)
	}
	if _, err := f.c[1].AddTarget(t.Context(), "tcp:"+p.addr); err == nil {
		t.Error("it was added twice")
	}
	f.until("it is used", func(all []wire.Target) error {
		if len(all) != 1 || all[0].Total == 0 || all[0].Err != "" {
			return fmt.Errorf("targets %+v", all)
		}
		return nil
	})
	if p, err := f.c[0].SetPolicy(t.Context(), "run", catalog.Policy{Remote: "slow"}); err != nil || p.Remote != "slow" {
		t.Errorf("policy %+v, %v", p, err)
	}
	if _, err := f.c[0].SetPolicy(t.Context(), "run", catalog.Policy{Remote: "fast"}); !errors.Is(err, catalog.ErrInvalid) || !strings.Contains(err.Error(), "slow") {
		t.Errorf("a pool that is not there: %v", err)
	}
	if _, err := f.c[0].Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	f.save(1)
	if p := f.place(1); p.Layout != "1+0" || p.Targets[0] != "x" {
		t.Errorf("place %+v", p)
	}
	if _, err := f.c[1].RemoveTarget(t.Context(), "x", "", true); err != nil {
		t.Error(err)
	}
	f.until("nothing is left", allUp(0))
}

// Everything over TLS with a token: the catalog inside a daemon, a target that
// registers there, and the daemon that uses it. Who lacks the secret does not
// get in.
func TestTargetRegistersOverTLS(t *testing.T) {
	cert, key := certificate(t)
	token := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(token, []byte("s3cret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	secrets := []string{"--tls-cert", cert, "--tls-key", key, "--tls-ca", cert, "--token-file", token}
	nats := freePort(t, "127.0.0.1:0")
	d := newDaemon(t, "n1", append(secrets, "--nats-listen", nats, "--remote", "catalog", "--target-probe", "300ms")...).start()
	c := d.dial()
	startTarget(t, "stranger", "--nats", "tls://"+nats, "--tls-cert", cert, "--tls-key", key, "--tls-ca", cert)
	for i := range 3 {
		startTarget(t, fmt.Sprintf("t%d", i), append(secrets, "--nats", "tls://"+nats, "--heartbeat", "300ms")...)
	}
	eventually(t, "three are members", func() error {
		m, err := c.Targets(t.Context())
		if err != nil {
			return err
		}
		for _, t := range m.Targets {
			if t.Scheme != "tls" {
				return fmt.Errorf("target %+v", t)
			}
		}
		return allUp(3)(m.Targets)
	})
	if _, err := c.Attach(t.Context(), "run", "first", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := save(t.Context(), c, "run", 1, 1, 0, 1, 1<<20); err != nil {
		t.Fatal(err)
	}
	mustWait(t, c, "run@1", catalog.Verified)
	m, err := c.Targets(t.Context())
	if err != nil || len(m.Targets) != 3 {
		t.Errorf("members in the end: %+v, %v", m, err)
	}
}
