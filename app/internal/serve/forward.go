package serve

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"
)

// originHeader carries what the server would know about a forwarded request if
// the client had sent it there. It is trusted only on connections of
// [KindForward].
const originHeader = "Orchestrator-Origin"

// origin is what a forwarded request does not say by itself.
type origin struct {
	Remote string   `json:"remote"`
	Proto  string   `json:"proto"`
	Major  int      `json:"major"`
	Minor  int      `json:"minor"`
	TLS    *session `json:"tls,omitempty"`

	Host   string      `json:"host"`             // may be empty, which no request of HTTP/2 may be
	Header http.Header `json:"header,omitempty"` // what is meant for the next hop only; this is none
}

// session describes a TLS connection, without certificates of clients.
type session struct {
	Version  uint16 `json:"version"`
	Cipher   uint16 `json:"cipher"`
	Name     string `json:"name,omitempty"`
	Protocol string `json:"protocol,omitempty"`
}

func originOf(r *http.Request) origin {
	o := origin{Remote: r.RemoteAddr, Proto: r.Proto, Major: r.ProtoMajor, Minor: r.ProtoMinor, Host: r.Host, Header: http.Header{}}
	for _, name := range slices.Concat(hopHeaders, named(r.Header["Connection"])) {
		if values := r.Header.Values(name); len(values) > 0 {
			o.Header[http.CanonicalHeaderKey(name)] = values
		}
	}
	if r.TLS != nil {
		o.TLS = &session{r.TLS.Version, r.TLS.CipherSuite, r.TLS.ServerName, r.TLS.NegotiatedProtocol}
	}
	return o
}

// hopHeaders are those that proxies keep to themselves.
var hopHeaders = []string{"Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Upgrade"}

// named returns the names in a list of headers.
func named(values []string) (names []string) {
	for _, v := range values {
		for name := range strings.SplitSeq(v, ",") {
			if name = strings.TrimSpace(name); name != "" {
				names = append(names, name)
			}
		}
	}
	return names
}

// NewForwarder returns a handler that forwards requests over conn,
// concurrently, as HTTP/2. Another server adopts the other end as a
// [KindForward]. Answers to HTTP/1.1 clients ask them to connect anew. It takes
// responsibility for conn.
func NewForwarder(conn net.Conn) (http.Handler, error) {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:          protocols,
		HTTP2:              &http.HTTP2Config{StrictMaxConcurrentRequests: true},
		DisableCompression: true,
		DialContext:        func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	// Not the transport itself: it would dial again for concurrent requests.
	client, err := transport.NewClientConn(context.Background(), "http", "forward:80")
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("serve: begin to forward: %w", err)
	}
	return &httputil.ReverseProxy{
		Transport:     client,
		FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "forward"
			p.Out.URL.RawQuery = p.In.URL.RawQuery
			p.Out.Host = p.In.Host
			for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
				if values := p.In.Header.Values(name); len(values) > 0 {
					p.Out.Header[name] = values
				}
			}
			text, _ := json.Marshal(originOf(p.In))
			p.Out.Header.Set(originHeader, string(text))
		},
		ModifyResponse: func(resp *http.Response) error {
			if o := resp.Request.Header.Get(originHeader); o != "" {
				var from origin
				if json.Unmarshal([]byte(o), &from) == nil && from.Major == 1 {
					resp.Header.Set("Connection", "close")
				}
			}
			return nil
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { // whose text is not for strangers
			http.Error(w, http.StatusText(http.StatusBadGateway), http.StatusBadGateway)
		},
	}, nil
}

// newForwarded returns a server for the requests that another process forwards.
func newForwarded(h http.Handler, log *log.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:   unwrap(h),
		ErrorLog:  log,
		Protocols: protocols,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: 1 << 20, // the other side limits them
			// All uploads share the window of the connection. One whose handler does
			// not read may have a small part of it only.
			MaxReceiveBufferPerConnection: 4<<20 - 1,
			MaxReceiveBufferPerStream:     32 << 10,
		},
	}
}

// unwrap turns a forwarded request back into the one that the client sent.
func unwrap(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var o origin
		if err := json.Unmarshal([]byte(r.Header.Get(originHeader)), &o); err != nil {
			http.Error(w, "not a forwarded request", http.StatusBadRequest)
			return
		}
		r.Header.Del(originHeader)
		r.RemoteAddr, r.Proto, r.ProtoMajor, r.ProtoMinor, r.Host = o.Remote, o.Proto, o.Major, o.Minor, o.Host
		for name, values := range o.Header {
			r.Header[name] = values
		}
		if o.TLS != nil {
			r.TLS = &tls.ConnectionState{
				HandshakeComplete:  true,
				Version:            o.TLS.Version,
				CipherSuite:        o.TLS.Cipher,
				ServerName:         o.TLS.Name,
				NegotiatedProtocol: o.TLS.Protocol,
			}
		}
		h.ServeHTTP(w, r)
	})
}
