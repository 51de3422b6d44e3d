package node

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"regexp"
	"time"

	"pontoon/bpf"
)

// Config is the node file: what one machine must know before it can hear of
// the rest. Everything else is replicated state.
type Config struct {
	// Name is the node's name in the cluster. Default: the host name.
	Name string `yaml:"name"`
	// Role is "lb" (full member) or "witness" (votes, owns no data plane).
	Role string `yaml:"role"`
	// DataDir keeps what must survive a restart: identity, Raft log, snapshots.
	DataDir string `yaml:"data_dir"`
	// RunDir holds the control socket pontoon.sock.
	RunDir    string          `yaml:"run_dir"`
	Cluster   ClusterConfig   `yaml:"cluster"`
	API       APIConfig       `yaml:"api"`
	DataPlane DataPlaneConfig `yaml:"data_plane"`
	// AgentGrace is how long this node, when it leads, waits before it moves
	// the instances of a node whose daemon is gone while its kernel, and so its
	// data plane, still answers. It waits longer where the silent node may still
	// claim its VIPs: for its lease, or for what it left when it stopped in order.
	AgentGrace time.Duration  `yaml:"agent_grace"`
	Failover   FailoverConfig `yaml:"failover"`
	// Nice is the nice value of the daemon's process, -20 to 19; 0 leaves the one it was started with. Whoever runs the
	// process sets it, Run does not. A daemon without the right to it keeps the value it has.
	Nice int `yaml:"nice"`
	// LogLevel is debug, info, warn or error.
	LogLevel string `yaml:"log_level"`
}

// ClusterConfig says where this node meets the others.
type ClusterConfig struct {
	// Address is ip:port of the one mutual-TLS port, as the others reach it.
	Address string `yaml:"address"`
	// GossipPort is the UDP and TCP port of the gossip, on the same ip.
	GossipPort uint16 `yaml:"gossip_port"`
}

// APIConfig says where the HTTP API and the status page listen.
type APIConfig struct {
	// Listen is host:port; plain HTTP on loopback, HTTPS elsewhere, "none" for nowhere.
	Listen string `yaml:"listen"`
}

// DataPlaneConfig says which interfaces carry load-balanced traffic.
type DataPlaneConfig struct {
	Interfaces []string `yaml:"interfaces"`
	Hook       string   `yaml:"hook"`
	PinDir     string   `yaml:"pin_dir"`
	MaxFlows   uint32   `yaml:"max_flows"`
}

// DefaultConfig returns the values used where the node file is silent; Name
// and Cluster.Address have none that could be known here.
func DefaultConfig() Config {
	return Config{
		Role:       "lb",
		DataDir:    "/var/lib/pontoon",
		RunDir:     "/run/pontoon",
		Cluster:    ClusterConfig{GossipPort: 7401},
		API:        APIConfig{Listen: "127.0.0.1:7480"},
		DataPlane:  DataPlaneConfig{Hook: "auto", PinDir: "/sys/fs/bpf/pontoon", MaxFlows: 1 << 20},
		AgentGrace: 3 * time.Second,
		Failover:   defaultFailover(),
		Nice:       defaultNice,
		LogLevel:   "info",
	}
}

// defaultNice is before everything that serves users, behind nothing that has to be real-time.
// Decision 0020.
const defaultNice = -10

// SocketPath is where the control socket of a daemon with this configuration is.
func (c Config) SocketPath() string { return filepath.Join(c.RunDir, "pontoon.sock") }

// Validate reports everything that is wrong with the configuration at once.
func (c Config) Validate() error {
	var errs []error
	bad := func(key, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", key, fmt.Sprintf(format, args...)))
	}
	if !regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`).MatchString(c.Name) {
		bad("name", "%q: want 1 to 63 letters, digits, dots, dashes or underscores, beginning and ending with a letter or digit", c.Name)
	}
	if c.Role != "lb" && c.Role != "witness" {
		bad("role", "%q: want lb or witness", c.Role)
	}
	if c.DataDir == "" {
		bad("data_dir", "is empty: name a directory that survives a restart")
	}
	if c.RunDir == "" {
		bad("run_dir", "is empty: name a directory for the control socket")
	}
	c.validateCluster(bad)
	if c.Role == "lb" {
		c.validateDataPlane(bad)
	}
	if c.AgentGrace < 0 || c.AgentGrace > 10*time.Minute {
		bad("agent_grace", "%s: want 0s to 10m", c.AgentGrace)
	}
	c.Failover.validate(bad)
	if c.Nice < -20 || c.Nice > 19 {
		bad("nice", "%d: want -20 to 19", c.Nice)
	}
	switch c.LogLevel {
	case "debug", "info", "warn", "error":
	default:
		bad("log_level", "%q: want debug, info, warn or error", c.LogLevel)
	}
	return errors.Join(errs...)
}

// canonical returns the configuration with its cluster address in the one form
// that the replicated state has it in. IPv6 addresses can be written in several,
// and members are looked up by the text.
func (c Config) canonical() Config {
	if ap, err := netip.ParseAddrPort(c.Cluster.Address); err == nil {
		c.Cluster.Address = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()).String()
	}
	return c
}

func (c Config) validateCluster(bad func(key, format string, args ...any)) {
	ap, err := netip.ParseAddrPort(c.Cluster.Address)
	switch {
	case c.Cluster.Address == "":
		bad("cluster.address", "is missing: give the ip:port the other nodes reach this one at, like 192.168.80.11:7400")
	case err != nil:
		bad("cluster.address", "%q: want ip:port, like 192.168.80.11:7400", c.Cluster.Address)
	case ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() || ap.Addr().Zone() != "" || ap.Port() == 0:
		bad("cluster.address", "%q: want an address the other nodes can reach, with a port", c.Cluster.Address)
	case ap.Port() == c.Cluster.GossipPort:
		bad("cluster.gossip_port", "%d is also the port of cluster.address: choose another", c.Cluster.GossipPort)
	}
	if c.Cluster.GossipPort == 0 {
		bad("cluster.gossip_port", "0: want 1 to 65535")
	}
	if c.API.Listen != "none" {
		if _, err := netip.ParseAddrPort(c.API.Listen); err != nil {
			bad("api.listen", "%q: want ip:port, or none", c.API.Listen)
		}
	}
}

func (c Config) validateDataPlane(bad func(key, format string, args ...any)) {
	if len(c.DataPlane.Interfaces) == 0 {
		bad("data_plane.interfaces", "is empty: name the interfaces that carry load-balanced traffic (a witness needs none: role witness)")
	}
	seen := map[string]bool{}
	for _, i := range c.DataPlane.Interfaces {
		if seen[i] {
			bad("data_plane.interfaces", "%s is named twice", i)
		}
		seen[i] = true
	}
	switch c.DataPlane.Hook {
	case bpf.HookAuto, bpf.HookTC, bpf.HookXDP, bpf.HookXDPGeneric:
	default:
		bad("data_plane.hook", "%q: want auto, tc, xdp or xdp-generic", c.DataPlane.Hook)
	}
	if c.DataPlane.MaxFlows < 1024 || c.DataPlane.MaxFlows > 1<<25 {
		bad("data_plane.max_flows", "%d: want 1024 to %d", c.DataPlane.MaxFlows, 1<<25)
	}
	if !filepath.IsAbs(c.DataPlane.PinDir) {
		bad("data_plane.pin_dir", "%q: want an absolute path on a bpf file system", c.DataPlane.PinDir)
	}
}
