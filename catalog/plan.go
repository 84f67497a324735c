package catalog

import "cmp"

// This file decides purely: what votes add up to.

// MissingRanks lists the ranks of which no statement has a durable shard.
func MissingRanks(world int, parts []PartRecord) []int {
	have := make([]bool, world)
	for _, p := range parts {
		for _, s := range p.Shards {
			if s.Rank >= 0 && s.Rank < world && !s.Durable.IsZero() {
				have[s.Rank] = true
			}
		}
	}
	var missing []int
	for rank, ok := range have {
		if !ok {
			missing = append(missing, rank)
		}
	}
	return missing
}

// Votes picks, for each rank, the statement that counts: the one durable
// first, then by the node's name, so that every coordinator picks the same.
// Ranks without a vote have a nil Shard.
func Votes(world int, parts []PartRecord) []Vote {
	votes := make([]Vote, world)
	for i := range parts {
		p := &parts[i]
		for j := range p.Shards {
			s := &p.Shards[j]
			if s.Rank < 0 || s.Rank >= world || s.Durable.IsZero() {
				continue
			}
			v := &votes[s.Rank]
			if v.Shard == nil || cmp.Or(s.Durable.Compare(v.Shard.Durable), cmp.Compare(p.Node, v.Node)) < 0 {
				*v = Vote{Node: p.Node, Shard: s}
			}
		}
	}
	return votes
}

// Vote is the statement about one rank's shard that counts.
type Vote struct {
	Node  string
	Shard *PartShard
}

// LevelOf says how safe a committed set is now, from what the nodes state: the
// least safe of its shards, and of its manifest above Replicated.
func LevelOf(s *SetRecord, parts []PartRecord) Level {
	if s.State != Committed {
		if s.State == Writing {
			return Staged
		}
		return LevelNone
	}
	votes := Votes(s.World, parts)
	level := Verified
	for rank, v := range votes {
		if v.Shard == nil {
			return LevelNone // a catalog that was lost, and not rebuilt to the end
		}
		level = min(level, ShardLevel(rank, v.Shard.Root, parts))
	}
	if level < Remote || s.Place != nil {
		return level
	}
	// Without its manifest there, a set is not remote yet, only its shards are.
	level = Replicated
	for rank, v := range votes {
		level = min(level, max(Local, copiesLevel(rank, v.Shard.Root, parts)))
	}
	return level
}

// ShardLevel says how safe one shard of a committed set is: copies count only
// when they have the root that was voted for.
func ShardLevel(rank int, root Digest, parts []PartRecord) Level {
	level := copiesLevel(rank, root, parts)
	for i := range parts {
		for j := range parts[i].Shards {
			s := &parts[i].Shards[j]
			if s.Rank != rank || s.Root != root || s.Remote == nil {
				continue
			}
			level = max(level, Remote)
			if !s.Verified.IsZero() {
				return Verified
			}
		}
	}
	return level
}

// copiesLevel counts the copies on nodes alone.
func copiesLevel(rank int, root Digest, parts []PartRecord) Level {
	copies := 0
	for i := range parts {
		for j := range parts[i].Shards {
			if s := &parts[i].Shards[j]; s.Rank == rank && s.Root == root && s.Local && s.Bad == "" {
				copies++
			}
		}
	}
	switch copies {
	case 0:
		return LevelNone
	case 1:
		return Local
	}
	return Replicated
}

// SafeToDrop is the one rule of promise 5: node's local copy of a rank's shard
// may leave only when the bytes are elsewhere and were checked there. The
// evictor, the pruner of copies and the drain all ask it.
func SafeToDrop(node string, rank int, root Digest, parts []PartRecord) bool {
	for i := range parts {
		for j := range parts[i].Shards {
			s := &parts[i].Shards[j]
			if s.Rank == rank && s.Root == root && s.Remote != nil && !s.Verified.IsZero() {
				return true
			}
		}
	}
	return false
}
