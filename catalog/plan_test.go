package catalog

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

var planTime = time.Unix(1e9, 0)

// shardAt is a statement about a rank: durable after so many seconds, and on
// the disks of its node.
func shardAt(rank int, root byte, second int, edits ...func(*PartShard)) PartShard {
	s := PartShard{Rank: rank, Size: 10, Root: Digest{root}, Durable: planTime.Add(time.Duration(second) * time.Second), Local: true}
	for _, edit := range edits {
		edit(&s)
	}
	return s
}

func gone(s *PartShard)     { s.Local = false }
func bad(s *PartShard)      { s.Bad = "block 3: CRC32C differs" }
func notYet(s *PartShard)   { s.Durable = time.Time{} }
func remote(s *PartShard)   { s.Remote = &Place{Blob: "b"} }
func verified(s *PartShard) { remote(s); s.Verified = planTime }
func unplaced(s *PartShard) { s.Verified = planTime } // verified, but its place was taken back

func TestMissingRanks(t *testing.T) {
	for name, c := range map[string]struct {
		world int
		parts []PartRecord
		want  []int
	}{
		"Nothing":         {3, nil, []int{0, 1, 2}},
		"All":             {2, []PartRecord{{Node: "a", Shards: []PartShard{shardAt(1, 1, 0), shardAt(0, 1, 0)}}}, nil},
		"TwoNodes":        {3, []PartRecord{{Node: "a", Shards: []PartShard{shardAt(0, 1, 0)}}, {Node: "b", Shards: []PartShard{shardAt(2, 1, 0)}}}, []int{1}},
		"SealedIsNoVote":  {1, []PartRecord{{Node: "a", Shards: []PartShard{shardAt(0, 1, 0, notYet)}}}, []int{0}},
		"RankOutsideIsNo": {1, []PartRecord{{Node: "a", Shards: []PartShard{shardAt(-1, 1, 0), shardAt(1, 1, 0), shardAt(1<<62, 1, 0)}}}, []int{0}},
	} {
		if got := MissingRanks(c.world, c.parts); !slices.Equal(got, c.want) {
			t.Errorf("%s: missing %v, want %v", name, got, c.want)
		}
	}
}

func TestVotesFirstDurableThenNode(t *testing.T) {
	parts := []PartRecord{
		{Node: "c", Shards: []PartShard{shardAt(0, 1, 5), shardAt(1, 3, 1, notYet), shardAt(9, 9, 0)}},
		{Node: "b", Shards: []PartShard{shardAt(0, 2, 5), shardAt(1, 4, 7)}},
		{Node: "a", Shards: []PartShard{shardAt(0, 3, 6), shardAt(1, 5, 8)}},
	}
	votes := Votes(3, parts)
	if votes[0].Node != "b" || votes[0].Shard.Root != (Digest{2}) {
		t.Errorf("rank 0: %s, want b", votes[0].Node)
	}
	if votes[1].Node != "b" || votes[2].Shard != nil {
		t.Errorf("rank 1: %s, want b; rank 2: %v, want none", votes[1].Node, votes[2].Shard)
	}
}

// Every coordinator picks the same votes, whatever order it heard of them in.
func TestVotesDoNotDependOnOrder(t *testing.T) {
	seed := rand.Uint64()
	rnd := rand.New(rand.NewPCG(seed, 1))
	for range 2000 {
		world := 1 + rnd.IntN(5)
		var parts []PartRecord
		for n := range 1 + rnd.IntN(5) {
			p := PartRecord{Node: fmt.Sprintf("n%d", n)}
			for rank := range world {
				if rnd.IntN(3) > 0 {
					p.Shards = append(p.Shards, shardAt(rank, byte(n), rnd.IntN(3), []func(*PartShard){gone, bad, notYet, verified, remote}[rnd.IntN(5)]))
				}
			}
			parts = append(parts, p)
		}
		s := &SetRecord{State: Committed, World: world}
		votes, level := fmt.Sprint(names(Votes(world, parts))), LevelOf(s, parts)
		rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		if got := fmt.Sprint(names(Votes(world, parts))); got != votes || LevelOf(s, parts) != level {
			t.Fatalf("seed %d: votes %s, in another order %s", seed, votes, got)
		}
	}
}

func names(votes []Vote) (s []string) {
	for _, v := range votes {
		s = append(s, v.Node)
	}
	return s
}

