package worker

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"example.org/orchestrator/config"
)

// guard keeps web pages away from a program in development. A browser sends what they
// ask it to send to any address, also to one on the developer's own machine, where
// nothing asks who they are.
type guard struct {
	hosts []string // names that are allowed besides those of this machine
	local bool     // the program listens on a loopback address only
}

// newGuard returns nil if the program is not in development.
func newGuard(app config.App) *guard {
	if !app.HotReload {
		return nil
	}
	g := &guard{hosts: app.AllowedHosts}
	if network, address, err := config.SplitAddress(app.Listen); err == nil && network == "tcp" {
		host, _, _ := net.SplitHostPort(address)
		ip, err := netip.ParseAddr(host)
		g.local = isLocalhost(host) || err == nil && ip.IsLoopback()
		if err != nil && host != "" {
			g.hosts = append(slices.Clone(g.hosts), host)
		}
	}
	return g
}

// refuses returns why a request is not answered, "" if it is.
func (g *guard) refuses(r *http.Request) string {
	if g == nil {
		return ""
	}
	host := hostname(r.Host)
	if _, err := netip.ParseAddr(host); err != nil && g.local && !private(host) && !g.allows(host) { // a foreign name that was made to mean this machine
		return "host " + strconv.Quote(host) + " is not a name of this machine; if it is meant, add it to app.allowed_hosts"
	}
	if safe(r) {
		return ""
	}
	from := r.Header.Get("Origin")
	if from == "" {
		if r.Header.Get("Sec-Fetch-Site") == "cross-site" {
			return "a web page of another origin has sent this"
		}
		return ""
	}
	u, err := url.Parse(from)
	if err == nil && u.Host != "" && (strings.EqualFold(u.Hostname(), host) || g.allows(strings.ToLower(u.Hostname()))) {
		return ""
	}
	return "a web page of " + strconv.Quote(from) + " has sent this; if that is meant, add its host to app.allowed_hosts"
}

// safe reports whether a request only reads, and the page that sent it cannot see the
// answer.
func safe(r *http.Request) bool {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		return r.Header.Get("Upgrade") == "" // a page may talk over a WebSocket to any origin
	}
	return false
}

// allows reports whether host, in lower case, means this machine or is allowed by the
// configuration.
func (g *guard) allows(host string) bool {
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsLoopback() || isLocalhost(host) {
		return true
	}
	return slices.ContainsFunc(g.hosts, func(name string) bool {
		name = strings.ToLower(name)
		return name == host || strings.HasPrefix(name, ".") && strings.HasSuffix(host, name)
	})
}

func isLocalhost(host string) bool {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// private reports whether nobody else can say what a name means: it has no dot, or one
// of the endings that are nobody's.
func private(host string) bool {
	return !strings.Contains(host, ".") || slices.ContainsFunc([]string{".test", ".local", ".internal", ".home.arpa"}, func(end string) bool {
		return strings.HasSuffix(host, end)
	})
}

// hostname returns the name in a Host header, without port and brackets.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return strings.ToLower(strings.Trim(host, "[]"))
}
