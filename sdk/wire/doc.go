// Package wire is the protocol between SDKs and the node daemon, described in
// PROTOCOL.md: the frames of a session, the JSON of the HTTP half, and the one
// table that maps error classes to codes and statuses.
//
//  1. A peer's frame never makes ReadFrame allocate more than the limits of
//     PROTOCOL.md allow, and never more than has arrived by a factor of two.
//  2. An error keeps its class over the wire: errors.Is gives the same answer
//     on both sides.
package wire
