// Package fuse mounts a Tree: what a daemon wants to show as files.
//
//  1. Nothing is kept for nodes that were looked up: memory is bounded by the
//     files that are open, the requests under way and the threads whose habits
//     are remembered, all limited.
//  2. A complete file is read by the kernel itself from its backing file
//     (passthrough), where the kernel and the rights of the process allow it;
//     otherwise through this process, and Info says why.
//  3. The kernel's rule that one inode is open in one way at a time is kept:
//     how a file is open is decided by the first open, and anew when all have
//     closed it. No open fails because of it.
//  4. A slow call of the Tree holds up nobody else, and is told when its
//     caller has been interrupted.
//  5. Nothing is mounted over another mount or over files; a dead mount that
//     an earlier process left behind is taken away first.
//  6. When this process dies, files that are open in passthrough stay
//     readable; everything else answers ENOTCONN until the next Mount.
package fuse
