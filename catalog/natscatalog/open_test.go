package natscatalog_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/catalog/natscatalog"
)

// A bucket made by others is refused when it would lose records, and mended
// where that is safe.
func TestOpenOfForeignBucket(t *testing.T) {
	nc := inProcess(t, embed(t, t.TempDir(), natscatalog.EmbedOptions{}))
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]jetstream.KeyValueConfig{
		"memory":  {Storage: jetstream.MemoryStorage},
		"aging":   {TTL: time.Hour},
		"history": {History: 5},
		"small":   {MaxValueSize: 1000},
	} {
		config.Bucket = name
		if _, err := js.CreateKeyValue(t.Context(), config); err != nil {
			t.Fatal(err)
		}
		if _, err := natscatalog.Open(t.Context(), nc, name, natscatalog.Options{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Open of bucket %s: %v, want ErrInvalid", name, err)
		}
	}
	kv, err := js.CreateKeyValue(t.Context(), jetstream.KeyValueConfig{Bucket: "plain"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := kv.PutString(t.Context(), "theirs", "x"); err != nil {
		t.Fatal(err)
	}
	d := open(t, nc, "plain", natscatalog.Options{})
	r, err := d.Get(t.Context(), "theirs")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Swap(t.Context(), "theirs", r.Rev, nil); err != nil {
		t.Errorf("Delete in a bucket that had no per-message TTL: %v", err)
	}
	// And the other way round: their tools read ours, and their deletions count.
	persist(t, d, "ours", 0, "y")
	if e, err := kv.Get(t.Context(), "ours"); err != nil || string(e.Value()) != "y" {
		t.Errorf("the key-value client reads %v, %v", e, err)
	}
	if err := kv.Purge(t.Context(), "ours"); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(t.Context(), "ours"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Get of a purged key: %v", err)
	}
	persist(t, d, "ours", 0, "z")
	for _, bad := range []string{"", "a.b", "a b", strings.Repeat("x", 65)} {
		if _, err := natscatalog.Open(t.Context(), nc, bad, natscatalog.Options{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Open of bucket %q: %v", bad, err)
		}
	}
}

// Promise 5: a full bucket refuses; it drops nothing.
func TestFullBucket(t *testing.T) {
	d := open(t, inProcess(t, embed(t, t.TempDir(), natscatalog.EmbedOptions{})), "small", natscatalog.Options{MaxBytes: 64 << 10})
	n := 0
	for ; n < 100; n++ {
		if _, err := d.Swap(t.Context(), fmt.Sprintf("k.%d", n), 0, make([]byte, 4<<10)); err != nil {
			if !errors.Is(err, catalog.ErrNoSpace) {
				t.Errorf("Swap into a full bucket: %v, want ErrNoSpace", err)
			}
			break
		}
	}
	if got := collect(t, d); n == 100 || len(got) != n {
		t.Errorf("%d records of %d are left", len(got), n)
	}
}

// Promise 4: nothing waits for ever, and nothing is queued.
func TestServerAway(t *testing.T) {
	nc := connect(t, "nats://"+ports(t, 1)[0]) // nobody is there, yet a connection is given
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := natscatalog.Open(ctx, nc, "catalog", natscatalog.Options{}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Open with no server: %v", err)
	}
	if took := time.Since(start); took > 2*time.Second {
		t.Errorf("Open took %v", took)
	}
	s := embed(t, t.TempDir(), natscatalog.EmbedOptions{Listen: "127.0.0.1:0"})
	d := open(t, connect(t, s.ClientURL()), "catalog", natscatalog.Options{Timeout: time.Second})
	rev := persist(t, d, "a", 0, "x")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	start = time.Now()
	_, err := d.Get(t.Context(), "a")
	unavailable(t, "Get", err)
	_, err = d.Swap(t.Context(), "a", rev, []byte("y"))
	unavailable(t, "Swap", err)
	_, err = d.Head(t.Context(), "")
	unavailable(t, "Head", err)
	err = nil
	for _, err = range d.List(t.Context(), "") {
	}
	unavailable(t, "List", err)
	err = nil
	for _, err = range d.Watch(t.Context(), "") {
	}
	unavailable(t, "Watch", err)
	if took := time.Since(start); took > 6*time.Second {
		t.Errorf("five calls without a server took %v", took)
	}
}

func unavailable(t *testing.T, what string, err error) {
	t.Helper()
	if !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("%s without a server: %v, want ErrUnavailable", what, err)
	}
}

// A server that accepts and then says nothing does not hold anybody up.
func TestServerSilent(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	nc := connect(t, "nats://"+l.Addr().String())
	if _, err := natscatalog.Open(ctx, nc, "catalog", natscatalog.Options{}); !errors.Is(err, catalog.ErrUnavailable) {
		t.Errorf("Open: %v", err)
	}
}

func TestConnectToNonsense(t *testing.T) {
	for _, url := range []string{"nats://127.0.0.1:notaport", "nats://a b:4222"} {
		if nc, err := natscatalog.Connect(url, natscatalog.ConnectOptions{}); !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Connect(%q) = %v, %v; want ErrInvalid", url, nc, err)
		}
	}
	if _, err := natscatalog.Connect("nats://127.0.0.1:1", natscatalog.ConnectOptions{Creds: "/no/such/file"}); !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Connect with missing credentials: %v", err)
	}
}

