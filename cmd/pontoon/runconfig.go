package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pontoon/node"
)

// defaultNodeFile may be absent, unlike a file that was asked for.
const defaultNodeFile = "/etc/pontoon/node.yaml"

// runFlags are the flags of `run`: the keys of the node file, where that file
// is, and how the log looks.
type runFlags struct {
	config    string
	logFormat *choice
	discard   bool        // see node.RunOptions
	given     node.Config // what the flags say; only those that were given count
}

func (f *runFlags) addTo(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.config, "config", defaultNodeFile, "the node `file`; the default one may be absent")
	f.logFormat = newChoice("text", "text", "json").addTo(cmd, "log-format", "", "how log lines look")
	cmd.Flags().BoolVar(&f.discard, "discard-flows", false,
		"give up the connections of an earlier version whose tables this one cannot read, instead of refusing to start")
	f.given = node.DefaultConfig()
	bindConfig(cmd.Flags(), &f.given)
}

// bindConfig defines one flag for each key of the node file.
func bindConfig(fs *pflag.FlagSet, cfg *node.Config) {
	fs.StringVar(&cfg.Name, "name", cfg.Name, "`name` of this node, unique in the cluster (default: the host name)")
	fs.StringVar(&cfg.Role, "role", cfg.Role, "lb (full member) or witness (votes, owns no data plane)")
	fs.StringVar(&cfg.DataDir, "data-dir", cfg.DataDir, "`directory` that survives a restart: identity, log, snapshots")
	fs.StringVar(&cfg.RunDir, "run-dir", cfg.RunDir, "`directory` of the control socket pontoon.sock")
	fs.StringVar(&cfg.Cluster.Address, "address", cfg.Cluster.Address, "`ip:port` the other nodes reach this one at (TCP, mutual TLS)")
	fs.Uint16Var(&cfg.Cluster.GossipPort, "gossip-port", cfg.Cluster.GossipPort, "UDP and TCP `port` of the gossip, on the same ip")
	fs.StringVar(&cfg.API.Listen, "api-listen", cfg.API.Listen, "`ip:port` of the API and the status page, HTTPS when not loopback; none for nowhere")
	fs.StringSliceVar(&cfg.DataPlane.Interfaces, "interface", cfg.DataPlane.Interfaces, "`interface` that carries load-balanced traffic (repeat)")
	fs.StringVar(&cfg.DataPlane.Hook, "hook", cfg.DataPlane.Hook, "where the data plane attaches: auto (XDP on network cards, TC elsewhere), tc, xdp or xdp-generic")
	fs.StringVar(&cfg.DataPlane.PinDir, "pin-dir", cfg.DataPlane.PinDir, "`directory` of the data plane on a bpf file system; one per node")
	fs.Uint32Var(&cfg.DataPlane.MaxFlows, "max-flows", cfg.DataPlane.MaxFlows, "`number` of connections there is room for, 1024 to 33554432")
	fs.DurationVar(&cfg.AgentGrace, "agent-grace", cfg.AgentGrace,
		"how long to wait before moving the instances of a node whose daemon is gone and whose kernel still forwards, 0s to 10m")
	fs.DurationVar(&cfg.Failover.EchoInterval, "echo-interval", cfg.Failover.EchoInterval, "`time` between two echoes on a path to another node's data plane, 5ms to 1s")
	fs.IntVar(&cfg.Failover.EchoMisses, "echo-misses", cfg.Failover.EchoMisses, "`number` of unanswered echoes in a row that make a path silent, 2 to 50")
	fs.DurationVar(&cfg.Failover.BFDInterval, "bfd-interval", cfg.Failover.BFDInterval, "`time` between two packets of a BFD session with another node's daemon, 10ms to 10s")
	fs.IntVar(&cfg.Failover.BFDMultiplier, "bfd-multiplier", cfg.Failover.BFDMultiplier, "`number` of missing packets in a row that end a BFD session, 2 to 50")
	fs.DurationVar(&cfg.Failover.Lease, "lease", cfg.Failover.Lease, "how `long` after it last heard from a quorum this node goes on claiming its virtual addresses, also when stopped, 300ms to 10s")
	fs.IntVar(&cfg.Nice, "nice", cfg.Nice, "nice `value` of the daemon, -20 (most processor time) to 19 (least); 0 leaves the one it was started with")
	fs.StringVar(&cfg.LogLevel, "log-level", cfg.LogLevel, "debug, info, warn or error")
}

// load puts the configuration together: defaults, then the node file, then the
// flags that were given. It does not validate the result.
func (f *runFlags) load(flags *pflag.FlagSet, hostname func() (string, error)) (node.Config, error) {
	cfg, err := readNodeFile(f.config, !flags.Changed("config"))
	if err != nil {
		return node.Config{}, err
	}
	into := pflag.NewFlagSet("", pflag.ContinueOnError)
	bindConfig(into, &cfg)
	if err := copyChanged(into, flags); err != nil {
		return node.Config{}, err
	}
	if cfg.Name == "" {
		if cfg.Name, err = hostname(); err != nil {
			return node.Config{}, fmt.Errorf("find out the host name (give --name): %w", err)
		}
	}
	return cfg, nil
}

// copyChanged sets in dst what was given in src, for the flags both have.
func copyChanged(dst, src *pflag.FlagSet) error {
	var errs []error
	src.Visit(func(f *pflag.Flag) {
		to := dst.Lookup(f.Name)
		if to == nil {
			return
		}
		var err error
		if list, ok := f.Value.(pflag.SliceValue); ok {
			err = to.Value.(pflag.SliceValue).Replace(list.GetSlice())
		} else {
			err = to.Value.Set(f.Value.String())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("--%s: %w", f.Name, err))
		}
	})
	return errors.Join(errs...)
}

