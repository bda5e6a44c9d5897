package serve

// Read is how many bytes of requests that no handler has begun with were read
// from their sockets.
func (s *Server) Read() (n int) {
	for _, c := range s.http1.connections() {
		n += len(c.unread())
	}
	return n
}

// Queued is how many requests on pinned connections wait.
func (s *Server) Queued() int {
	s.pinned.mu.Lock()
	defer s.pinned.mu.Unlock()
	return s.pinned.queued
}
