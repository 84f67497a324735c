// Package tree is what `ckpt mount` shows: the catalog's committed sets as
// folders and files. It implements fuse.Tree over a Store, and keeps no bytes.
//
//		/checkpoints/RUN/STEP/rank-00000.safetensors   a shard, by its own name
//		/checkpoints/RUN/STEP/.manifest.json           the committed list of shards and tensors
//		/checkpoints/RUN/latest                        a link to the newest step
//		/checkpoints/RUN/STEP-ATTEMPT/…                one attempt's set; not listed
//
//	 1. Only committed sets are shown, and a set that was pruned is gone; what is
//	    open of it stays readable, because an open file holds a lease.
//	 2. A node's number is the hash of its set (or folder) and its position in
//	    it: the same after a restart. Only sets and folders that were looked up
//	    take memory, about 200 bytes each; files take none.
//	 3. Sizes, times, modes and link counts are right; a set's folder never
//	    changes while it is there.
//	 4. Names are the bytes they are. A shard whose name another of its set has
//	    taken is shown as rank-RANK.NAME.
package tree
