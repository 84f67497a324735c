package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ckptd/ckptd/catalog"
	"github.com/ckptd/ckptd/sdk/wire"
)

var rewrite = flag.Bool("rewrite", false, "write testdata/*.golden anew; then read the diff like code")

// golden compares what a function prints with its file.
func golden(t *testing.T, name string, print func(w io.Writer)) {
	t.Helper()
	var b bytes.Buffer
	print(&b)
	path := filepath.Join("testdata", name+".golden")
	if *rewrite {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b.Bytes(), want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, b.Bytes(), want)
	}
}

func TestPrints(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return at.Add(-d) }
	a := &app{now: func() time.Time { return at }}
	set := wire.Set{
		Ref: "llama/7b@1200", ID: "llama/7b@1200#3", Run: "llama/7b", Step: 1200, Attempt: 3, State: catalog.Committed, Level: catalog.Verified,
		World: 8, Size: 13_480_000_000, Begun: ago(5 * time.Minute), Committed: ago(5*time.Minute - 1700*time.Millisecond),
		Tags: map[string]string{"good": "yes", "best": ""}, Metrics: map[string]float64{"loss": 1.9}, Manifest: catalog.Digest{1, 2, 3},
	}
	writing := wire.Set{Ref: "llama/7b@1300", ID: "llama/7b@1300#3", Run: "llama/7b", Step: 1300, Attempt: 3, State: catalog.Writing, World: 8, Begun: ago(3 * time.Second), Pinned: true}
	place := &catalog.Place{Blob: "b", Layout: "2+1", Unit: 1 << 20, Targets: []string{"t2", "t0", "t1"}}

	golden(t, "runs", func(w io.Writer) {
		a.printRuns(w, []wire.Run{{Name: "llama/7b", Sets: 12, Size: 1 << 40, Latest: &set}, {Name: "x", Sets: 0}})
	})
	golden(t, "sets", func(w io.Writer) { a.printSets(w, []wire.Set{writing, set}, true) })
	golden(t, "show", func(w io.Writer) {
		a.printDetail(w, &wire.SetDetail{
			Set: set,
			Shards: []wire.Shard{
				{Rank: 0, Size: 1 << 30, Local: []string{"n1", "n2"}, Level: catalog.Verified, Remote: place, Path: "/data/rank-00000.safetensors"},
				{Rank: 1, Size: 1 << 20, Level: catalog.Local, Bad: "block 3: CRC32C"},
			},
			Missing: []int{2, 3, 4, 7},
			Events:  []catalog.Event{{Time: ago(time.Minute), Node: "n1", What: "durable", Detail: "ranks 0 1"}, {Time: ago(time.Second), Node: "n2", What: "committed"}},
			Tensors: []catalog.Tensor{{Name: "model.embed", DType: "BF16", Shape: []int64{32000, 4096}, Size: 262144000}, {Name: "w", DType: "F32", Shape: []int64{2, 2}, Size: 16, Global: []int64{4, 2}, Start: []int64{2, 0}}},
		})
	})
	golden(t, "show-writing", func(w io.Writer) { a.printDetail(w, &wire.SetDetail{Set: writing}) })
	golden(t, "why", func(w io.Writer) {
		printWhy(w, &wire.Why{Story: []string{"begun", "rank 1 never sealed"}, Missing: []string{"rank 1 has no vote"}, Older: "llama/7b@1100"})
	})
	golden(t, "status", func(w io.Writer) { a.printStatus(w, statusOf(ago)) })
	golden(t, "prune", func(w io.Writer) {
		printPrune(w, &wire.Prune{Keep: []wire.PruneItem{{Set: set, Why: "newest"}}, Remove: []wire.PruneItem{{Set: writing, Why: "no rule keeps it"}}, Freed: 1 << 33})
	})
	golden(t, "verify", func(w io.Writer) {
		printVerify(w, &wire.VerifyResult{Sets: 1, Copies: 6, Bytes: 1 << 31, Bad: []wire.BadCopy{{ID: "a@1#1", Rank: -1, Tier: "remote", Err: "gone"}, {ID: "a@1#1", Rank: 3, Tier: "local", Node: "n1", Err: "block 7"}}})
	})
	golden(t, "repair", func(w io.Writer) {
		printRepair(w, &wire.RepairResult{Started: true})
		printRepair(w, &wire.RepairResult{Blobs: 12, Mended: 11, Columns: 3, Bytes: 3 << 30, Left: []string{"run@1#1 rank 0: column 2 on t4 (missing): no space"}})
		printScrub(w, &wire.ScrubResult{Started: true, Targets: 1})
		printScrub(w, &wire.ScrubResult{Targets: 6, Columns: 4000, Bytes: 1 << 40, Bad: 2, Mended: 2, Extra: 1})
		printRebalance(w, &wire.RebalanceResult{DryRun: true, Columns: 5, Bytes: 5 << 30, Least: 0.1, Most: 0.62, Moves: []wire.RebalanceMove{{From: "t0", To: "t9", Columns: 4, Bytes: 4 << 30}, {From: "t1", To: "t9", Columns: 1, Bytes: 1 << 30}}})
		printRebalance(w, &wire.RebalanceResult{Least: 0.4, Most: 0.43})
	})
	golden(t, "fsck", func(w io.Writer) {
		printFsck(w, &wire.FsckResult{Sets: 2, Problems: []wire.FsckProblem{{ID: "a@1#1", What: "shard 0 is not where it should be"}, {What: "a stray file", Mended: true}}})
	})
	golden(t, "rebuild", func(w io.Writer) {
		printRebuild(w, &wire.RebuildResult{Runs: 1, Sets: 20, Shards: 160, Problems: []string{"a@3: rank 2 is nowhere"}})
	})
	golden(t, "nodes", func(w io.Writer) {
		a.printNodes(w, []wire.Node{{NodeRecord: catalog.NodeRecord{Name: "n1", Seen: ago(2 * time.Second), Used: 1 << 30, Capacity: 1 << 40, Addr: "10.0.0.1:7070"}, Alive: true}, {NodeRecord: catalog.NodeRecord{Name: "n2", Seen: ago(72 * time.Hour), Trouble: []string{"disk", "clock"}}}})
	})
	golden(t, "targets", func(w io.Writer) {
		a.printTargets(w, []wire.Target{
			{Name: "t0", State: catalog.TargetUp, Domain: "rack1", Scheme: "tcp", Addrs: []string{"10.0.0.1:7000", "10.1.0.1:7000"}, Free: 1 << 40, Total: 1 << 41, Columns: 1200, Latency: 0.00031, Seen: ago(2 * time.Second)},
			{Name: "t1", State: catalog.TargetDown, Pool: "fast", Scheme: "tls", Addrs: []string{"10.0.0.2:7000"}, Columns: -1, Errors: 3, Err: "connection refused", Trouble: "down: nobody reaches it: connection refused"},
			{Name: "t2", Node: "n1", Scheme: "dir", Addrs: []string{"/data/t2"}, Columns: -1, Free: 1 << 20, Total: 1 << 40, Full: true, Trouble: "full: new columns go elsewhere"},
		})
	})
	golden(t, "policy", func(w io.Writer) {
		printPolicy(w, catalog.Policy{Layout: "4+2", Unit: 1 << 20, NoVerify: true, Remote: "lustre", Compress: "zstd", Replicas: 1, Incomplete: time.Hour,
			Retention: catalog.Retention{KeepLast: 3, KeepEvery: 1000, KeepWithin: 7 * 24 * time.Hour, KeepBest: "loss:min", KeepLevel: catalog.Remote}})
	})
	half := 0.5
	golden(t, "diff", func(w io.Writer) {
		printDiff(w, &diffResult{
			Added: []diffTensor{{Name: "new", DType: "F32", Shape: []int64{2}, Size: 8}}, Removed: []diffTensor{{Name: "old", DType: "U8", Shape: []int64{}, Size: 1}},
			Changed: []diffTensor{{Name: "w", DType: "BF16", Shape: []int64{1 << 20}, Size: 2 << 20, Bytes: 5, MaxDiff: &half, NotNums: 1}, {Name: "x", DType: "F32", Shape: []int64{2, 3}, Size: 24, Was: "F64 [2,3]"}}, Same: 7,
		})
	})
}

