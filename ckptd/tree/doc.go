// Package tree is what `ckpt mount` shows: the catalog's committed sets as
// folders and files. It implements fuse.Tree over a Store, and keeps no bytes.
//
//		/checkpoints/RUN/STEP/rank-00000.safetensors   a shard, by its own name
//		/checkpoints/RUN/STEP/.manifest.json           the committed list of shards and tensors
//		/checkpoints/RUN/latest                        a link to the newest step
//		/checkpoints/RUN/STEP-ATTEMPT/…                one attempt's set; not listed
//		/checkpoints/RUN/.write/STEP/FILE              a draft: files of a set being written; .write is not listed
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
//	 5. What is in a draft is seen in this node's mounts only, under .write only,
//	    until the draft is committed: then it is gone from there, whole, and the
//	    set is there, whole. What is refused leaves it as it was.
//
// A draft is made by mkdir of .write/STEP (a run's folder, too, may be made by
// mkdir; it is only remembered) and holds files, no folders or links. Files may
// be rewritten, truncated, renamed and removed as in any folder; their modes
// and times are not kept. It is committed by renaming it to RUN/STEP, also where
// that step has a set already: the new one is of a newer attempt. EBUSY: a file
// is open for writing, or another node has a draft of the step too. EINVAL: it
// has no file, or an empty one, or the new name is of another step. EPERM: a
// folder or a link in a draft. ENOSPC at write, fsync or close: the local tier's
// quota is used up; a file that the kernel wrote beyond it is gone.
package tree
