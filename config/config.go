// Package config loads and checks main.yaml, the one configuration file of an
// orchestrator.
//
// Loading is strict: an unknown or repeated key, a value of the wrong type or
// an impossible address is an error that names file, line and column, and all
// mistakes are reported at once. Each setting has a default, so "modules: []" is a
// whole file; one without any content is refused, because it is likely to be
// incomplete. Clients that only look for a running orchestrator read leniently, with
// [RunDir] and [FindRunDir].
//
// The package knows nothing of modules beyond their names; a module's own
// settings stay a [Section] until the module decodes them.
package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// DefaultFile is where the configuration is looked for by default.
const DefaultFile = "config/main.yaml"

// Config is a whole configuration file.
type Config struct {
	App     App      `yaml:"app"`
	Build   Build    `yaml:"build"`
	Modules []Module `yaml:"modules"`

	file  string
	pos   map[string]position
	empty bool
}

// App holds the settings of the program itself. The doc tags explain the settings to
// their users: see [Settings].
type App struct {
	Name      string `yaml:"name" doc:"what the program is called in status and on its index page"`
	Version   string `yaml:"version" doc:"shown by status"`
	HotReload bool   `yaml:"hot_reload" doc:"development: watch the sources, build them and reload when they change"`
	Listen    string `yaml:"listen" doc:"HTTP address of all modules: host:port, tcp://host:port or unix://path"`
	TLS       TLS    `yaml:"tls"`

	AllowedHosts []string `yaml:"allowed_hosts" doc:"development: names besides those of this machine by which browsers may reach the program, and whose pages may send to it; .example.org means all below it"`
	RunDir       string   `yaml:"run_dir" doc:"folder for sockets, locks and builds, relative to the working directory; it must belong to the program alone"`

	Drain       time.Duration `yaml:"drain" doc:"how long a reload waits for a moment to hold requests, and how long an old generation forwards after the handoff; a stop gives requests as long to end" default:"500ms with hot_reload, else 10s"`
	MaxPause    time.Duration `yaml:"max_pause" doc:"the longest hold in the first half of app.drain; also how long a request that nothing is known about is expected to take, and after how long without a byte its client counts as stalled"`
	MaxFreeze   time.Duration `yaml:"max_freeze" doc:"the longest hold in the second half of app.drain; the same as app.max_pause forbids longer ones" default:"1s, at least app.max_pause"`
	StopTimeout time.Duration `yaml:"stop_timeout" doc:"the longest that a graceful stop may take; what is left is killed; 0 for as long as app.drain and the hooks of all modules may take together"`
	RunTimeout  time.Duration `yaml:"run_timeout" doc:"how long Run of the modules may take to return after its context has ended, and event subscribers to handle what is queued" default:"500ms with hot_reload, else app.max_pause"`

	ReadHeaderTimeout time.Duration `yaml:"read_header_timeout" doc:"how long a client may take to send the head of a request, from its first byte; 0 for any time"`
	MaxHeaderBytes    Size          `yaml:"max_header_bytes" doc:"how long the head of a request may be; 0 for 1MiB"`
	BodyTimeout       time.Duration `yaml:"body_timeout" doc:"how long a client may send or take nothing while its body is read or its answer is written; below 240 bytes a second on average it counts as nothing after 10s; 0 for any time"`
	IdleTimeout       time.Duration `yaml:"idle_timeout" doc:"how long a connection may wait for its next request; 0 for any time"`
	MaxConnections    int           `yaml:"max_connections" doc:"connections of all kinds; beyond it the longest idle HTTP connection is closed; 0 for as many as the limit of open files allows"`

	Probation   time.Duration `yaml:"probation" doc:"how long an old generation stands by after the commit; 0 for not at all"`
	HookTimeout time.Duration `yaml:"hook_timeout" doc:"limit of each call of a module's hook"`
	MaxState    Size          `yaml:"max_state" doc:"limit of all states together, when they are handed over"`

	CrashQueue        time.Duration `yaml:"crash_queue" doc:"how long clients wait for a restart after a crash before they are turned away"`
	RestartOlderBuild bool          `yaml:"restart_older_build" doc:"replace a build that keeps crashing by the one before it; the state in memory is lost either way"`
}

// Build is how sources become a program. A change takes effect at the next run.
type Build struct {
	Package string   `yaml:"package" doc:"the main package" default:"the one that this program was built from"`
	Flags   []string `yaml:"flags" doc:"for the go command, such as -tags=x"`
	Debug   bool     `yaml:"debug" doc:"keep symbols and DWARF for a debugger; links slower"`
	Direct  bool     `yaml:"direct" doc:"build without the go command where the result is the same"`
}

