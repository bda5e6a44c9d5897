package serve

// Read returns how many bytes were read from sockets of requests that no
// handler has begun with.
func (s *Server) Read() (n int) {
	for _, c := range s.http1.connections() {
		n += len(c.unread())
	}
	return n
}

// Queued returns how many requests on pinned connections are queued.
func (s *Server) Queued() int {
	s.pinned.mu.Lock()
	defer s.pinned.mu.Unlock()
	return s.pinned.queued
}
