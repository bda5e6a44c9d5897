// Package kv is a module that keeps keys and values in a file that only one
// process can hold. It shows why the old module's Shutdown comes before the new
// one's Initialize.
package kv

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"example.org/orchestrator/app/eventbus"
	"example.org/orchestrator/modules"
)

const (
	maxKey   = bbolt.MaxKeySize
	maxValue = 1 << 20
)

var bucket = []byte("kv")

// KV answers PUT, GET and DELETE /<key>. What it has confirmed is on disk.
type KV struct {
	settings settings
	db       *bbolt.DB
}

type settings struct {
	Path string `yaml:"path" doc:"file with the keys and values"`
}

func (s *settings) Validate() error {
	if s.Path == "" {
		return errors.New("path must not be empty: it is the file with the keys and values")
	}
	return nil
}

var (
	_ http.Handler       = (*KV)(nil)
	_ modules.Configured = (*KV)(nil)
)

// New makes the module.
func New() modules.Module { return &KV{settings: settings{Path: "kv.db"}} }

// Settings are checked before anything is touched.
func (k *KV) Settings() any { return &k.settings }

// Initialize opens the file. It makes the file and its folder if there is none.
func (k *KV) Initialize(ctx context.Context, _ *eventbus.Bus, _ modules.Config) error {
	s := k.settings
	if err := os.MkdirAll(filepath.Dir(s.Path), 0o755); err != nil {
		return fmt.Errorf("kv: make the folder of the file: %w", err)
	}
	wait := time.Second
	if deadline, ok := ctx.Deadline(); ok {
		wait = min(wait, time.Until(deadline)/2)
	}
	db, err := bbolt.Open(s.Path, 0o644, &bbolt.Options{Timeout: wait})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return fmt.Errorf("kv: open %s: another process holds it", s.Path)
	}
	if err != nil {
		return fmt.Errorf("kv: open %s: %w", s.Path, err)
	}
	k.db = db
	return db.Update(func(tx *bbolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(bucket)
		return err
	})
}

// Shutdown closes the file.
func (k *KV) Shutdown(context.Context) error {
	if k.db == nil {
		return nil
	}
	return k.db.Close()
}

func (k *KV) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := strings.TrimPrefix(r.URL.Path, "/")
	if key == "" || len(key) > maxKey {
		http.Error(w, fmt.Sprintf("kv: the path must be a key of 1 to %d bytes", maxKey), http.StatusBadRequest)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		k.get(w, key)
	case http.MethodPut:
		k.put(w, r, key)
	case http.MethodDelete:
		k.answer(w, k.update(func(b *bbolt.Bucket) error { return b.Delete([]byte(key)) }))
	default:
		w.Header().Set("Allow", "GET, HEAD, PUT, DELETE")
		http.Error(w, "kv: only GET, PUT and DELETE are understood", http.StatusMethodNotAllowed)
	}
}

func (k *KV) get(w http.ResponseWriter, key string) {
	var value []byte
	err := k.db.View(func(tx *bbolt.Tx) error {
		if v := tx.Bucket(bucket).Get([]byte(key)); v != nil {
			value = append(make([]byte, 0, len(v)), v...) // v is valid only within the transaction
		}
		return nil
	})
	switch {
	case err != nil:
		http.Error(w, "kv: "+err.Error(), http.StatusInternalServerError)
	case value == nil:
		http.Error(w, "kv: no such key", http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(value)
	}
}

func (k *KV) put(w http.ResponseWriter, r *http.Request, key string) {
	value, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxValue))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		http.Error(w, fmt.Sprintf("kv: a value has at most %d bytes", maxValue), http.StatusRequestEntityTooLarge)
		return
	}
	if err != nil {
		http.Error(w, "kv: read the value: "+err.Error(), http.StatusBadRequest)
		return
	}
	k.answer(w, k.update(func(b *bbolt.Bucket) error { return b.Put([]byte(key), value) }))
}

func (k *KV) update(f func(*bbolt.Bucket) error) error {
	return k.db.Update(func(tx *bbolt.Tx) error { return f(tx.Bucket(bucket)) })
}

func (k *KV) answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, "kv: "+err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
