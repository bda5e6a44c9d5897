package worker

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"example.org/orchestrator/app/internal/serve"
	"example.org/orchestrator/modules"
)

type small struct{ modules.Module }

func (small) ServeHTTP(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "Hello, world\n") }

// BenchmarkThroughput compares the requests per second of a small handler
// through the framework with those through net/http alone. The two take turns,
// because a machine is not equally fast at all times.
func BenchmarkThroughput(b *testing.B) {
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		return ln
	}
	plainAt, ours := listen(), listen()
	mux := http.NewServeMux()
	mux.Handle("/hello/", http.StripPrefix("/hello", small{}))
	plain := &http.Server{Handler: mux}
	go plain.Serve(plainAt)
	defer plain.Close()

	r := &routes{}
	r.table.Store(&table{list: []route{{"counter", "/counter/", small{}, false}, {"hello", "/hello/", small{}, false}, {"kv", "/kv/", small{}, false}}})
	s, held := serve.New(r, serve.Options{Log: log})
	s.Listen("", ours)
	held.Release()
	defer s.Close()

	var ratios, plainRates, ourRates []float64
	for b.Loop() {
		for range 10 {
			p, o := rate(b, plainAt.Addr()), rate(b, ours.Addr())
			plainRates, ourRates, ratios = append(plainRates, p), append(ourRates, o), append(ratios, o/p)
		}
	}
	median := func(list []float64) float64 { slices.Sort(list); return list[len(list)/2] }
	b.ReportMetric(median(plainRates), "net/http-req/s")
	b.ReportMetric(median(ourRates), "framework-req/s")
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(ratios[len(ratios)/10], "ratio-p10")
	b.ReportMetric(ratios[len(ratios)*9/10], "ratio-p90")
	b.ReportMetric(0, "ns/op") // says nothing here
}

// rate returns how many requests per second are answered on eight busy
// connections.
func rate(b *testing.B, address net.Addr) float64 {
	var clients sync.WaitGroup
	var answered atomic.Int64
	began := time.Now()
	for range 8 {
		clients.Go(func() {
			c, err := net.Dial("tcp", address.String())
			if err != nil {
				b.Error(err)
				return
			}
			defer c.Close()
			in := bufio.NewReader(c)
			request := []byte("GET /hello/ HTTP/1.1\r\nHost: localhost\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
			for time.Since(began) < 300*time.Millisecond {
				if _, err := c.Write(request); err != nil {
					b.Error(err)
					return
				}
				if err := skipAnswer(in); err != nil {
					b.Error(err)
					return
				}
				answered.Add(1)
			}
		})
	}
	clients.Wait()
	return float64(answered.Load()) / time.Since(began).Seconds()
}

// skipAnswer reads an answer as cheaply as possible: only the server is measured.
func skipAnswer(in *bufio.Reader) error {
	size := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := in.Discard(size)
			return err
		}
		if len(line) > 16 && string(line[:16]) == "Content-Length: " {
			if _, err := fmt.Sscan(string(line[16:]), &size); err != nil {
				return err
			}
		}
	}
}