// Contract 13: loopback, or TLS and a token, or told so.
func TestListenRules(t *testing.T) {
	for _, listen := range []string{"0.0.0.0:0", ":0", "192.0.2.1:4222", "no port", "127.0.0.1:x"} {
		s, err := natscatalog.Embed(t.TempDir(), natscatalog.EmbedOptions{Listen: listen})
		if !errors.Is(err, catalog.ErrInvalid) {
			t.Errorf("Embed listening on %s: %v, want ErrInvalid", listen, err)
		}
		if err == nil {
			_ = s.Close()
		}
	}
	_, err := natscatalog.Embed(t.TempDir(), natscatalog.EmbedOptions{Cluster: natscatalog.Cluster{Name: "c", Listen: "0.0.0.0:0"}})
	if !errors.Is(err, catalog.ErrInvalid) {
		t.Errorf("Embed with routes off loopback: %v, want ErrInvalid", err)
	}
	embed(t, t.TempDir(), natscatalog.EmbedOptions{Listen: "0.0.0.0:0", Insecure: true})
}

func TestToken(t *testing.T) {
	s := embed(t, t.TempDir(), natscatalog.EmbedOptions{Listen: "127.0.0.1:0", Token: "secret"})
	open(t, inProcess(t, s), "catalog", natscatalog.Options{})
	var warnings []string
	nc, err := natscatalog.Connect(s.ClientURL(), natscatalog.ConnectOptions{Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	open(t, nc, "catalog", natscatalog.Options{Warn: func(w string) { warnings = append(warnings, w) }})
	if len(warnings) != 1 || !strings.Contains(warnings[0], "sync_interval") {
		t.Errorf("warnings about a server run by others: %q", warnings)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := natscatalog.Open(ctx, connect(t, s.ClientURL()), "catalog", natscatalog.Options{}); err == nil {
		t.Errorf("Open without the token succeeded")
	}
}

// One server a store; the store is private.
func TestStoreIsLockedAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "nats")
	s := embed(t, dir, natscatalog.EmbedOptions{})
	if s.ClientURL() != "" {
		t.Errorf("a server that does not listen has URL %s", s.ClientURL())
	}
	if _, err := natscatalog.Embed(dir, natscatalog.EmbedOptions{}); !errors.Is(err, catalog.ErrConflict) {
		t.Errorf("second server on one store: %v, want ErrConflict", err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the store is %v, %v", info.Mode(), err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	embed(t, dir, natscatalog.EmbedOptions{})
}
