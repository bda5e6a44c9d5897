// Package eventbus carries typed events between the modules of one process.
//
// # Order
//
// Every event has its place in one order for all subscribers: if two
// subscribers both receive events A and B, both receive them in the same order,
// and Publish calls of one goroutine keep their order. Plainly: there is one
// true timeline, and each subscriber walks along it at its own pace.
//
// # Blocking
//
// [Publish] never blocks and may be called anywhere, even inside a subscriber.
// Each subscriber has its own goroutine and its own queue without a limit, so a
// slow one delays nobody else. Instead it is reported with the line that
// subscribed it, as is a subscriber that panics; both stay subscribed.
//
// # Ownership
//
// A [Root] belongs to a process, and a [Bus] is one client of it: the framework
// gives each module instance a fresh one and closes it after the module's
// Shutdown, which ends all its subscriptions. Before the first Shutdown of a reload
// or a stop it gives the subscribers of all modules time to handle what is queued
// (app.run_timeout); what they do not handle in time is dropped, counted and told.
//
// The package does not persist events, carry replies, or deliver to other
// processes (a generation forwards events to clients that ask, with a
// [Root.Tap]).
package eventbus
