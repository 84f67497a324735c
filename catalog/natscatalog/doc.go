// Package natscatalog stores catalog records in a NATS JetStream key-value
// bucket, and can run the server inside the process.
//
//  1. When Swap returns nil, the record survives a power failure of the server
//     (Embed syncs every write; of a server run by others this package can only
//     warn) and, with three replicas, the loss of one server.
//  2. Every read and every decision is made by the stream's leader, never by a
//     follower that may lag: Get, List and Head show each swap that returned
//     before they began.
//  3. A watch outlives reconnects, restarts and changes of leader without
//     missing the last state of any key; when it cannot know that, it ends
//     with ErrUnavailable.
//  4. Every call ends: with its context, or after Options.Timeout without
//     progress. Nothing is queued while the server is away.
//  5. Bounded: a bucket holds one message a key, plus the markers of the
//     deletions of the last Options.MarkerTTL; a watch holds at most
//     maxPendingBytes.
//
// The README tells why it is built this way and what was measured.
package natscatalog
