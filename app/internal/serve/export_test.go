package serve

// Read is how many bytes of requests that no handler has begun with were read
// from their sockets.
func (s *Server) Read() (n int) {
	for _, c := range s.connections() {
		n += len(c.unread())
	}
	return n
}

// Parked is how many requests on fixed connections wait.
func (s *Server) Parked() int {
	s.fixed.mu.Lock()
	defer s.fixed.mu.Unlock()
	return s.fixed.parked
}