// TLS names the files of a certificate, with its chain, and of its key, in PEM.
// They are read when a generation starts.
type TLS struct {
	Cert string `yaml:"cert" doc:"file with the certificate for HTTP, with its chain, in PEM; it is read when a generation starts"`
	Key  string `yaml:"key" doc:"file with its key, in PEM"`
}

// Module is an entry in the list of modules to run, in start order.
type Module struct {
	Name     string  `yaml:"name" doc:"a module that is compiled in; the order of the list is the order of start" default:"none: it is mandatory"`
	Path     string  `yaml:"path" doc:"where its HTTP handler is mounted" default:"/<name>/"`
	Listen   string  `yaml:"listen" doc:"address of its own connections, written like app.listen" default:"none"`
	MaxState Size    `yaml:"max_state" doc:"limit of its state" default:"app.max_state"`
	Config   Section `yaml:"config" doc:"the module's own settings" default:"those of the module"`
}

// Section is a part of the file that a module decodes.
type Section struct {
	file string
	key  string
	node *yaml.Node
}

// Load reads and checks file. names are the modules compiled into this program.
// For a wrong configuration the error lists every mistake, one per line, and
// [IsInvalid] reports true.
func Load(file string, names []string) (*Config, error) {
	cfg, err := parse(file)
	if err != nil {
		return nil, err
	}
	if cfg.empty {
		return nil, &Error{File: file, Msg: "it is empty: is it being written? A program without any module would be \"modules: []\""}
	}
	if err := cfg.check(names); err != nil {
		return nil, err
	}
	return cfg, nil
}

// HotReload reports whether the sources are to be watched. It reads leniently,
// for callers that cannot check the whole file: only the build that a file was
// written for knows all of its modules.
func HotReload(file string) bool {
	return lenient(file).App.HotReload
}

// BuildSettings returns how to build. It reads leniently.
func BuildSettings(file string) Build { return lenient(file).Build }

// RunDir returns where a program with this configuration keeps its control
// socket. It reads leniently: whatever is wrong with the file, it returns the
// best guess, in the end the default.
func RunDir(file string) string {
	return lenient(file).App.RunDir
}

// Digest identifies the settings of the module called name: equal digests mean
// equal settings. It returns "" for a module that is not configured.
func (c *Config) Digest(name string) string {
	for _, m := range c.Modules {
		if m.Name != name {
			continue
		}
		h := sha256.New()
		fmt.Fprintf(h, "%q %q\n", m.Path, m.Listen)
		left := maxVisits
		identify(h, m.Config.node, &left)
		return hex.EncodeToString(h.Sum(nil)[:8])
	}
	return ""
}

// identify writes the meaning of n to h, with aliases resolved. left bounds the
// number of values, as when decoding.
func identify(h io.Writer, n *yaml.Node, left *int) {
	for n != nil && n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n == nil || *left == 0 {
		return
	}
	*left--
	fmt.Fprintf(h, "%d %q %q %d\n", n.Kind, n.Tag, n.Value, len(n.Content))
	for _, inner := range n.Content {
		identify(h, inner, left)
	}
}

// ModuleNames returns the names of the modules in the order of the file.
func (c *Config) ModuleNames() []string {
	names := make([]string, 0, len(c.Modules))
	for _, m := range c.Modules {
		names = append(names, m.Name)
	}
	return names
}

// File returns the path the configuration was read from.
func (c *Config) File() string { return c.file }

// ErrorAt returns an error about the key with this dotted path, such as
// modules[1].path. It is for mistakes that this package cannot notice.
func (c *Config) ErrorAt(key, format string, args ...any) error {
	p := c.pos[key]
	for parent := key; p == (position{}) && parent != ""; p = c.pos[parent] {
		parent = parent[:max(0, strings.LastIndexAny(parent, ".["))]
	}
	return &Error{File: c.file, Line: p.line, Column: p.column, Key: key, Msg: fmt.Sprintf(format, args...)}
}

// ParseSection parses text as a module's own settings, for its tests. Errors
// use name in place of a file.
func ParseSection(name, text string) (Section, error) {
	var document yaml.Node
	if err := yaml.Unmarshal([]byte(text), &document); err != nil {
		return Section{}, syntaxError(name, err)
	}
	if len(document.Content) == 0 {
		return Section{}, nil
	}
	return Section{file: name, key: "config", node: document.Content[0]}, nil
}

// At adds the place of the section to an error about what is in it.
func (s Section) At(err error) error {
	if s.node == nil {
		return err
	}
	return &Error{File: s.file, Line: s.node.Line, Column: s.node.Column, Key: s.key, Msg: err.Error()}
}

