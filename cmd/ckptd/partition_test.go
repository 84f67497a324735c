package main

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/remotetier"
	"github.com/ckptd/ckptd/remotetier/fabric/tcp"
	"github.com/ckptd/ckptd/remotetier/stripe"
	"github.com/ckptd/ckptd/remotetier/target"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// fault is something that happens between a host and all others.
type fault struct {
	name   string
	happen func(victim *netHost, others ...*netHost) (heal func())
}

var faults = []fault{
	{"CutOff", func(v *netHost, _ ...*netHost) func() { return v.unplug() }},
	{"DoesNotHear", func(v *netHost, others ...*netHost) func() { return v.deafTo(others...) }},
	{"IsNotHeard", func(v *netHost, others ...*netHost) func() {
		var heals []func()
		for _, o := range others {
			heals = append(heals, o.deafTo(v))
		}
		return sync.OnceFunc(func() {
			for _, heal := range heals {
				heal()
			}
		})
	}},
	{"SlowLink", func(v *netHost, _ ...*netHost) func() { return v.slow("20mbit") }},
}

// deadline bounds what an operation may take while one target is cut off. The
// time limits of the network add up to less than 10 s.
const deadline = 40 * time.Second

// farCluster is targets on hosts of their own.
type farCluster struct {
	net     *network
	hosts   []*netHost
	targets []*targetProcess
	dirs    map[string]string // by target
}

func startFar(t *testing.T, n int) *farCluster {
	t.Helper()
	c := &farCluster{net: newNetwork(t), dirs: map[string]string{}}
	for i := range n {
		h := c.net.host()
		p := startTargetOn(t, h, fmt.Sprintf("t%d", i), "--domain", fmt.Sprintf("rack%d", i))
		c.hosts, c.targets = append(c.hosts, h), append(c.targets, p)
		c.dirs[p.name] = p.dir
	}
	return c
}

// mustHold reads a place's columns from the disks of its targets, without asking
// anybody: all of them are there, whole, and give the blob.
func (c *farCluster) mustHold(t *testing.T, place catalog.Place, want []byte) {
	t.Helper()
	var cols []*formatColumn
	for i, name := range place.Targets {
		rel := remotetier.Key{Blob: place.Blob, Generation: place.Generation, Column: i}.Path()
		col, err := readFormat(filepath.Join(c.dirs[name], "columns", rel), filepath.ToSlash(rel))
		if err != nil {
			t.Errorf("%s was acknowledged, and its column %d on %s: %v", place.Blob, i, name, err)
			return
		}
		cols = append(cols, col)
	}
	if got, err := joinFormat(cols, rand.New(rand.NewPCG(1, place.Generation))); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s was acknowledged; its columns are right = %v, %v", place.Blob, bytes.Equal(got, want), err)
	}
}

// mustBeClean waits until the targets hold nothing that was begun and not
// ended, and gives what they hold. The daemons scrub meanwhile.
func (c *farCluster) mustBeClean(t *testing.T, daemons ...*ckpt.Client) (found map[string][]*formatColumn) {
	t.Helper()
	eventually(t, "nothing is left over", func() (err error) {
		for _, d := range daemons {
			if _, err := d.Scrub(t.Context(), "", true, nil); err != nil {
				return err
			}
		}
		if found, err = findFormat(c.dirs); err != nil {
			return err
		}
		return onlyFormat(found)
	})
	return found
}

