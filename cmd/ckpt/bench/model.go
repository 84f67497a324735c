package bench

import (
	"fmt"
	"io"
	"math"
)

// Figures are what one node does, measured. The zero value means those of the
// project's own machine: 2 shared cores, one virtio disk, ext4.
type Figures struct {
	Memcpy  float64 `json:"memcpy"`  // B/s of one rank's save into the arena
	Write   float64 `json:"write"`   // B/s of one NVMe disk, O_DIRECT
	Read    float64 `json:"read"`    // B/s, likewise
	Drain   float64 `json:"drain"`   // s of processor time a GiB, that of the targets included
	Restore float64 `json:"restore"` // s of processor time a GiB from remote, client and targets included
	Records float64 `json:"records"` // synced records a second that the catalog takes
	Commit  float64 `json:"commit"`  // s from the last vote to the listing, 1,024 ranks
}

func (f Figures) withDefaults() Figures {
	def := func(v *float64, d float64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&f.Memcpy, 5.5e9)
	def(&f.Write, 1.8e9)
	def(&f.Read, 2.3e9)
	def(&f.Drain, 1.7)
	def(&f.Restore, 0.85)
	def(&f.Records, 5000)
	def(&f.Commit, 0.03)
	return f
}

// FiguresOf takes what a report has measured.
func FiguresOf(r *Report, size int64) Figures {
	var f Figures
	for _, b := range r.Bars {
		switch b.Name {
		case "save.stall":
			f.Memcpy = float64(size) / b.Value
		case "save.durable.1":
			f.Write = b.Value
		case "restore.local":
			f.Read = b.Value
		case "drain.cpu":
			f.Drain = b.Value
		case "restore.remote.cpu":
			f.Restore = b.Value
		case "commit.p99":
			f.Commit = b.Value
		}
	}
	return f
}

// Step is one row of the model.
type Step struct {
	What  string  `json:"what"`
	Time  float64 `json:"time"` // s; 0: not a time
	Why   string  `json:"why"`  // the arithmetic
	Value string  `json:"value,omitempty"`
}

// The job of the model: a 405B model's state, saved by 512 of 16,384 ranks.
const (
	modelBytes   = 5.3e12 // weights, master weights and two moments
	modelWriters = 512
	modelRanks   = 16384
	modelPerNode = 8     // ranks of a node
	modelDisks   = 4     // NVMe disks of a node
	modelCores   = 96    // of a node
	modelNIC     = 50e9  // B/s a node, 400 Gbit/s
	modelTargets = 64    // of the remote tier
	modelTarget  = 10e9  // B/s each
	modelEvery   = 600.0 // s between two saves
)

// Model takes the measured figures of one node to a job of 16,384 ranks, and
// says where the time goes.
func Model(f Figures) []Step {
	f = f.withDefaults()
	shard := modelBytes / modelWriters
	writerNodes := float64(modelWriters) / modelPerNode
	nodes := float64(modelRanks) / modelPerNode
	perNode := modelBytes / writerNodes
	var steps []Step
	add := func(what string, t float64, format string, args ...any) {
		steps = append(steps, Step{What: what, Time: t, Why: fmt.Sprintf(format, args...)})
	}
	say := func(what, value, format string, args ...any) {
		steps = append(steps, Step{What: what, Value: value, Why: fmt.Sprintf(format, args...)})
	}
	say("job", fmt.Sprintf("%.1f TB", modelBytes/1e12), "%d writers of %d ranks, %.1f GB each, %.0f GB a writing node; %.0f nodes in all", modelWriters, modelRanks, shard/1e9, perNode/1e9, nodes)
	add("stall", shard/f.Memcpy, "%.1f GB at %.1f GB/s into the arena, each rank by itself; an arena below %.0f GB a node slows it to the disks' pace", shard/1e9, f.Memcpy/1e9, perNode/1e9)
	disk := f.Write * modelDisks
	add("durable (local)", perNode/disk, "%.0f GB a node over %d disks at %.1f GB/s each", perNode/1e9, modelDisks, f.Write/1e9)
	votes := writerNodes * 3 // bulk, statement, story
	add("votes", votes/f.Records, "%.0f nodes × 3 synced records (index, statement, story) at %.0f/s; O(nodes), whatever the tensors", writerNodes, f.Records)
	add("votes, all ranks write", nodes*3/f.Records, "%.0f nodes × 3 records, if each of the %d ranks saved a piece; they come while the disks write (%.0f s), so the last one waits for few", nodes, modelRanks, perNode/disk)
	add("commit", f.Commit*math.Max(1, modelWriters/1024.0), "measured with 1,024 ranks on 128 nodes; the manifest grows with the ranks: %d ranks are %.1f times that", modelRanks, modelRanks/1024.0)
	add("commit, all ranks write", f.Commit*modelRanks/1024, "linear in the manifest: encode, sync on two nodes, one swap")
	remote := math.Min(modelTargets*modelTarget, writerNodes*modelNIC)
	add("drain", modelBytes*1.25/remote, "%.1f TB × 10/8 (8+2) at %.0f GB/s: %d targets of %.0f GB/s, %.0f nodes of %.0f GB/s", modelBytes/1e12, remote/1e9, modelTargets, modelTarget/1e9, writerNodes, modelNIC/1e9)
	cpu := perNode / (1 << 30) * f.Drain
	say("drain interference", fmt.Sprintf("%.1f %%", 100*cpu/(modelCores*modelEvery)), "%.0f GB × %.2f s/GiB = %.0f s of processor time, of %d cores for the %.0f s between saves; --drain-rate bounds it", perNode/1e9, f.Drain, cpu, modelCores, modelEvery)
	add("restore, same nodes", perNode/(f.Read*modelDisks), "each writing node reads its own %.0f GB from %d disks at %.1f GB/s", perNode/1e9, modelDisks, f.Read/1e9)
	fan := math.Ceil(math.Log2(nodes / writerNodes))
	add("restore, every node needs all its replicas' bytes", perNode/modelNIC*(1+fan/8), "%.0f data-parallel copies of %.0f GB: one fetch in the cluster, passed on from peer to peer in pieces: %.0f rounds of a pipeline over %.0f GB/s, not %.0f × the targets", nodes/writerNodes, perNode/1e9, fan, modelNIC/1e9, nodes/writerNodes)
	add("restore, all from remote", modelBytes/remote, "%.1f TB once at %.0f GB/s; without sharing it would be %.0f TB and %.0f s", modelBytes/1e12, remote/1e9, modelBytes*nodes/writerNodes/1e12, modelBytes*nodes/writerNodes/remote)
	share := remote / writerNodes // of a node
	cores := share / (1 << 30) * f.Restore
	say("restore interference", fmt.Sprintf("%.0f cores", cores), "%.1f GB/s a node × %.2f s/GiB, client, daemon and targets together, of %d cores while it lasts", share/1e9, f.Restore, modelCores)
	return steps
}

// PrintModel writes the table for people.
func PrintModel(w io.Writer, steps []Step) error {
	for _, s := range steps {
		v := s.Value
		if v == "" {
			v = amount(s.Time, "s")
		}
		if _, err := fmt.Fprintf(w, "%-50s %10s  %s\n", s.What, v, s.Why); err != nil {
			return err
		}
	}
	return nil
}
