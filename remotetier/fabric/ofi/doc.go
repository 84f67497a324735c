// Package ofi is the fabric over remote memory access (RDMA), by libfabric:
// connected endpoints (FI_EP_MSG) with small messages and FI_RMA. PROTOCOL.md
// in package fabric has the bytes, package fabric promises 1 to 5, package
// rails those of several addresses. Beside those:
//
//  6. Bytes of columns go straight between a target's Buffers and the client's
//     memory, by the target's reads and writes: no message carries them, and
//     the client's processor touches them only where its memory was not
//     registered.
//  7. Memory is registered once: a target's Buffers as a whole, a client's where
//     it said Register, and up to 128 MiB of it for what it did not.
//  8. When an exchange returns, on either side and for whatever reason, no
//     access to its memory is under way: one that was given up takes its
//     endpoint with it first.
//  9. A listener off loopback is refused unless it is told that it may be
//     insecure, and has a token: there is no TLS here. Whoever was let in can read
//     and write the memory that the other side registered.
//  10. Two threads for each fabric and domain (a network card's port, about) wait
//     in C, no matter how many connections there are.
//
// It needs cgo and libfabric, and is built with the tag ofi. Without the tag New
// gives an error that says so.
package ofi
