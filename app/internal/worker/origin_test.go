package worker

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"example.org/orchestrator/config"
)

// TestGuard: a web page cannot make a browser send to, or read from, a program in
// development, and whoever means it can.
func TestGuard(t *testing.T) {
	for _, tt := range []struct {
		name, listen, method, host string
		header                     map[string]string
		refused                    bool
	}{
		{name: "a browser", method: "GET", host: "localhost:8080"},
		{name: "a browser by address", method: "GET", host: "127.0.0.1:8080"},
		{name: "IPv6", method: "GET", host: "[::1]:8080"},
		{name: "a local name", method: "GET", host: "shop.localhost:8080"},
		{name: "HTTP/1.0", method: "GET", host: ""},
		{name: "a foreign name for this machine", method: "GET", host: "evil.example:8080", refused: true},
		{name: "an allowed name", method: "GET", host: "dev.example.org"},
		{name: "a name of nobody else", method: "GET", host: "shop.test"},
		{name: "a name in a container", method: "GET", host: "web:8080"},
		{name: "in a container", listen: "0.0.0.0:8080", method: "GET", host: "web:8080"},
		{name: "a Unix socket", listen: "unix://x", method: "GET", host: "anything"},
		{name: "curl", method: "POST", host: "localhost:8080"},
		{name: "its own page", method: "POST", host: "localhost:8080", header: map[string]string{"Origin": "http://localhost:8080"}},
		{name: "a front end on another port", method: "POST", host: "localhost:8080", header: map[string]string{"Origin": "http://127.0.0.1:5173"}},
		{name: "its own page in a container", listen: ":8080", method: "POST", host: "web:8080", header: map[string]string{"Origin": "http://web:8080"}},
		{name: "another page", method: "POST", host: "localhost:8080", header: map[string]string{"Origin": "https://evil.example"}, refused: true},
		{name: "another page at an address", method: "POST", host: "localhost:8080", header: map[string]string{"Origin": "http://192.0.2.1"}, refused: true},
		{name: "a file", method: "DELETE", host: "localhost:8080", header: map[string]string{"Origin": "null"}, refused: true},
		{name: "an allowed page", method: "POST", host: "localhost:8080", header: map[string]string{"Origin": "https://a.example.org"}},
		{name: "no origin, cross-site", method: "POST", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "cross-site"}, refused: true},
		{name: "a WebSocket of another page", method: "GET", host: "localhost:8080", header: map[string]string{"Origin": "https://evil.example", "Upgrade": "websocket"}, refused: true},
		{name: "a link on another page", method: "GET", host: "localhost:8080", header: map[string]string{"Sec-Fetch-Site": "cross-site"}},
	} {
		app := config.App{HotReload: true, Listen: "127.0.0.1:8080", AllowedHosts: []string{".example.org"}}
		if tt.listen != "" {
			app.Listen = tt.listen
		}
		r := httptest.NewRequest(tt.method, "/", http.NoBody)
		r.Host = tt.host
		for name, value := range tt.header {
			r.Header.Set(name, value)
		}
		if why := newGuard(app).refuses(r); (why != "") != tt.refused {
			t.Errorf("%s: %q, want it refused: %v", tt.name, why, tt.refused)
		}
		app.HotReload = false
		if why := newGuard(app).refuses(r); why != "" {
			t.Errorf("%s in production: %q", tt.name, why)
		}
	}
}