// readNodeFile reads a node file over the defaults. Every error names the file,
// and the line and column where there is one.
func readNodeFile(path string, mayBeAbsent bool) (node.Config, error) {
	text, err := os.ReadFile(path) //nolint:gosec // the operator names the file
	if errors.Is(err, fs.ErrNotExist) && mayBeAbsent {
		return node.DefaultConfig(), nil
	}
	if err != nil {
		return node.Config{}, fmt.Errorf("read node file: %w", err)
	}
	cfg, err := parseNodeFile(text)
	if err != nil {
		return node.Config{}, fmt.Errorf("%s:%w", path, err)
	}
	return cfg, nil
}

func parseNodeFile(text []byte) (node.Config, error) {
	cfg := node.DefaultConfig()
	dec := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict())
	err := dec.Decode(&cfg)
	if errors.Is(err, io.EOF) {
		return node.DefaultConfig(), nil // an empty file says nothing
	}
	if err != nil {
		return node.Config{}, locate(text, err)
	}
	if err := dec.Decode(&node.Config{}); !errors.Is(err, io.EOF) {
		return node.Config{}, errors.New(" a second YAML document begins in it: a node file is one document")
	}
	return cfg, nil
}

// locate words an error of the YAML library as "line:column: what is wrong and
// what is wanted". The caller puts the file's name before it.
func locate(text []byte, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return locateDuration(text, err)
	}
	position := at.GetToken().Position
	return fmt.Errorf("%d:%d: %s", position.Line, position.Column, explainYAML(at))
}

func explainYAML(err yaml.Error) string {
	var (
		unknown  *yaml.UnknownFieldError
		mismatch *yaml.TypeError
		overflow *yaml.OverflowError
		shape    *yaml.UnexpectedNodeTypeError
	)
	switch {
	case errors.As(err, &unknown):
		key := err.GetToken().Value
		if near := nearest(key, configKeys(reflect.TypeFor[node.Config]())); near != "" {
			return fmt.Sprintf("unknown key %q: did you mean %q?", key, near)
		}
		return fmt.Sprintf("unknown key %q: `pontoon run --help` lists the keys", key)
	case errors.As(err, &mismatch):
		return fmt.Sprintf("%q: want %s", err.GetToken().Value, kindName(mismatch.DstType))
	case errors.As(err, &overflow):
		return fmt.Sprintf("%q: want %s", overflow.SrcNum, kindName(overflow.DstType))
	}
	if errors.As(err, &shape) && shape.Expected == ast.SequenceType {
		return fmt.Sprintf("%q: want a list, like [eth1, eth2]", err.GetToken().Value)
	}
	if errors.As(err, &shape) && shape.Expected == ast.MappingType {
		return fmt.Sprintf("%q: want keys of its own, indented below it", err.GetToken().Value)
	}
	return err.GetMessage()
}

func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return fmt.Sprintf("a whole number from 0 to %d", uint64(1)<<t.Bits()-1)
	case reflect.Int:
		return "a whole number"
	case reflect.Int64:
		return wantDuration
	}
	return "text"
}

const wantDuration = "a duration with a unit, like 10s or 1m30s"

// locateDuration finds where a duration is that could not be read: the YAML
// library reports those without a position.
func locateDuration(text []byte, err error) error {
	file, parseErr := parser.ParseBytes(text, 0)
	if parseErr != nil {
		return fmt.Errorf(" %w", err)
	}
	for _, key := range durationKeys(reflect.TypeFor[node.Config](), "$") {
		path, pathErr := yaml.PathString(key)
		if pathErr != nil {
			continue
		}
		found, findErr := path.FilterFile(file)
		if findErr != nil || found == nil || found.GetToken() == nil {
			continue
		}
		token := found.GetToken()
		if _, bad := time.ParseDuration(token.Value); bad != nil {
			return fmt.Errorf("%d:%d: %q: want %s", token.Position.Line, token.Position.Column, token.Value, wantDuration)
		}
	}
	return fmt.Errorf(" %w", err)
}

// durationKeys lists the YAML paths of all durations in a struct and in those inside it.
func durationKeys(t reflect.Type, at string) []string {
	var keys []string
	for i := range t.NumField() {
		field := t.Field(i)
		path := at + "." + field.Tag.Get("yaml")
		switch {
		case field.Type == reflect.TypeFor[time.Duration]():
			keys = append(keys, path)
		case field.Type.Kind() == reflect.Struct:
			keys = append(keys, durationKeys(field.Type, path)...)
		}
	}
	return keys
}

// configKeys lists the YAML keys of a struct and of those inside it.
func configKeys(t reflect.Type) []string {
	var keys []string
	for i := range t.NumField() {
		field := t.Field(i)
		keys = append(keys, field.Tag.Get("yaml"))
		if field.Type.Kind() == reflect.Struct {
			keys = append(keys, configKeys(field.Type)...)
		}
	}
	return keys
}

// nearest returns the word at most two edits away from s, or "".
func nearest(s string, words []string) string {
	best, found := 3, ""
	for _, w := range words {
		if d := editDistance(s, w); d < best {
			best, found = d, w
		}
	}
	return found
}

// editDistance is Levenshtein's, by rows of the usual table.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := slices.Clone(row)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
		}
		row = next
	}
	return row[len(b)]
}
