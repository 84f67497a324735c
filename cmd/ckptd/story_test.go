package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
)

// TestStoryCluster: three daemons, one NATS, eight ranks over them.
func TestStoryCluster(t *testing.T) {
	t.Parallel()
	k := startTrio(t)
	ctx := t.Context()
	one := k.attach("job", "launch 1")

	// Not listed until the last shard is durable.
	k.save("job", 10, one, 0, 1, 2, 3, 4, 5, 6)
	eventually(t, "seven votes", func() error {
		s, err := k.c[1].Set(ctx, "job@10#1", false)
		if err == nil && len(s.Shards) < 7 {
			err = errors.New("fewer")
		}
		return err
	})
	k.mustNotList("job", 10)
	if s := k.detail("job@10#1"); s.State != catalog.Writing || len(s.Missing) != 1 || s.Missing[0] != 7 {
		t.Errorf("seven of eight: state %s, missing %v", s.State, s.Missing)
	}
	if err := load(ctx, k.c[0], "job@latest"); err == nil {
		t.Error("latest loads before the last shard is durable")
	}
	k.save("job", 10, one, 7)
	k.wait("job@10#1", catalog.Local)

	// The manifest is on two nodes, and every node loads: its own shards from
	// its disks, the others from its peers.
	have := 0
	for _, d := range k.nodes {
		m, err := filepath.Glob(filepath.Join(d.dir, "data", "local", "shards", "job", "*", "manifest.json"))
		if err != nil {
			t.Fatal(err)
		}
		have += len(m)
	}
	if have < 2 {
		t.Errorf("the manifest is on %d nodes, want 2", have)
	}
	for i := range k.nodes {
		mustLoad(t, k.c[i], "job@10")
		fromPeer(t, k.c[i], "job@10", (i+1)%3)
	}
	k.wait("job@10#1", catalog.Verified)

	// All trainers are gone right after their Seal: the next set commits as well.
	saved, err := ckpt.Dial(ctx, k.nodes[0].socket)
	if err != nil {
		t.Fatal(err)
	}
	k.save("job", 20, one, 1, 2, 3, 4, 5, 6, 7)
	if _, err := save(ctx, saved, "job", 20, one, 0, world, 300_000); err != nil {
		t.Fatal(err)
	}
	for i := range k.c { // no connection of a trainer is left
		_ = k.c[i].Close()
		k.c[i] = k.nodes[i].dial()
	}
	_ = saved.Close()
	k.wait("job@20#1", catalog.Local)
	mustLoad(t, k.c[2], "job@20")

	// A late writer of the older attempt is refused: at its begin, and at its seal.
	late, err := k.c[1].Save(ctx, ckpt.At("job", 30), ckpt.Attempt(one), ckpt.Rank(1, world))
	if err != nil {
		t.Fatal(err)
	}
	if err := late.Tensor("w", "U8", []int64{3 << 20}, &gate{b: content(30, one, 1, 3<<20), open: func() {
		// The newer launch comes while the bytes are on their way.
		if two := k.attach("job", "launch 2"); two != one+1 {
			t.Errorf("the second launch has attempt %d, want %d", two, one+1)
		}
	}}); err != nil {
		t.Fatal(err)
	}
	if _, err := late.Commit(ctx); !errors.Is(err, catalog.ErrFenced) {
		t.Errorf("seal of a late writer: %v, want ErrFenced", err)
	}
	if _, err := k.trySave("job", 31, one, 2); !errors.Is(err, catalog.ErrFenced) {
		t.Errorf("begin of a late writer: %v, want ErrFenced", err)
	}
	k.mustNotList("job", 30)

	// The same step again is a new set; the old one stays.
	k.save("job", 10, 2)
	k.wait("job@10#2", catalog.Local)
	mustLoad(t, k.c[0], "job@10#1")
	mustLoad(t, k.c[1], "job@10#2")
}

// fromPeer reads a shard that another node has, from that node alone.
func fromPeer(t *testing.T, c *ckpt.Client, ref string, rank int) {
	t.Helper()
	r, err := c.Open(t.Context(), ref, ckpt.From("peer"))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := make([]byte, r.Manifest().Shards[rank].Size)
	if err := r.ReadShard(t.Context(), rank, p); err != nil {
		t.Errorf("%s rank %d from a peer: %v", ref, rank, err)
	}
	w := r.Manifest().Shards[rank].Tensors[0]
	if !bytes.Equal(p[w.Offset:], content(r.ID().Step, r.ID().Attempt, rank, int(w.Size))) {
		t.Errorf("%s rank %d from a peer: other bytes came back", ref, rank)
	}
}

