package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// addNode starts one more daemon beside those of pets.
func (p *pets) addNode(name string, flags ...string) {
	p.t.Helper()
	listen := freePort(p.t, "127.0.0.1:0")
	d := newDaemon(p.t, name, append([]string{"--listen", listen, "--nats", p.store.url(), "--remote", "catalog"}, flags...)...).start()
	p.nodes, p.listen, p.c = append(p.nodes, d), append(p.listen, listen), append(p.c, d.dial())
	p.until("the targets are up", allUp(3))
	eventually(p.t, "nodes know each other", func() error {
		for i, c := range p.c {
			if ns, err := c.Nodes(p.t.Context()); err != nil || len(ns) < len(p.c) {
				return fmt.Errorf("node %d knows %d nodes: %v", i, len(ns), err)
			}
		}
		return nil
	})
}

// TestStoryDatasetWarmTogether: the node that imported is gone, and all others
// lack every pack and want them at the same moment: together they read the
// remote tier once, and pass on what they have while it is still arriving.
func TestStoryDatasetWarmTogether(t *testing.T) {
	p := startPets(t, 6)
	p.nodes[0].kill()
	var shared bool // one had bytes of the other before that one had all
	over := make(chan error, 1)
	go func() {
		res, err := p.c[1].WarmDataset(t.Context(), "pets@1", []string{"n2", "n3"}, func(wire.Progress) {})
		if err == nil {
			err = warmedAll(res, 2, p.size)
		}
		over <- err
	}()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var err error
	for going := true; going; {
		select {
		case err = <-over:
			going = false
		case <-tick.C:
			for i := range 2 {
				if p.counted(1+i, "peer_bytes") > 0 && p.counted(2-i, "peer_bytes")+p.counted(2-i, "remote_bytes") < p.size {
					shared = true
				}
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	remote, peer := [2]int64{}, [2]int64{}
	for i := range 2 {
		remote[i], peer[i] = p.counted(1+i, "remote_bytes"), p.counted(1+i, "peer_bytes")
		if remote[i] == 0 || peer[i] == 0 {
			t.Errorf("n%d took %d bytes from the remote tier and %d from the other; want both to fetch for each other", i+2, remote[i], peer[i])
		}
	}
	t.Logf("remote tier %v, nodes %v, the version has %d", remote, peer, p.size)
	if sum := remote[0] + remote[1]; float64(sum) > 1.05*float64(p.size) {
		t.Errorf("both nodes: %d bytes from the remote tier, the version has %d", sum, p.size)
	}
	if !shared {
		t.Error("no node passed anything on before it had all")
	}
}

// warmedAll says whether nodes have a whole version.
func warmedAll(res *wire.WarmResult, nodes int, size int64) error {
	var errs []error
	if len(res.Nodes) != nodes {
		errs = append(errs, fmt.Errorf("%d nodes, want %d", len(res.Nodes), nodes))
	}
	for _, n := range res.Nodes {
		if n.Err != "" || n.Verified != size || n.Total != size {
			errs = append(errs, fmt.Errorf("%+v, want %d bytes", n, size))
		}
	}
	return errors.Join(errs...)
}

// TestStoryDatasetFetcherKilled: three nodes want all packs, the importer is
// gone, and one of the three is killed when it has fetched some for the others.
// They finish; what the remote tier gives to the two is still about one version:
// only what was under way at the dead one may have to be read again, which is
// lost with it anyway.
func TestStoryDatasetFetcherKilled(t *testing.T) {
	p := startPets(t, 6)
	p.addNode("n4")
	p.nodes[0].kill()
	over := make([]chan error, 3)
	for i := range over {
		over[i] = make(chan error, 1)
		go func(c *ckpt.Client) {
			res, err := c.WarmDataset(t.Context(), "pets@1", nil, func(wire.Progress) {})
			if err == nil {
				err = warmedAll(res, 1, p.size)
			}
			over[i] <- err
		}(p.c[1+i])
	}
	var dead int64
	eventually(t, "n2 fetches", func() error {
		if dead = p.counted(1, "remote_bytes"); dead < 4<<20 {
			return fmt.Errorf("it has %d bytes", dead)
		}
		return nil
	})
	p.nodes[1].kill()
	if err := <-over[0]; err == nil {
		t.Log("n2 had all before it was killed")
	}
	for i, ch := range over[1:] {
		select {
		case err := <-ch:
			if err != nil {
				t.Errorf("n%d: %v", i+3, err)
			}
		case <-time.After(2 * patience):
			t.Fatalf("n%d does not finish", i+3)
		}
	}
	var remote, peer []int64
	for _, i := range []int{2, 3} {
		remote, peer = append(remote, p.counted(i, "remote_bytes")), append(peer, p.counted(i, "peer_bytes"))
	}
	t.Logf("n2 took %d bytes from the remote tier before it was killed; then %v, of nodes %v; the version has %d", dead, remote, peer, p.size)
	if sum := remote[0] + remote[1]; float64(sum) > 1.05*float64(p.size) {
		t.Errorf("the two that live: %d bytes from the remote tier, the version has %d", sum, p.size)
	}
	if slices.Max(peer) == 0 {
		t.Error("they passed nothing on")
	}
}

// TestStorySaveTakesRoomOfTheCache: copies of packs fill a node's disk up to
// its high water, and a checkpoint that needs their room is saved all the same;
// what was evicted is fetched again when it is read.
func TestStorySaveTakesRoomOfTheCache(t *testing.T) {
	p := startPets(t, 4, "--quota", "100MiB", "--cache", "70MiB")
	if res, err := p.c[1].WarmDataset(t.Context(), "pets@1", nil, func(wire.Progress) {}); err != nil || warmedAll(res, 1, p.size) != nil {
		t.Fatal(err, warmedAll(res, 1, p.size))
	}
	if n := p.counted(1, "evicted"); n != 0 {
		t.Fatalf("%d packs evicted with room for all", n)
	}
	if _, err := p.c[1].Attach(t.Context(), "job", "first", 1); err != nil {
		t.Fatal(err)
	}
	if _, err := save(t.Context(), p.c[1], "job", 1, 1, 0, 1, 70<<20); err != nil {
		t.Fatalf("a save that fits in the disk without the cache: %v", err)
	}
	mustWait(t, p.c[1], "job@1", catalog.Local)
	evicted := p.counted(1, "evicted")
	if evicted == 0 {
		t.Error("no pack made room")
	}
	if err := p.epoch(t.Context(), 1, 0); err != nil {
		t.Errorf("an epoch with less room: %v", err)
	}
	mustLoad(t, p.c[1], "job@1")
	t.Logf("%d packs made room for a save", evicted)
}

// TestStoryDatasetWarmInterrupted: who warms all nodes leaves in the middle. What
// had come stays: it is not fetched again by the next one, which finishes.
func TestStoryDatasetWarmInterrupted(t *testing.T) {
	p := startPets(t, 6)
	ctx, cancel := context.WithCancel(t.Context())
	over := make(chan error, 1)
	go func() {
		_, err := p.c[1].WarmDataset(ctx, "pets@1", []string{"all"}, func(wire.Progress) {})
		over <- err
	}()
	eventually(t, "something comes", func() error {
		if p.counted(2, "peer_bytes")+p.counted(2, "remote_bytes") == 0 {
			return errors.New("nothing")
		}
		return nil
	})
	cancel()
	if err := <-over; err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
	res, err := p.c[1].WarmDataset(t.Context(), "pets@1", []string{"all"}, func(wire.Progress) {})
	if err != nil || warmedAll(res, 3, p.size) != nil {
		t.Fatal(err, warmedAll(res, 3, p.size))
	}
	for i := range p.c {
		if came := p.counted(i, "peer_bytes") + p.counted(i, "remote_bytes"); float64(came) > 1.05*float64(p.size) {
			t.Errorf("%s took %d bytes, the version has %d", p.nodes[i].name, came, p.size)
		}
	}
}

// TestStoryPackPassedOnWhileItArrives: two nodes want one large pack, and the
// targets stop when the fetcher has a part of it: the other node has that part
// from it all the same. When the targets go on, both get the rest, once.
func TestStoryPackPassedOnWhileItArrives(t *testing.T) {
	p := startPets(t, 1)
	dir := t.TempDir()
	const size = 96 << 20
	if err := os.WriteFile(filepath.Join(dir, "large"), content(3, 0, 0, size), 0o644); err != nil {
		t.Fatal(err)
	}
	v, err := importTree(t.Context(), p.nodes[0].socket, dir, "large")
	if err != nil {
		t.Fatal(err)
	}
	show, err := p.c[0].DatasetVersion(t.Context(), "large@1")
	if err != nil || len(show.PackList) != 1 {
		t.Fatalf("%+v, %v", show, err)
	}
	for _, set := range []string{show.PackList[0].ID, v.Set.String()} {
		mustWait(t, p.c[0], set, catalog.Verified)
	}
	p.nodes[0].kill()
	signal := func(sig syscall.Signal) {
		for _, target := range p.targets {
			if err := target.cmd.Process.Signal(sig); err != nil {
				t.Error(err)
			}
		}
	}
	over := make(chan error, 1)
	go func() {
		res, err := p.c[1].WarmDataset(t.Context(), "large@1", []string{"n2", "n3"}, func(wire.Progress) {})
		if err == nil && len(res.Nodes) != 2 {
			err = fmt.Errorf("%+v", res)
		}
		over <- err
	}()
	remote := func(i int) int64 { return p.counted(i, "remote_bytes") }
	eventually(t, "a part comes", func() error {
		if remote(1)+remote(2) < 8<<20 {
			return fmt.Errorf("%d and %d bytes", remote(1), remote(2))
		}
		return nil
	})
	signal(syscall.SIGSTOP)
	t.Cleanup(func() { signal(syscall.SIGCONT) })
	passed := int64(0)
	eventually(t, "the part is passed on", func() error {
		if passed = p.counted(1, "peer_bytes") + p.counted(2, "peer_bytes"); passed < 4<<20 {
			return fmt.Errorf("%d bytes", passed)
		}
		return nil
	})
	part := remote(1) + remote(2)
	signal(syscall.SIGCONT)
	if err := <-over; err != nil {
		t.Fatal(err)
	}
	sum := remote(1) + remote(2)
	t.Logf("stopped at %d of %d bytes, %d of them passed on; %d bytes of the remote tier in the end", part, size, passed, sum)
	if part >= size {
		t.Error("all had come before the targets stopped")
	}
	if float64(sum) > 1.05*size {
		t.Errorf("%d bytes from the remote tier, the pack has %d", sum, size)
	}
}