// tier gives a client of all targets that knows nothing yet, when all of them
// answer.
func (c *farCluster) tier(t *testing.T) *remotetier.Tier {
	t.Helper()
	opt := tcp.Options{Stall: 2 * time.Second, Dial: time.Second}
	var infos []remotetier.TargetInfo
	for _, p := range c.targets {
		r, err := target.Dial(t.Context(), tcp.New(opt), []string{p.addr}, target.RemoteOptions{Name: p.name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		eventually(t, p.name+" answers", func() error {
			_, err := r.Space(t.Context())
			return err
		})
		infos = append(infos, remotetier.TargetInfo{Target: r, Domain: r.Domain()})
	}
	return remotetier.New(infos, remotetier.Options{})
}

// TestPartitionsOfATarget: one of eight targets, each on a host of its own, is
// cut off, hears nobody, is not heard, or is at the end of a slow link, in the
// middle of a Put and of a read. Both end in time. What the Put acknowledges is
// whole on the disks of k+m targets at that moment, what is read is right, and
// when the network is healed nothing is left over.
func TestPartitionsOfATarget(t *testing.T) {
	t.Parallel()
	c := startFar(t, 8)
	self := c.net.self()
	layout := stripe.Layout{K: 4, M: 2, Unit: 256 << 10}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 1))
	places := map[string]catalog.Place{}
	first := targetBytes(12<<20+333, 1)
	old, err := c.tier(t).Put(t.Context(), "run/first", bytes.NewReader(first), layout)
	if err != nil {
		t.Fatal(err)
	}
	places[old.Blob] = old
	for i, f := range faults {
		t.Run(f.name, func(t *testing.T) {
			tier, b, name := c.tier(t), targetBytes(12<<20+777, byte(2+i)), old.Targets[rnd.IntN(4)]
			victim := slices.IndexFunc(c.targets, func(p *targetProcess) bool { return p.name == name })
			heal := func() {}
			defer func() { heal() }()
			happened, over := make(chan struct{}), make(chan struct{})
			src := &tellingSource{Reader: bytes.NewReader(b), at: rnd.Int64N(int64(len(b))), tell: func() {
				heal = f.happen(c.hosts[victim], self)
				close(happened)
			}}
			from := time.Now()
			var reads sync.WaitGroup
			reads.Go(func() { // over and over, until it was done once after the fault
				for after := false; !after; {
					select {
					case <-happened:
						after = true
					case <-over:
						after = true
					default:
					}
					checkBlob(t, tier, old, first)
				}
			})
			place, err := tier.Put(t.Context(), "run/"+f.name, src, layout)
			if err != nil {
				t.Errorf("Put without %s = %v", c.targets[victim].name, err)
			} else {
				places[place.Blob] = place
				c.mustHold(t, place, b)
				checkBlob(t, tier, place, b)
			}
			close(over)
			reads.Wait()
			if d := time.Since(from); d > deadline {
				t.Errorf("a Put and reads took %v, at most %v", d, deadline)
			} else {
				t.Logf("a Put and reads took %v", d)
			}
		})
	}
	// Healed: both sides see the same.
	tier := c.tier(t)
	if _, err := tier.Sweep(t.Context(), "", func(blob string, gen uint64) bool { return places[blob].Generation == gen }); err != nil {
		t.Error(err)
	}
	for _, p := range places {
		if err := tier.Verify(t.Context(), p); err != nil {
			t.Error(err)
		}
	}
	for blob, cols := range c.mustBeClean(t) {
		if cols[0].generation != places[blob].Generation {
			t.Errorf("%s: generation %d is there, recorded is %+v", blob, cols[0].generation, places[blob])
		}
	}
}

