// Package traffic decides whose bytes move next, where several kinds of work
// share a disk, a network or a processor.
//
// Every byte of the remote tier moves for a Class, which travels in the
// context and, to a target, in each request. A Gate lets operations in: those
// of a more urgent class hold the others back while they are at work. A Line is
// who waits for something of which there are few, in the order in which they
// get it.
//
//  1. An operation waits while a more urgent class is at work: has an
//     operation in flight, or ended one within Options.Linger.
//  2. Nobody starves. What is held back moves on at Options.Floor bytes/s a
//     class, and no operation is held back for longer than Options.MaxWait.
//  3. A class does not move more than its rate, over any time longer than the
//     burst. MaxWait does not lift a rate.
//  4. Within a class, who came first goes first.
//  5. Who gives up waiting leaves nothing behind, and takes nothing of a rate.
//  6. Waiting costs no goroutine and no processor time beyond the caller's own,
//     and the number of those who wait is bounded.
package traffic