func TestDatasetPrints(t *testing.T) {
	at := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	a := &app{now: func() time.Time { return at }}
	v := wire.DatasetVersion{
		Ref: "imagenet@2", ID: "_datasets/imagenet@2#5", Name: "imagenet", Version: 2, State: catalog.Committed, Level: catalog.Verified,
		Begun: at.Add(-time.Hour), Committed: at.Add(-time.Hour + 1500*time.Millisecond), Digest: catalog.Digest{1, 2, 3},
		Files: 1_281_167, Bytes: 150 << 30, Samples: 1_281_167, Packs: 601, Stored: 151 << 30, Pinned: true, Tags: map[string]string{"split": "train"},
	}
	broken := v
	broken.Ref, broken.Version, broken.Pinned, broken.Tags = "imagenet@1", 1, false, nil
	broken.Level, broken.Missing = catalog.LevelNone, []string{"_packs/imagenet@7#1", "_packs/imagenet@8#1", "_packs/imagenet@9#1", "_packs/imagenet@10#1", "_packs/imagenet@11#1", "_packs/imagenet@12#1"}
	unknown := wire.DatasetVersion{Ref: "text@1", Name: "text", Version: 1, State: catalog.Committed, Committed: at.Add(-48 * time.Hour), Err: "packs of text@1: no copy of the index is left: corrupt"}
	golden(t, "datasets", func(w io.Writer) {
		a.printDatasets(w, []wire.Dataset{{Name: "imagenet", Versions: 2, Packs: 700, Stored: 160 << 30, Latest: &v}, {Name: "new", Packs: 1, Stored: 1 << 20}, {Name: "text", Versions: 1, Stored: 1 << 30, Latest: &unknown}})
	})
	golden(t, "dataset-versions", func(w io.Writer) {
		a.printVersions(w, []wire.DatasetVersion{{Ref: "imagenet@3", Version: 3, State: catalog.Writing, Begun: at.Add(-time.Second)}, v, broken})
	})
	golden(t, "dataset-show", func(w io.Writer) {
		a.printVersion(w, &wire.DatasetDetail{
			DatasetVersion: v, Schema: `{"format":"tree"}`, Leases: []string{"n1-versions-17"},
			PackList: []wire.DatasetPack{{Pack: 0, ID: "_packs/imagenet@3#1", Size: 256 << 20, Samples: 2000, Level: catalog.Verified, Shared: true}, {Pack: 1, ID: "_packs/imagenet@7#1", Size: 1 << 30, Raw: true, Samples: 1}},
			Events:   []catalog.Event{{Time: at.Add(-time.Minute), Node: "n1", What: "committed", Detail: "1 shards"}},
		})
	})
	golden(t, "dataset-verify", func(w io.Writer) {
		printVersionVerify(w, &wire.VerifyResult{Sets: 3, Copies: 6, Bytes: 1 << 31, Bad: []wire.BadCopy{{ID: "_packs/imagenet@7#1", Rank: -1, Tier: "any", Err: "the catalog has no such pack"}, {ID: "_packs/imagenet@3#1", Tier: "local", Node: "n1", Err: "block 7"}}})
	})
}

