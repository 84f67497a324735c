package natscatalog_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/catalogtest"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

// ports finds n free ones on loopback.
func ports(t *testing.T, n int) []string {
	t.Helper()
	addrs := make([]string, n)
	for i := range addrs {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		addrs[i] = l.Addr().String()
	}
	return addrs
}

// cluster starts three servers and gives a URL of all of them.
func cluster(t *testing.T) ([]*natscatalog.Server, string) {
	t.Helper()
	routes := ports(t, 3)
	var servers []*natscatalog.Server
	urls := ""
	for i, listen := range ports(t, 3) {
		opt := natscatalog.EmbedOptions{
			Name:    fmt.Sprintf("s%d", i),
			Listen:  listen,
			Cluster: natscatalog.Cluster{Name: "test", Listen: routes[i]},
		}
		for _, r := range routes {
			opt.Cluster.Routes = append(opt.Cluster.Routes, "nats://"+r)
		}
		servers = append(servers, embed(t, t.TempDir(), opt))
		urls += "," + servers[i].ClientURL()
	}
	return servers, urls[1:]
}

func connect(t *testing.T, url string) *nats.Conn {
	t.Helper()
	nc, err := natscatalog.Connect(url, natscatalog.ConnectOptions{Node: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func openCluster(t *testing.T, nc *nats.Conn, bucket string) *natscatalog.Driver {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // the cluster must first elect its leaders
	defer cancel()
	d, err := natscatalog.Open(ctx, nc, bucket, natscatalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestCluster(t *testing.T) {
	servers, url := cluster(t)
	var bucket atomic.Int32
	catalogtest.Run(t, func(t *testing.T) catalog.Driver {
		nc := connect(t, url)
		d := openCluster(t, nc, fmt.Sprintf("b%d", bucket.Add(1)))
		return d
	})
	t.Run("ThreeReplicas", func(t *testing.T) {
		nc := connect(t, url)
		openCluster(t, nc, "replicated")
		if got := replicas(t, nc, "replicated"); got != 3 {
			t.Errorf("Replicas = %d, want 3", got)
		}
	})
	t.Run("KillOne", func(t *testing.T) { killOne(t, servers, url) })
}

func replicas(t *testing.T, nc *nats.Conn, bucket string) int {
	t.Helper()
	return stream(t, nc, bucket).CachedInfo().Config.Replicas
}

func stream(t *testing.T, nc *nats.Conn, bucket string) jetstream.Stream {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "KV_"+bucket)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// killOne stops the leader of the bucket in the middle of a run of swaps: they
// go on, none that returned is lost, and a watch sees the end.
func killOne(t *testing.T, servers []*natscatalog.Server, url string) {
	nc := connect(t, url)
	d := openCluster(t, nc, "survivor")
	m := catalogtest.NewMirror(t, d, "")
	leader := stream(t, nc, "survivor").CachedInfo().Cluster.Leader
	want := make(map[string]string)
	rev := uint64(0)
	for i := range 60 {
		if i == 20 {
			n, err := strconv.Atoi(leader[1:])
			if err != nil {
				t.Fatalf("leader %q: %v", leader, err)
			}
			if err := servers[n].Close(); err != nil {
				t.Fatal(err)
			}
		}
		rev = persist(t, d, "k", rev, strconv.Itoa(i))
		key := fmt.Sprintf("k.%d", i)
		persist(t, d, key, 0, "x")
		want["k"], want[key] = strconv.Itoa(i), "x"
	}
	if got := collect(t, d); !maps.Equal(got, want) {
		t.Errorf("List has %d records, want %d", len(got), len(want))
	}
	if err := m.Wait(t.Context(), func(got map[string]string, _ uint64, _ bool) bool { return maps.Equal(got, want) }); err != nil {
		t.Errorf("the watch did not see the end: %v", err)
	}
}

// persist swaps until it is known to have happened, as a careful caller does:
// after ErrUnavailable it looks.
func persist(t *testing.T, d catalog.Driver, key string, rev uint64, value string) uint64 {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Second)
	defer cancel()
	for {
		next, err := d.Swap(ctx, key, rev, []byte(value))
		if err == nil {
			return next
		}
		if !errors.Is(err, catalog.ErrUnavailable) && !errors.Is(err, catalog.ErrConflict) || ctx.Err() != nil {
			t.Fatal(err)
		}
		if r, err := d.Get(ctx, key); err == nil && string(r.Value) == value {
			return r.Rev
		}
	}
}

func collect(t *testing.T, d catalog.Driver) map[string]string {
	t.Helper()
	got := make(map[string]string)
	for r, err := range d.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		got[r.Key] = string(r.Value)
	}
	return got
}
