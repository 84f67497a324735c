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
//  2. No method returns bytes of a shard that failed their checksum, unless the
//     Reader was opened with NoCheck. A bad local copy is reported to the
//     daemon, which quarantines it, and the bytes come from the next tier. What
//     Bytes returned is checked once, when it is mapped.
//  3. Errors wrap the classes of package catalog; errors.Is gives the same
//     answer here as in the daemon. A daemon that is away is
//     catalog.ErrUnavailable, and the text names the sockets tried.
//  4. A context that ends makes every call return soon, and leaves a save as if
//     it had not begun, unless the daemon had already sealed it.
//  5. A Client may be used from any number of goroutines. A Save belongs to one.
//
// Tensor bytes do not pass through the socket: saving copies them once, into
// shared memory of the daemon; loading reads or maps the shard's own file.
package ckpt
