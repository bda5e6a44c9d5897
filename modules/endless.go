package modules

import "net/http"

// Endless marks the answer on w as one that never ends by itself, such as a feed or
// a long poll. A reload does not wait for it: once nothing else is in flight it
// cancels the request's context, with [ErrReloading] as the cause, and 100 ms later
// it closes the connection. Answers of the type text/event-stream are marked already.
//
// An answer of which the client has got a part is broken off, so that the client can
// tell, unless the handler has called complete: then it is whole. Endless does
// nothing on a ResponseWriter that is not the framework's.
func Endless(w http.ResponseWriter) (complete func()) {
	for {
		switch x := w.(type) {
		case interface{ Endless() (complete func()) }:
			return x.Endless()
		case interface{ Unwrap() http.ResponseWriter }:
			w = x.Unwrap()
		default:
			return func() {}
		}
	}
}