func statusOf(ago func(time.Duration) time.Time) *wire.Status {
	s := &wire.Status{Node: "n1", Version: "v1", Started: ago(50 * time.Hour), Socket: "/run/s", Data: "/data", Trouble: []string{"disk /d1: read-only"}}
	s.Catalog.URL, s.Catalog.Sets, s.Catalog.Coordinator = "nats://x", 1, "n2"
	s.Arena.Size, s.Arena.Lent, s.Arena.Waiting = 8<<30, 1<<30, 2
	s.Local.Used, s.Local.Quota, s.Local.Free = 5<<30, 1<<40, 7<<30
	s.Local.Disks = []wire.Disk{{Dir: "/d0", Used: 5 << 30, Free: 7 << 30}, {Dir: "/d1", Err: "read-only"}}
	s.Remote.Layout = "4+2"
	s.Remote.Targets = []wire.Target{{Name: "t0", Free: 1 << 40, Total: 1 << 41}, {Name: "t1", Domain: "rack2", Err: "gone"}, {Name: "t2", Pool: "fast", Free: 1, Total: 1 << 40, State: catalog.TargetDraining, Trouble: "draining: its columns move away"}}
	s.Drafts = []wire.Draft{
		{Name: "llama/7b@1300", Files: 16, Bytes: 3 << 30, Writers: 2, Changed: ago(0)},
		{Name: "llama/7b@1200", Files: 16, Bytes: 4 << 30, Changed: ago(time.Minute), Committing: true},
		{Name: "old@1", Files: 1, Bytes: 9, Changed: ago(50 * time.Hour), Until: ago(-22 * time.Hour)},
	}
	s.Cache.Reading = []wire.Reader{{ID: "s1/a", Set: "_datasets/pets@3#1", Rank: 1, World: 8, At: 4096, Ahead: 4, Lookahead: 65536, Retries: 1}}
	s.Mounts = []wire.Mount{{Dir: "/mnt/a", Mounted: true, Passthrough: true, Open: 1, Ahead: 4, FetchedAhead: 17, Retries: 4}, {Dir: "/mnt/b", Mounted: true, Why: "the process may not: it needs CAP_SYS_ADMIN"}, {Dir: "/mnt/c"}}
	s.Backlog.Drain, s.Backlog.DrainBytes = 3, 3<<30
	return s
}

