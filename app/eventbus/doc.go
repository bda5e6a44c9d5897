// Package eventbus carries typed events between the modules of one process.
//
// # Order
//
// Every event gets its place in one order for all: if two subscribers both
// receive events A and B, both receive them in the same order, and Publish
// calls of one goroutine keep their order. Plainly: there is one true
// timeline, and each subscriber walks along it at its own pace.
//
// # Blocking
//
// [Publish] never blocks and may be called anywhere, also inside a
// subscriber. Each subscriber has its own goroutine and its own queue without
// a limit, so a slow one delays nobody else. It is reported instead, with the
// line that subscribed, as is one that panics; both keep their subscription.
//
// # Ownership
//
// A [Root] belongs to a process, a [Bus] is one client of it: the framework
// gives each module instance a fresh one and closes it after the module's
// Shutdown, which ends all its subscriptions.
//
// What it does not do: no persistence, no delivery to other processes (a
// generation's [Root.Tap] forwards events to whoever asks), no replies.
package eventbus
