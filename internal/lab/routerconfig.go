package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// RouterConfig is what the product's own router is told: the binary reads it as JSON from the
// file that RouterArgs names. It announces nothing and takes every route its neighbours announce into the
// kernel, with several next hops where they are equally good.
type RouterConfig struct {
	AS       uint32       `json:"as"`
	RouterID netip.Addr   `json:"router_id"` // an IPv4 address
	Peers    []RouterPeer `json:"peers"`
}

// RouterPeer is one neighbour of the router.
type RouterPeer struct {
	Address   netip.Addr `json:"address"`
	AS        uint32     `json:"as"`
	Interface string     `json:"interface"` // the leg it is reached by
	Local     netip.Addr `json:"local"`     // the router's own address there
	// BFDInterval and BFDMultiplier ask for a BFD session beside the BGP session, in
	// milliseconds and packets; an interval of 0 for none.
	BFDInterval   int `json:"bfd_interval_ms,omitempty"`
	BFDMultiplier int `json:"bfd_multiplier,omitempty"`
}

// Validate reports everything that is wrong with the configuration at once.
func (c RouterConfig) Validate() error {
	var errs []error
	if c.AS == 0 {
		errs = append(errs, errors.New("no AS"))
	}
	if !c.RouterID.Is4() {
		errs = append(errs, fmt.Errorf("router id %q: want an IPv4 address", c.RouterID))
	}
	for _, p := range c.Peers {
		if !p.Address.IsValid() || p.AS == 0 {
			errs = append(errs, fmt.Errorf("peer %q: want an address and an AS", p.Address))
		}
		if p.BFDInterval < 0 || p.BFDInterval > 0 && (p.BFDMultiplier < 1 || p.BFDMultiplier > 255 || p.Interface == "" || !p.Local.IsValid()) {
			errs = append(errs, fmt.Errorf("peer %s: BFD wants an interval, a multiplier, an interface and a local address", p.Address))
		}
	}
	return errors.Join(errs...)
}

// Interval is the time between two BFD packets, 0 for no session.
func (p RouterPeer) Interval() time.Duration { return time.Duration(p.BFDInterval) * time.Millisecond }

// ReadRouterConfig reads the configuration from a file.
func ReadRouterConfig(path string) (RouterConfig, error) {
	var c RouterConfig
	raw, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("read router configuration: %w", err)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("read router configuration %s: %w", path, err)
	}
	if err := c.Validate(); err != nil {
		return c, fmt.Errorf("router configuration %s: %w", path, err)
	}
	return c, nil
}

// write stores the configuration for ReadRouterConfig.
func (c RouterConfig) write(path string) error {
	raw, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return fmt.Errorf("encode router configuration: %w", err)
	}
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		return fmt.Errorf("write router configuration: %w", err)
	}
	return nil
}

// The AS numbers of the lab: all nodes have the one that is the product's default.
const (
	NodeAS   = 64512
	RouterAS = 65000
)

// PeerConfig is what the product's own router needs to know of the lab's nodes, by their
// IPv4 addresses. bfd is the time between two BFD packets, of which three may be missed; 0
// for no BFD.
func (r *Router) PeerConfig(bfd time.Duration) RouterConfig {
	c := RouterConfig{AS: RouterAS, RouterID: r.CoreAddr(IPv4)}
	for _, n := range r.lab.nodes {
		p := RouterPeer{Address: n.Addr(), AS: NodeAS, Interface: r.CoreInterface(), Local: r.CoreAddr(IPv4)}
		if bfd > 0 {
			p.BFDInterval, p.BFDMultiplier = int(bfd/time.Millisecond), 3
		}
		c.Peers = append(c.Peers, p)
	}
	return c
}

// RouterArgs are the arguments that make the product's binary the router of a file that
// ReadRouterConfig takes.
func RouterArgs(path string) []string { return []string{"demo", "--router", path} }

// StartOwn runs the product's own router on this one, with what PeerConfig says. Its log and its
// configuration are in the lab's directory.
func (r *Router) StartOwn(bfd time.Duration) (*Process, error) {
	path := filepath.Join(r.lab.dir, r.Name()+".json")
	if err := r.PeerConfig(bfd).write(path); err != nil {
		return nil, err
	}
	logf, err := os.OpenFile(r.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", r.Name(), err)
	}
	defer logf.Close()
	cmd := exec.Command(r.lab.cfg.Binary, RouterArgs(path)...)
	cmd.Stdout, cmd.Stderr = logf, logf
	return r.Start(cmd)
}

// LogFile gets what the product's own router writes.
func (r *Router) LogFile() string { return filepath.Join(r.lab.dir, r.Name()+".log") }