// Decode stores the section in v, a pointer to a struct, as strictly as the
// file itself is read: an unknown key is an error with its place and the
// nearest known key. Keys that the section lacks keep their value in v; an
// absent section changes nothing.
func (s Section) Decode(v any) error {
	if s.node == nil {
		return nil
	}
	target := reflect.ValueOf(v)
	if target.Kind() != reflect.Pointer || target.IsNil() {
		return fmt.Errorf("config: decode into %T: want a non-nil pointer", v)
	}
	d := &decoder{file: s.file}
	d.decode(s.node, target.Elem(), s.key)
	return errors.Join(d.errs...)
}

func defaults() *Config {
	return &Config{Build: Build{Direct: true}, App: App{
		Name:        "main-orchestrator",
		HotReload:   true,
		Listen:      "127.0.0.1:8080",
		RunDir:      ".orchestrator",
		Drain:       -1, // depends on HotReload
		MaxPause:    250 * time.Millisecond,
		MaxFreeze:   -1, // depends on MaxPause
		RunTimeout:  -1, // depends on HotReload and MaxPause
		Probation:   time.Second,
		HookTimeout: 5 * time.Second,
		StopTimeout: 30 * time.Second,
		MaxState:    4 << 30,

		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		BodyTimeout:       30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		CrashQueue:        10 * time.Second,
	}}
}

func parse(file string) (*Config, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, unreadable(file, err)
	}
	return parseText(file, data)
}

// parseText parses data, the content of file.
func parseText(file string, data []byte) (*Config, error) {
	cfg := defaults()
	cfg.file = file
	cfg.pos = map[string]position{}

	var document, second yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(data))
	switch err := dec.Decode(&document); {
	case errors.Is(err, io.EOF):
		cfg.empty = true
	case err != nil:
		return nil, syntaxError(file, err)
	default:
		if err := dec.Decode(&second); err == nil {
			return nil, &Error{File: file, Line: second.Line, Column: second.Column, Msg: "a second YAML document: only one is read"}
		} else if !errors.Is(err, io.EOF) {
			return nil, syntaxError(file, err)
		}
		d := &decoder{file: file, pos: cfg.pos}
		d.decode(document.Content[0], reflect.ValueOf(cfg).Elem(), "")
		if len(d.errs) > 0 {
			return nil, errors.Join(d.errs...)
		}
	}
	cfg.App.fill()
	return cfg, nil
}

// fill sets the defaults that depend on other settings.
func (a *App) fill() {
	production := func(d *time.Duration, in, inDevelopment time.Duration) {
		if *d == -1 {
			*d = in
			if a.HotReload {
				*d = inDevelopment
			}
		}
	}
	production(&a.Drain, 10*time.Second, 500*time.Millisecond)
	production(&a.MaxFreeze, max(time.Second, a.MaxPause), max(time.Second, a.MaxPause))
	production(&a.RunTimeout, a.MaxPause, 500*time.Millisecond)
}

func lenient(file string) *Config {
	cfg := defaults()
	data, err := os.ReadFile(file)
	if err != nil {
		return cfg
	}
	var document yaml.Node
	if yaml.Unmarshal(data, &document) == nil && len(document.Content) > 0 {
		d := &decoder{file: file}
		d.decode(document.Content[0], reflect.ValueOf(cfg).Elem(), "")
	}
	if cfg.App.RunDir == "" {
		cfg.App.RunDir = defaults().App.RunDir
	}
	return cfg
}

