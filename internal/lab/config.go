package lab

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
)

// Config says what a lab shall hold. The zero value is an empty two-leg
// network without a product binary.
type Config struct {
	// Binary is the product's executable. It may stay empty when no node is
	// started.
	Binary string
	// Topology is TwoLeg when empty.
	Topology Topology
	// Nodes, Clients and Endpoints count the hosts of each kind; see
	// MaxNodes, MaxClients and MaxEndpoints. Nodes are called lb1, lb2, …,
	// clients client1, …, endpoints ep1, ….
	Nodes, Clients, Endpoints int
	// Routers is how many routers [Routed] has, 1 when 0; see MaxRouters. They are
	// called r1 and r2. They forward; what finds routes is started by the caller.
	Routers int
	// LearnRoutes leaves the nodes of [Routed] without default routes: they have
	// to learn the way to the clients.
	LearnRoutes bool
	// Witnesses is how many of the nodes, the last ones, are started with the
	// role of a witness: they are given no interface to balance on.
	Witnesses int
	// ClusterIPv6 gives the nodes IPv6 cluster addresses.
	ClusterIPv6 bool
	// NodeArgs are put behind the flags every node is started with.
	NodeArgs []string
	// DiskSize gives each node a disk of its own of so many bytes, in memory, for its
	// data directory; 0 leaves it on the disk Dir is on.
	DiskSize int64
	// Dir is where the lab's own directory is made; os.TempDir() when empty.
	// It must be short: the nodes' Unix sockets live below it and their
	// paths may have 107 bytes.
	Dir string
	// BPFFS is where the BPF file system is, or will be mounted while the
	// lab lives; /sys/fs/bpf when empty.
	BPFFS string
	// Detach lets started processes outlive this one. Without it the kernel
	// kills them when this process dies.
	Detach bool
	// Logger gets one line for each thing made, hurt and removed;
	// slog.DiscardHandler when nil.
	Logger *slog.Logger
}

// withDefaults fills the empty fields in.
func (c Config) withDefaults() Config {
	if c.Topology == "" {
		c.Topology = TwoLeg
	}
	if c.Topology == Routed && c.Routers == 0 {
		c.Routers = 1
	}
	if c.Dir == "" {
		c.Dir = os.TempDir()
	}
	if c.BPFFS == "" {
		c.BPFFS = defaultBPFFS
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports everything that is wrong with the configuration at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.Topology != TwoLeg && c.Topology != OneLeg && c.Topology != Routed {
		errs = append(errs, fmt.Errorf("topology %q: want %q, %q or %q", c.Topology, TwoLeg, OneLeg, Routed))
	}
	if c.Topology != Routed && (c.Routers != 0 || c.LearnRoutes) {
		errs = append(errs, fmt.Errorf("topology %q has no routers: want %q", c.Topology, Routed))
	}
	for _, n := range []struct {
		what     string
		have, at int
	}{{"nodes", c.Nodes, MaxNodes}, {"clients", c.Clients, MaxClients}, {"endpoints", c.Endpoints, MaxEndpoints}, {"routers", c.Routers, MaxRouters}} {
		if n.have < 0 || n.have > n.at {
			errs = append(errs, fmt.Errorf("%d %s: want 0 to %d", n.have, n.what, n.at))
		}
	}
	if c.Witnesses < 0 || c.Witnesses > c.Nodes {
		errs = append(errs, fmt.Errorf("%d witnesses: want 0 to %d, the number of nodes", c.Witnesses, c.Nodes))
	}
	if c.DiskSize < 0 {
		errs = append(errs, fmt.Errorf("disks of %d bytes: want none or some", c.DiskSize))
	}
	if !filepath.IsAbs(c.Dir) {
		errs = append(errs, fmt.Errorf("directory %q: want an absolute path", c.Dir))
	}
	if l := len(filepath.Join(c.Dir, "pt0000", "lb1", "run", socketName)); l > maxSocketPath {
		errs = append(errs, fmt.Errorf("directory %q: too long by %d bytes for Unix sockets below it; set TMPDIR to a shorter one",
			c.Dir, l-maxSocketPath))
	}
	if c.Binary != "" {
		if err := checkExecutable(c.Binary); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func checkExecutable(path string) error {
	st, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("binary: %w", err)
	case st.IsDir() || st.Mode()&0o111 == 0:
		return fmt.Errorf("binary %s: not an executable file", path)
	}
	return nil
}
