// Package tcp is the fabric over TCP. PROTOCOL.md in package fabric has the
// bytes, package fabric the promises. Beside those:
//
//  1. A listener off loopback is refused without TLS and a token (or
//     certificates of clients), unless told otherwise.
//  2. A target of several addresses is used over all of them, and goes on when
//     all but one are lost.
//  3. What is pushed from a file goes by sendfile where there is no TLS: the
//     target never touches the bytes.
//
// A connection carries one exchange at a time and there are several: nothing
// waits behind somebody else's bytes, no goroutine sorts frames, and an
// exchange that is given up takes its connection with it.
package tcp