// TestPartitionsOfADaemon: three daemons on hosts of their own, at the end of a
// slow link, are cut off from six targets, hear them no more, or are not heard, in
// the middle of a drain and of a restore. While that lasts no set is called
// remote, what is local can be loaded, the daemon answers, and a restore ends
// in time; afterwards the drain ends by itself, and the targets hold what the
// catalog says, and nothing else.
func TestPartitionsOfADaemon(t *testing.T) {
	t.Parallel()
	c := startFar(t, 6)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	var all sync.WaitGroup
	var daemons []*daemon
	var clients []*ckpt.Client
	for i, f := range faults[:3] {
		h := c.net.host()
		h.slow("100mbit")
		var flags []string
		for _, p := range c.targets {
			flags = append(flags, "--remote", fmt.Sprintf("tcp:%s,name=%s", p.addr, p.name))
		}
		d := newDaemon(t, f.name, append(flags, "--layout", "4+2", "--unit", "256KiB", "--scrub-rate", "0", "--scrub-grace", "100ms")...)
		d.host = h
		daemons = append(daemons, d.start())
		clients = append(clients, d.dial())
		all.Go(func() { c.partition(t, d, f, rand.New(rand.NewPCG(seed, uint64(i)))) })
	}
	all.Wait()
	if t.Failed() {
		return
	}
	found := c.mustBeClean(t, clients...)
	for _, d := range daemons {
		for step := range 2 {
			blob := catalog.SetID{Run: catalog.Run(d.name), Step: int64(step + 1), Attempt: 1}.ShardName(0)
			want, err := os.ReadFile(shardFile(t, d, fmt.Sprintf("%s@%d#1", d.name, step+1), 0))
			if err != nil {
				t.Fatal(err)
			}
			if len(found[blob]) == 0 {
				t.Errorf("%s is remote, and has no columns", blob)
				continue
			}
			if got, err := joinFormat(found[blob], rand.New(rand.NewPCG(seed, 9))); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: equal = %v, %v", blob, bytes.Equal(got, want), err)
			}
		}
	}
}

// partition saves, drains and restores on one daemon, and has its host suffer.
func (c *farCluster) partition(t *testing.T, d *daemon, f fault, rnd *rand.Rand) {
	cl, run := d.dial(), d.name
	if _, err := cl.Attach(t.Context(), run, "launch", 1); err != nil {
		t.Error(err)
		return
	}
	first, second := run+"@1", run+"@2"
	for step, level := range []catalog.Level{catalog.Verified, catalog.Local} {
		if _, err := save(t.Context(), cl, run, int64(step+1), 1, 0, 1, 12<<20); err != nil {
			t.Error(err)
			return
		}
		mustReach(t, cl, fmt.Sprintf("%s@%d", run, step+1), level)
	}
	loaded := make(chan error, 1)
	go func() { loaded <- load(t.Context(), cl, first, "remote") }()
	// A moment of what takes seconds on a slow link.
	<-time.After(200*time.Millisecond + time.Duration(rnd.Int64N(int64(time.Second))))
	heal := f.happen(d.host, c.hosts...)
	defer func() { heal() }()
	from := time.Now()
	if err := within(func() error {
		s, err := cl.Status(t.Context())
		if err == nil && !strings.Contains(strings.Join(s.Trouble, "\n"), "drain") {
			err = fmt.Errorf("the trouble is %q", s.Trouble)
		}
		if set, err := cl.Set(t.Context(), second, false); err != nil || set.Level >= catalog.Remote {
			t.Errorf("%s is %+v, %v while nobody can be reached", second, set, err)
		}
		return err
	}); err != nil {
		t.Errorf("%s: the drain does not fail: %v", f.name, err)
		return
	}
	t.Logf("%s: the drain had failed after %v", f.name, time.Since(from))
	mustLoad(t, cl, second, "local")
	select {
	case err := <-loaded:
		t.Logf("%s: the restore had ended after %v: %.100v", f.name, time.Since(from), err)
		if err != nil && strings.Contains(err.Error(), "other bytes") {
			t.Error(err)
		}
	case <-time.After(deadline):
		t.Errorf("%s: the restore hangs", f.name)
	}
	heal()
	mustReach(t, cl, second, catalog.Verified)
	t.Logf("%s: all was verified after %v", f.name, time.Since(from))
	if err := within(func() error { return load(t.Context(), cl, first, "remote") }); err != nil {
		t.Errorf("%s: healed, and a restore gives %v", f.name, err)
	}
	mustLoad(t, cl, second, "remote")
}

// mustReach is mustWait for goroutines: it does not end the test.
func mustReach(t *testing.T, c *ckpt.Client, ref string, level catalog.Level) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.Wait(ctx, ref, level); err != nil {
		t.Errorf("wait for %s at %v: %v\n%s", ref, level, err, why(t, c, ref))
	}
}

// within is eventually for goroutines.
func within(ask func() error) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for until := time.Now().Add(patience); ; <-tick.C {
		if err := ask(); err == nil || time.Now().After(until) {
			return err
		}
	}
}