// gate is data that lets something happen before its first byte is read.
type gate struct {
	b    []byte
	open func()
}

func (g *gate) Read(p []byte) (int, error) {
	if g.open != nil {
		g.open()
		g.open = nil
	}
	n := copy(p, g.b)
	if g.b = g.b[n:]; n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestStoryCoordinatorDies: between the votes and the commit the coordinator
// is killed; another commits, once.
func TestStoryCoordinatorDies(t *testing.T) {
	t.Parallel()
	k := startTrio(t)
	one := k.attach("job", "launch 1")
	lead := k.leader()
	var other []int // ranks whose node does not lead
	for rank := range world {
		if rank%3 != lead {
			other = append(other, rank)
		}
	}
	var own []int
	for rank := lead; rank < world; rank += 3 {
		own = append(own, rank)
	}
	k.save("job", 1, one, own...)
	eventually(t, "the coordinator's own votes", func() error {
		if s := k.detail("job@1#1"); len(s.Shards) < len(own) {
			return errors.New("fewer")
		}
		return nil
	})
	k.save("job", 1, one, other...)
	k.nodes[lead].kill() // with the votes on their way
	alive := (lead + 1) % 3
	mustWait(t, k.c[alive], "job@1#1", catalog.Local)
	if now := k.leader(); now == lead {
		t.Errorf("the dead node still leads")
	}
	if n := strings.Count(why(t, k.c[alive], "job@1#1"), "committed:"); n > 1 {
		t.Errorf("committed %d times", n)
	}
	k.nodes[lead].start()
	k.c[lead] = k.nodes[lead].dial()
	k.wait("job@1#1", catalog.Local)
	for i := range k.nodes {
		mustLoad(t, k.c[i], "job@1")
	}
}

// TestStoryNodeLost: a node is lost for good after the drain, and a new one
// takes over its targets.
func TestStoryNodeLost(t *testing.T) {
	t.Parallel()
	k := startTrio(t)
	one := k.attach("job", "launch 1")
	k.save("job", 1, one)
	k.wait("job@1#1", catalog.Verified)
	lost := k.nodes[1]
	lost.kill()
	if err := os.RemoveAll(filepath.Join(lost.dir, "data")); err != nil {
		t.Fatal(err)
	}
	c := k.add("n4", "127.0.0.4:0", "--remote", remoteFlag(lost, 0), "--remote", remoteFlag(lost, 1), "--remote", remoteFlag(lost, 2))
	mustLoad(t, c, "job@1")
	// The job goes on: with one attempt more, on other nodes.
	k.c[1] = c
	two := k.attach("job", "launch 2")
	k.save("job", 2, two)
	mustWait(t, c, "job@2#2", catalog.Local)
	mustLoad(t, c, "job@latest")
}

// TestStoryCatalogAway: NATS is gone during the saves. They go on to the
// disks, and the votes come when it is back, also over a restart of a daemon.
func TestStoryCatalogAway(t *testing.T) {
	t.Parallel()
	k := startTrio(t)
	one := k.attach("job", "launch 1")
	k.save("job", 1, one)
	k.wait("job@1#1", catalog.Local)
	k.natsDown()
	k.save("job", 2, one)
	eventually(t, "the shards on the disks", func() error {
		for rank := range world {
			if _, err := os.Stat(shardFile(t, k.nodes[rank%3], "job@2#1", rank)); err != nil {
				return err
			}
		}
		return nil
	})
	k.mustNotList("job", 2)
	for i := range k.nodes { // what was there loads meanwhile, from disks and peers
		mustLoad(t, k.c[i], "job@1")
	}
	k.natsUp()
	k.wait("job@2#1", catalog.Local)
	mustLoad(t, k.c[1], "job@2")

	// Again, and this time another launch attaches before one node's votes are
	// delivered: its shards are dropped, and the set is never listed.
	k.natsDown()
	k.save("job", 3, one)
	for rank := range world {
		eventually(t, "a shard on the disk", func() error {
			_, err := os.Stat(shardFile(t, k.nodes[rank%3], "job@3#1", rank))
			return err
		})
	}
	for _, d := range k.nodes {
		d.kill()
	}
	k.natsUp()
	k.nodes[0].start() // votes at once, if it may: it must not be first
	k.c[0] = k.nodes[0].dial()
	two, err := k.c[0].Attach(t.Context(), "job", "launch 2", world)
	if err != nil || two != 2 {
		t.Fatalf("attach: %d, %v", two, err)
	}
	for i := 1; i < 3; i++ {
		k.nodes[i].start()
		k.c[i] = k.nodes[i].dial()
		eventually(t, "the fenced shards are gone", func() error {
			if _, err := os.Stat(shardFile(t, k.nodes[i], "job@3#1", i)); err == nil {
				return errors.New("still there")
			}
			return nil
		})
	}
	k.mustNotList("job", 3)
}

// TestStoryRebuild: the catalog's store is removed, and the tiers give the
// same list again.
func TestStoryRebuild(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1").start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "job", "launch 1", 2)
	if err != nil {
		t.Fatal(err)
	}
	pair := func(step int64) {
		t.Helper()
		for rank := range 2 {
			if _, err := save(ctx, c, "job", step, one, rank, 2, 100_000); err != nil {
				t.Fatal(err)
			}
		}
	}
	for step := range int64(3) {
		pair(step)
		mustWait(t, c, "job@latest", catalog.Local)
	}
	for _, ref := range []string{"job@0#1", "job@1#1", "job@2#1"} {
		mustWait(t, c, ref, catalog.Verified)
	}
	yes := "yes"
	if _, err := c.Tag(ctx, "job@1", map[string]*string{"good": &yes}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Pin(ctx, "job@2", true); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Remove(ctx, "job@0"); err != nil {
		t.Fatal(err)
	}
	before, err := c.Sets(ctx, "job", false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range before { // the copies of the records follow the catalog
		eventually(t, "the record beside the shards", func() error {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(shardFile(t, d, s.ID, 0)), "set.json"))
			if err == nil && (s.Pinned && !bytes.Contains(b, []byte(`"pinned":true`)) || s.Tags != nil && !bytes.Contains(b, []byte(`"good"`)) || !bytes.Contains(b, []byte(`"verified"`))) {
				err = errors.New("it is old")
			}
			return err
		})
	}
	eventually(t, "the tombstone beside the shards", func() error {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(shardFile(t, d, "job@0#1", 0)), "set.json"))
		if err == nil && !bytes.Contains(b, []byte(`"pruned"`)) {
			err = errors.New("it is old")
		}
		return err
	})
	d.kill()
	if err := os.RemoveAll(filepath.Join(d.dir, "data", "catalog")); err != nil {
		t.Fatal(err)
	}
	d.start()
	c = d.dial()
	if got := listed(t, c, "job"); len(got) > 0 {
		t.Errorf("before the rebuild: %v", got)
	}
	res, err := c.Rebuild(ctx, nil)
	if err != nil || len(res.Problems) > 0 {
		t.Fatalf("rebuild: %+v, %v", res, err)
	}
	after, err := c.Sets(ctx, "job", false)
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Fatalf("%d sets, before there were %d", len(after), len(before))
	}
	for i, b := range before {
		a := after[i]
		if a.ID != b.ID || a.Level != b.Level || a.Pinned != b.Pinned || a.Tags["good"] != b.Tags["good"] || a.Size != b.Size || a.Manifest != b.Manifest || !a.Committed.Equal(b.Committed) {
			t.Errorf("got  %+v\nwant %+v", a, b)
		}
		mustLoad(t, c, a.ID)
		mustLoad(t, c, a.ID, "remote")
	}
	if two, err := c.Attach(ctx, "job", "launch 2", 2); err != nil || two != one+1 {
		t.Errorf("the next attempt is %d, %v, want %d", two, err, one+1)
	}
}