// check finds the mistakes that decoding does not.
func (c *Config) check(names []string) error {
	var errs []error
	fail := func(key, format string, args ...any) {
		errs = append(errs, c.ErrorAt(key, format, args...))
	}
	if c.App.Name == "" {
		fail("app.name", "must not be empty")
	}
	if c.App.RunDir == "" {
		fail("app.run_dir", "must not be empty")
	}
	type listener struct{ whose, network, address string }
	var listeners []listener
	listen := func(key, text, whose string) {
		network, address, err := SplitAddress(text)
		if err != nil {
			fail(key, "%v", err)
			return
		}
		for _, l := range listeners {
			if network == l.network && overlap(network, address, l.address) {
				fail(key, "%s already listens on %s", l.whose, l.address)
			}
		}
		listeners = append(listeners, listener{whose, network, address})
	}
	listen("app.listen", c.App.Listen, "the program itself")
	for _, d := range []struct {
		key   string
		value time.Duration
		zero  bool
	}{
		{"app.drain", c.App.Drain, true},
		{"app.max_pause", c.App.MaxPause, false},
		{"app.max_freeze", c.App.MaxFreeze, false},
		{"app.run_timeout", c.App.RunTimeout, false},
		{"app.stop_timeout", c.App.StopTimeout, true},
		{"app.read_header_timeout", c.App.ReadHeaderTimeout, true},
		{"app.body_timeout", c.App.BodyTimeout, true},
		{"app.idle_timeout", c.App.IdleTimeout, true},
		{"app.crash_queue", c.App.CrashQueue, true},
		{"app.probation", c.App.Probation, true},
		{"app.hook_timeout", c.App.HookTimeout, false},
	} {
		if d.zero && d.value < 0 {
			fail(d.key, "must not be negative, got %v", d.value)
		} else if !d.zero && d.value <= 0 {
			fail(d.key, "must be a duration above zero, got %v", d.value)
		}
	}
	if c.App.MaxFreeze < c.App.MaxPause {
		fail("app.max_freeze", "must not be below app.max_pause, %v, got %v", c.App.MaxPause, c.App.MaxFreeze)
	}
	if c.App.MaxHeaderBytes < 0 || c.App.MaxHeaderBytes > maxHeader {
		fail("app.max_header_bytes", "must be between 0 and %v, got %v", Size(maxHeader), c.App.MaxHeaderBytes)
	}
	if c.App.MaxConnections < 0 {
		fail("app.max_connections", "must not be negative, got %d", c.App.MaxConnections)
	}
	if c.App.MaxState <= 0 {
		fail("app.max_state", "must be a size above zero, got %v", c.App.MaxState)
	}
	if (c.App.TLS.Cert == "") != (c.App.TLS.Key == "") {
		fail("app.tls", "needs both cert and key, or neither")
	}
	for i, f := range c.Build.Flags {
		if !strings.HasPrefix(f, "-") {
			fail(fmt.Sprintf("build.flags[%d]", i), "expected a flag of go build such as -tags=x, got %q", f)
		}
	}
	first := map[string]int{}
	mounts := map[string]string{}
	for i, m := range c.Modules {
		key := fmt.Sprintf("modules[%d]", i)
		if m.Name == "" {
			fail(key, "a module needs a name")
			continue
		}
		if j, dup := first[m.Name]; dup {
			fail(key+".name", "module %q is listed twice, first as modules[%d]", m.Name, j)
			continue
		}
		first[m.Name] = i
		if !slices.Contains(names, m.Name) {
			fail(key+".name", "no module %q is compiled into this program (%s)", m.Name, suggest(m.Name, names))
		}
		if m.Listen != "" {
			listen(key+".listen", m.Listen, fmt.Sprintf("module %q", m.Name))
		}
		if m.MaxState < 0 {
			fail(key+".max_state", "must not be negative, got %v", m.MaxState)
		}
		if m.Path != "" && (!strings.HasPrefix(m.Path, "/") || !strings.HasSuffix(m.Path, "/")) {
			fail(key+".path", "expected a path that starts and ends with a slash, such as /%s/, got %q", m.Name, m.Path)
		}
		if other, taken := mounts[m.Mount()]; taken {
			fail(key+".path", "module %q already has the path %s", other, m.Mount())
		}
		mounts[m.Mount()] = m.Name
	}
	return errors.Join(errs...)
}

// Mount returns the path below which the module's HTTP handler answers. It
// starts and ends with a slash.
func (m Module) Mount() string {
	if m.Path != "" {
		return m.Path
	}
	return "/" + m.Name + "/"
}

// SplitAddress splits a listen address: host:port, tcp://host:port or
// unix://path, where the path is relative to the working directory unless it
// begins with a slash.
func SplitAddress(text string) (network, address string, err error) {
	if path, ok := strings.CutPrefix(text, "unix://"); ok {
		if path == "" || len(path) > maxSocketPath {
			return "", "", fmt.Errorf("expected a path of 1 to %d bytes after unix://, got %q", maxSocketPath, path)
		}
		return "unix", path, nil
	}
	address = strings.TrimPrefix(text, "tcp://")
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", "", fmt.Errorf("expected an address such as 127.0.0.1:8080 or unix://path, got %q", text)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return "", "", fmt.Errorf("expected a port from 0 to 65535 in %q", text)
	}
	return "tcp", address, nil
}

// overlap reports whether two addresses of a network cannot both be listened on. It
// looks no names up but localhost.
func overlap(network, a, b string) bool {
	if network == "unix" {
		return filepath.Clean(a) == filepath.Clean(b)
	}
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || strings.TrimLeft(portA, "0") != strings.TrimLeft(portB, "0") || strings.Trim(portA, "0") == "" {
		return false // port 0 is a port of the system's choice
	}
	hostA, hostB = meaning(hostA), meaning(hostB)
	return hostA == hostB || hostA == "" || hostB == ""
}

// meaning returns one text for every way to write a host, and "" for all hosts.
func meaning(host string) string {
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return strings.ToLower(host)
	case ip.IsUnspecified():
		return ""
	default:
		return ip.Unmap().String()
	}
}

// maxHeader bounds the head of a request: half a head moves with its connection.
const maxHeader = 1 << 20

// maxSocketPath is the longest path of a Unix socket that every system allows.
const maxSocketPath = 103
