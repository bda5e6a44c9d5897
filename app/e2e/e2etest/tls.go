//go:build unix

package e2etest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// Certify writes a certificate with this serial number, and its key.
func (p *Project) Certify(serial int64) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.Check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		NotAfter:     time.Now().Add(time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	p.Check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	p.Check(err)
	p.Write("cert.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})))
	p.Write("key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

// TLS starts a program that serves HTTPS.
func TLS(t *testing.T, edits ...string) (p *Project, binary, address string) {
	t.Helper()
	p, _ = Light(t)
	p.Certify(1)
	return startZoo(p, append([]string{"  drain:", "  tls: {cert: cert.pem, key: key.pem}\n  drain:"}, edits...)...)
}

// HTTPSClient returns a client of HTTP/2, or 1.1, that counts the connections it
// makes.
func HTTPSClient(h2 bool) (c *http.Client, dialled *atomic.Int64) {
	dialled = new(atomic.Int64)
	protocols := new(http.Protocols)
	protocols.SetHTTP2(h2)
	protocols.SetHTTP1(!h2)
	return &http.Client{Timeout: Patience, Transport: &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			dialled.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}, dialled
}

// Ask sends a request and returns the answer, which must be 200.
func Ask(c *http.Client, method, url, body string) (string, error) {
	req, err := http.NewRequest(method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	resp, err := c.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return strings.TrimSpace(string(text)), err
}