// TestStorySecondDaemon: one data directory, two daemons: the second refuses
// to start, and the first does not notice.
func TestStorySecondDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1").start()
	second := newDaemon(t, "n2")
	second.flags = append(second.flags, "--data", filepath.Join(d.dir, "data"))
	cmd := exec.Command(os.Args[0], second.flags...)
	cmd.Env = append(os.Environ(), asDaemon+"=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 6 || !strings.Contains(string(out), "another daemon") {
		t.Errorf("the second daemon: %v\n%s", err, out)
	}
	if _, err := d.dial().Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestStoryNoSpace: what does not fit is refused before a byte moves, with
// advice; pruning makes room.
func TestStoryNoSpace(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--quota", "10MiB", "--remote", "none", "--grace", "1ms").start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "job", "launch 1", 1)
	if err != nil {
		t.Fatal(err)
	}
	for step := range int64(2) {
		if _, err := save(ctx, c, "job", step, one, 0, 1, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	mustWait(t, c, "job@1#1", catalog.Local)
	mustWait(t, c, "job@0#1", catalog.Local)
	moved := &gate{open: func() { t.Error("bytes moved before the refusal") }}
	s, err := c.Save(ctx, ckpt.At("job", 2), ckpt.Attempt(one))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tensor("w", "U8", []int64{4 << 20}, moved); err != nil {
		t.Fatal(err)
	}
	_, err = s.Commit(ctx)
	if !errors.Is(err, catalog.ErrNoSpace) || !strings.Contains(hint(err), "ckpt prune") {
		t.Errorf("a save that does not fit: %v, hint %q", err, hint(err))
	}
	if _, err := c.Prune(ctx, "job", &catalog.Retention{KeepLast: 1}, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room for the next", func() error {
		_, err := save(ctx, c, "job", 3, one, 0, 1, 4<<20)
		return err
	})
	mustWait(t, c, "job@3#1", catalog.Local)
	mustLoad(t, c, "job@latest")
}

// TestStoryPrune: pins, leases and the newest stay; a dry run says exactly
// what the real one does.
func TestStoryPrune(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "n1", "--grace", "1ms").start()
	c, ctx := d.dial(), t.Context()
	one, err := c.Attach(ctx, "job", "launch 1", 1)
	if err != nil {
		t.Fatal(err)
	}
	for step := range int64(5) {
		set, err := save(ctx, c, "job", step, one, 0, 1, 100_000)
		if err != nil {
			t.Fatal(err)
		}
		if err := set.Wait(ctx, catalog.Verified); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Pin(ctx, "job@1", true); err != nil {
		t.Fatal(err)
	}
	r, err := c.Open(ctx, "job@2")
	if err != nil {
		t.Fatal(err)
	}
	dry, err := c.Prune(ctx, "job", &catalog.Retention{KeepLast: 1}, true)
	if err != nil {
		t.Fatal(err)
	}
	if len(listed(t, c, "job")) != 5 {
		t.Error("a dry run removed something")
	}
	real, err := c.Prune(ctx, "job", &catalog.Retention{KeepLast: 1}, false)
	if err != nil {
		t.Fatal(err)
	}
	var plan, done []string
	for i := range dry.Remove {
		plan = append(plan, dry.Remove[i].ID)
	}
	for i := range real.Remove {
		done = append(done, real.Remove[i].ID)
	}
	if got, want := strings.Join(done, " "), "job@3#1 job@0#1"; got != want || strings.Join(plan, " ") != want {
		t.Errorf("removed %q, planned %q, want %q", got, plan, want)
	}
	p := make([]byte, r.Manifest().Shards[0].Size)
	if err := r.ReadShard(ctx, 0, p); err != nil { // the lease held
		t.Error(err)
	}
	if _, err := c.Remove(ctx, "job@1"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("remove a pinned set: %v, want ErrConflict", err)
	}
	if _, err := c.Remove(ctx, "job@2"); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("remove a set that is read: %v, want ErrConflict", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the lease has ended", func() error {
		_, err := c.Remove(ctx, "job@2")
		return err
	})
	for _, step := range []string{"job@0#1", "job@2#1", "job@3#1"} {
		eventually(t, "the bytes are gone", func() error {
			if _, err := os.Stat(shardFile(t, d, step, 0)); !errors.Is(err, os.ErrNotExist) {
				return errors.New("the shard is there")
			}
			return nil
		})
	}
	mustLoad(t, c, "job@1")
	mustLoad(t, c, "job@latest")
}
