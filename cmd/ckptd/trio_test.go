package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
	"github.com/ckptd/ckptd/sdk/ckpt"
	"github.com/ckptd/ckptd/sdk/wire"
)

// trio is three daemons on addresses of their own that share one NATS.
type trio struct {
	t     *testing.T
	store string // of NATS
	addr  string
	nats  *natscatalog.Server // nil: away
	nodes []*daemon
	c     []*ckpt.Client
}

const world = 8 // ranks, over three nodes

func startTrio(t *testing.T, flags ...string) *trio {
	t.Helper()
	k := &trio{t: t, store: t.TempDir(), addr: "127.0.0.1:0"}
	k.natsUp()
	t.Cleanup(k.natsDown)
	for i := range 3 {
		k.add(fmt.Sprintf("n%d", i+1), fmt.Sprintf("127.0.0.%d:0", i+1), flags...)
	}
	return k
}

// add starts one more daemon. Its targets have names of their own.
func (k *trio) add(name, listen string, flags ...string) *ckpt.Client {
	k.t.Helper()
	d := newDaemon(k.t, name)
	d.flags = append(d.flags, "--listen", freePort(k.t, listen), "--nats", "nats://"+k.addr)
	if !slices.Contains(flags, "--remote") {
		for i := range 3 {
			d.flags = append(d.flags, "--remote", remoteFlag(d, i))
		}
	}
	d.flags = append(d.flags, flags...)
	k.nodes = append(k.nodes, d.start())
	k.c = append(k.c, d.dial())
	return k.c[len(k.c)-1]
}

func remoteFlag(d *daemon, i int) string {
	return fmt.Sprintf("dir:%s,name=%s-t%d", targetDir(d, i), d.name, i)
}

func targetDir(d *daemon, i int) string { return filepath.Join(d.dir, "targets", fmt.Sprint(i)) }

// freePort keeps the address and finds a port; the daemon must have the same
// one after a restart.
func freePort(t testing.TB, addr string) string {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

func (k *trio) natsUp() {
	k.t.Helper()
	s, err := natscatalog.Embed(k.store, natscatalog.EmbedOptions{Listen: k.addr})
	if err != nil {
		k.t.Fatal(err)
	}
	k.nats, k.addr = s, strings.TrimPrefix(s.ClientURL(), "nats://")
}

func (k *trio) natsDown() {
	if k.nats == nil {
		return
	}
	if err := k.nats.Close(); err != nil {
		k.t.Errorf("NATS: %v", err)
	}
	k.nats = nil
}

// attach begins a launch.
func (k *trio) attach(run, launch string) int {
	k.t.Helper()
	n, err := k.c[0].Attach(k.t.Context(), run, launch, world)
	if err != nil {
		k.t.Fatalf("attach %s to %s: %v", launch, run, err)
	}
	return n
}

// save seals the given ranks (none: all) of a step, rank by rank over the nodes.
func (k *trio) save(run string, step int64, attempt int, ranks ...int) {
	k.t.Helper()
	if len(ranks) == 0 {
		ranks = []int{0, 1, 2, 3, 4, 5, 6, 7}
	}
	var g errgroup.Group
	for _, rank := range ranks {
		g.Go(func() error {
			_, err := k.trySave(run, step, attempt, rank)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		k.t.Fatalf("save %s@%d: %v", run, step, err)
	}
}

func (k *trio) trySave(run string, step int64, attempt, rank int) (*ckpt.Set, error) {
	return save(k.t.Context(), k.c[rank%3], run, step, attempt, rank, world, 300_000+rank*200_000)
}

// wait waits until every node of the cluster sees the set at the level.
func (k *trio) wait(ref string, level catalog.Level) {
	k.t.Helper()
	for i, d := range k.nodes {
		if d.cmd != nil {
			mustWait(k.t, k.c[i], ref, level)
		}
	}
}

// mustNotList says that no node shows any of the run's sets at this step.
func (k *trio) mustNotList(run string, step int64) {
	k.t.Helper()
	for i, d := range k.nodes {
		if d.cmd == nil {
			continue
		}
		for id := range listed(k.t, k.c[i], run) {
			if strings.HasPrefix(id, fmt.Sprintf("%s@%d#", run, step)) {
				k.t.Errorf("%s lists %s", d.name, id)
			}
		}
	}
}

// leader is the index of the node that coordinates.
func (k *trio) leader() (leader int) {
	k.t.Helper()
	eventually(k.t, "a coordinator", func() error {
		for i, d := range k.nodes {
			if d.cmd == nil {
				continue
			}
			s, err := k.c[i].Status(k.t.Context())
			if err != nil {
				return err
			}
			for j, other := range k.nodes {
				if other.name == s.Catalog.Coordinator && other.cmd != nil {
					leader = j
					return nil
				}
			}
		}
		return fmt.Errorf("nobody leads")
	})
	return leader
}

// detail asks the first living node about a set.
func (k *trio) detail(ref string) *wire.SetDetail {
	k.t.Helper()
	for i, d := range k.nodes {
		if d.cmd == nil {
			continue
		}
		s, err := k.c[i].Set(k.t.Context(), ref, false)
		if err != nil {
			k.t.Fatalf("show %s: %v", ref, err)
		}
		return s
	}
	k.t.Fatal("nobody lives")
	return nil
}

// why is the story of a set and what it lacks, as text.
func why(t testing.TB, c *ckpt.Client, ref string) string {
	t.Helper()
	w, err := c.Why(t.Context(), ref)
	if err != nil {
		t.Fatalf("why %s: %v", ref, err)
	}
	return strings.Join(append(w.Story, w.Missing...), "\n") + "\nolder: " + w.Older
}

// shardFile is the path of a rank's shard on the disks of a daemon.
func shardFile(t testing.TB, d *daemon, id string, rank int) string {
	t.Helper()
	var ref catalog.Ref
	ref, err := catalog.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	name := catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}.ShardName(rank)
	return filepath.Join(d.dir, "data", "local", "shards", filepath.FromSlash(name))
}

// flip damages one byte of a file.
func flip(t testing.TB, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
}

// columns are the files of a blob on a daemon's targets, by column.
func columns(t testing.TB, d *daemon, id string, rank int) []string {
	t.Helper()
	ref, err := catalog.ParseRef(id)
	if err != nil {
		t.Fatal(err)
	}
	return columnsOf(t, d, catalog.SetID{Run: ref.Run, Step: ref.Step, Attempt: ref.Attempt}.ShardName(rank))
}

// columnsOf lists the files of a blob's columns, in the order of the columns.
func columnsOf(t testing.TB, d *daemon, name string) []string {
	t.Helper()
	var all []string
	for i := range 3 {
		found, err := filepath.Glob(filepath.Join(targetDir(d, i), "columns", filepath.FromSlash(name), "*.col"))
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, found...)
	}
	slices.SortFunc(all, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) })
	return all
}

// short bounds a call that must fail by itself.
func short(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), patience)
}
