//go:build unix

package wire_test

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"example.org/orchestrator/app/internal/wire"
)

// TestFiles cross with their message, however long it is.
func TestFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	got := make(chan string, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		c, _, err := wire.Accept(conn)
		if err != nil {
			t.Error(err)
			return
		}
		defer c.Close()
		c.Send("go on")
		var text string
		files, err := c.ReceiveFiles(&text)
		if err != nil || len(files) != 2 || len(text) != 200_000 {
			t.Errorf("received %d files and %d bytes, %v", len(files), len(text), err)
			got <- ""
			return
		}
		data, _ := io.ReadAll(files[1])
		for _, f := range files {
			f.Close()
		}
		got <- string(data)
	}()
	c, err := wire.Dial(path, wire.Hello{Role: wire.RoleClient})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var word string
	if err := c.Receive(&word); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for range 2 {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	if err := c.SendFiles(strings.Repeat("x", 200_000), files); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "content" {
		t.Errorf("the second file has %q", text)
	}
}