func TestShardLevel(t *testing.T) {
	root := Digest{1}
	for _, c := range []struct {
		name  string
		a, b  *PartShard
		want  Level
		other bool // the other node may drop its copy
	}{
		{"None", nil, nil, LevelNone, false},
		{"One", new(shardAt(0, 1, 0)), nil, Local, false},
		{"Two", new(shardAt(0, 1, 0)), new(shardAt(0, 1, 1)), Replicated, false},
		{"OfAnotherRank", new(shardAt(0, 1, 0)), new(shardAt(1, 1, 1)), Local, false},
		{"OfOtherBytes", new(shardAt(0, 1, 0)), new(shardAt(0, 2, 1)), Local, false},
		{"BadCopy", new(shardAt(0, 1, 0)), new(shardAt(0, 1, 1, bad)), Local, false},
		{"AllBad", new(shardAt(0, 1, 0, bad)), new(shardAt(0, 1, 1, gone)), LevelNone, false},
		{"Remote", new(shardAt(0, 1, 0, remote)), nil, Remote, false},
		{"RemoteOfOtherBytes", new(shardAt(0, 1, 0)), new(shardAt(0, 2, 1, verified)), Local, false},
		{"RemoteAlone", new(shardAt(0, 1, 0, gone, remote)), nil, Remote, false},
		{"Verified", new(shardAt(0, 1, 0)), new(shardAt(0, 1, 0, gone, verified)), Verified, true},
		{"VerifiedAndTakenBack", new(shardAt(0, 1, 0)), new(shardAt(0, 1, 0, gone, unplaced)), Local, false},
		{"VerifiedOfBadLocal", new(shardAt(0, 1, 0, bad, verified)), nil, Verified, true},
		{"VerifiedOfAnotherRank", new(shardAt(0, 1, 0)), new(shardAt(1, 1, 0, verified)), Local, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			var parts []PartRecord
			if c.a != nil {
				parts = append(parts, PartRecord{Node: "a", Shards: []PartShard{*c.a}})
			}
			if c.b != nil {
				parts = append(parts, PartRecord{Node: "b", Shards: []PartShard{*c.b}})
			}
			if got := ShardLevel(0, root, parts); got != c.want {
				t.Errorf("level %v, want %v", got, c.want)
			}
			// Promise 5: the last copy never leaves; a replica on a node is none that was checked.
			if got := SafeToDrop("a", 0, root, parts); got != c.other {
				t.Errorf("SafeToDrop = %v, want %v", got, c.other)
			}
		})
	}
}

func TestLevelOf(t *testing.T) {
	of := func(shards ...PartShard) []PartRecord { return []PartRecord{{Node: "a", Shards: shards}} }
	place := &Place{Blob: "manifest"}
	for _, c := range []struct {
		name  string
		set   SetRecord
		parts []PartRecord
		want  Level
	}{
		{"Writing", SetRecord{State: Writing, World: 1}, of(shardAt(0, 1, 0, verified)), Staged},
		{"Aborted", SetRecord{State: Aborted, World: 1}, of(shardAt(0, 1, 0, verified)), LevelNone},
		{"Pruned", SetRecord{State: Pruned, World: 1, Place: place}, of(shardAt(0, 1, 0, verified)), LevelNone},
		{"Local", SetRecord{State: Committed, World: 2}, of(shardAt(0, 1, 0), shardAt(1, 1, 0)), Local},
		{"TheLeastCounts", SetRecord{State: Committed, World: 2, Place: place}, of(shardAt(0, 1, 0, verified), shardAt(1, 1, 0)), Local},
		{"NoStatement", SetRecord{State: Committed, World: 2, Place: place}, of(shardAt(0, 1, 0, verified)), LevelNone},
		{"AllBad", SetRecord{State: Committed, World: 1}, of(shardAt(0, 1, 0, bad)), LevelNone},
		{"Remote", SetRecord{State: Committed, World: 2, Place: place}, of(shardAt(0, 1, 0, verified), shardAt(1, 1, 0, remote)), Remote},
		{"Verified", SetRecord{State: Committed, World: 2, Place: place}, of(shardAt(0, 1, 0, verified), shardAt(1, 1, 0, verified)), Verified},
		{"WithoutItsManifest", SetRecord{State: Committed, World: 1}, of(shardAt(0, 1, 0, verified)), Local},
		{"WithoutItsManifestTwice", SetRecord{State: Committed, World: 1}, append(of(shardAt(0, 1, 0, verified)), PartRecord{Node: "b", Shards: []PartShard{shardAt(0, 1, 1)}}), Replicated},
	} {
		if got := LevelOf(&c.set, c.parts); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
