// Package ckpt is the Go client of ckptd: it saves and loads checkpoints
// through the daemon on this node, and looks at what there is.
//
//	c, err := ckpt.Dial(ctx, "")
//	s, err := c.Save(ctx, ckpt.At("llama/7b-sft", 1200), ckpt.Rank(3, 8), ckpt.Launch("job-17"))
//	defer s.Close()
//	err = s.Tensor("model.embed", ckpt.BF16, []int64{32000, 4096}, data)
//	set, err := s.Commit(ctx)
//	err = set.Wait(ctx, ckpt.Remote)
//
// What it promises:
//
//  1. When Commit returns nil, the shard survives this process: it is at level
//     staged and the daemon takes it on from there. Before that, and whenever
//     Commit returns an error, Close leaves nothing behind.
//
//  2. No method returns bytes of a shard that failed their checksum, unless the
//     Reader was opened with NoCheck. A bad local copy is reported to the
//     daemon, which quarantines it, and the bytes come from the next tier. What
//     Bytes returned is checked once, when it is mapped.
//
//  3. Errors wrap the classes of package catalog; errors.Is gives the same
//     answer here as in the daemon. A daemon that is away is
//     catalog.ErrUnavailable, and the text names the sockets tried.
//
//  4. A context that ends makes every call return soon, and leaves a save as if
//     it had not begun, unless the daemon had already sealed it.
//
//  5. A Client may be used from any number of goroutines. A Save belongs to one.
//
//  6. A sample's bytes come from a pack that the daemon checked whole, or, while
//     it is arriving, from ranges that it checked. An Epoch gives each sample
//     once, and a cursor goes on with any number of ranks.
//
// Samples of a dataset are read in the order of an epoch:
//
//	d, err := c.OpenDataset(ctx, "imagenet@latest")
//	defer d.Close()
//	e, err := d.Epoch(ctx, ckpt.EpochOptions{Seed: 1, Rank: 3, World: 8})
//	batch, err := e.Take(ctx, 256)
//	err = d.Batch(ctx, batch, func(k int, s ckpt.Sample) error { return decode(s.Data[0]) })
//
// Packs of this node's cache are mapped, and Batch gives slices of the mapping:
// their pages are asked for before, so that a disk that fails is an error and
// not a signal.
//
// Tensor bytes do not pass through the socket: saving copies them once, into
// shared memory of the daemon; loading reads or maps the shard's own file.
package ckpt
