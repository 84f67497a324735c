// Package tcp is the fabric over TCP. PROTOCOL.md in package fabric has the
// bytes, package fabric promises 1 to 5. Beside those:
//
//  6. A listener off loopback is refused without TLS and a token (or
//     certificates of clients), unless told otherwise.
//  7. A target of several addresses is used over all of them, and goes on when
//     all but one are lost.
//  8. What is pushed from a file goes by sendfile where there is no TLS: the
//     target never touches the bytes.
//
// A connection carries one exchange at a time and there are several: nothing
// waits behind somebody else's bytes, no goroutine sorts frames, and an
// exchange that is given up takes its connection with it.
package tcp