func TestHumanNumbers(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 1<<20 - 1: "1.0 MiB", 1536 << 20: "1.5 GiB", 1<<63 - 1: "8.0 EiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 90 * time.Minute: "1h", 47 * time.Hour: "47h", 49 * time.Hour: "2d"} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
	for s, want := range map[string]time.Duration{"7d": 168 * time.Hour, "2w": 336 * time.Hour, "90m": 90 * time.Minute, "1.5d": 36 * time.Hour} {
		if got, err := parseSpan(s); err != nil || got != want {
			t.Errorf("parseSpan(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "d", "-1d", "7", "1e9d", "x"} {
		if _, err := parseSpan(s); err == nil {
			t.Errorf("parseSpan(%q) gives no error", s)
		}
	}
	if got := ranksOf([]int{0, 1, 2, 5, 7, 8}); got != "0-2,5,7-8" {
		t.Errorf("ranksOf = %q", got)
	}
}

func TestProgress(t *testing.T) {
	p := wire.Progress{What: "restore", Done: 256 << 20, Total: 1 << 30, Unit: "bytes"}
	for want, got := range map[string]string{
		"restore  25% 256.0 MiB of 1.0 GiB, 128.0 MiB/s, 6s left":                            progressLine(p, 2*time.Second, false),
		"restore [######..................]  25% 256.0 MiB of 1.0 GiB, 128.0 MiB/s, 6s left": progressLine(p, 2*time.Second, true),
		"fsck 7 sets": progressLine(wire.Progress{What: "fsck", Done: 7, Unit: "sets"}, time.Second, true),
	} {
		if got != want {
			t.Errorf("got  %q\nwant %q", got, want)
		}
	}
	// Piped: a line every few seconds, none for what is quick.
	var out bytes.Buffer
	now := time.Unix(0, 0)
	a := &app{err: &out, now: func() time.Time { return now }}
	q := a.progress("save", 100, "bytes")
	for range 10 {
		q.add(10)
		now = now.Add(time.Second)
	}
	q.end()
	if got, want := out.String(), "save  60% 60 B of 100 B, 12 B/s, 3s left\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
