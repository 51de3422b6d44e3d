package node

import "time"

// FailoverConfig is how fast this node finds out that another is gone. The others need not have
// the same values: each probes at its own pace, and a session runs at the slower one of its two ends.
type FailoverConfig struct {
	// EchoInterval is the time between two echoes on each path to another node's data plane.
	EchoInterval time.Duration `yaml:"echo_interval"`
	// EchoMisses is how many echoes in a row have to stay without an answer for a path to be down.
	EchoMisses int `yaml:"echo_misses"`
	// BFDInterval is the time between two packets of a BFD session, in which the daemons speak.
	BFDInterval time.Duration `yaml:"bfd_interval"`
	// BFDMultiplier is how many of them in a row have to be missing for a session to be down.
	BFDMultiplier int `yaml:"bfd_multiplier"`
	// Lease is how long after it was last confirmed by a quorum this node goes on answering for VIPs
	// that are bound to it, also when its daemon is stopped or cut off.
	Lease time.Duration `yaml:"lease"`
}

func defaultFailover() FailoverConfig {
	return FailoverConfig{
		EchoInterval: 20 * time.Millisecond, EchoMisses: 3,
		BFDInterval: 100 * time.Millisecond, BFDMultiplier: 3,
		Lease: defaultLease,
	}
}

// validate calls bad for each key that is out of bounds. One missed packet must not be a verdict:
// packets are lost now and then on every network.
func (c FailoverConfig) validate(bad func(key, format string, args ...any)) {
	if c.EchoInterval < 5*time.Millisecond || c.EchoInterval > time.Second {
		bad("failover.echo_interval", "%s: want 5ms to 1s", c.EchoInterval)
	}
	if c.EchoMisses < 2 || c.EchoMisses > 50 {
		bad("failover.echo_misses", "%d: want 2 to 50", c.EchoMisses)
	}
	if c.BFDInterval < 10*time.Millisecond || c.BFDInterval > 10*time.Second {
		bad("failover.bfd_interval", "%s: want 10ms to 10s", c.BFDInterval)
	}
	if c.BFDMultiplier < 2 || c.BFDMultiplier > 50 {
		bad("failover.bfd_multiplier", "%d: want 2 to 50", c.BFDMultiplier)
	}
	if c.Lease < minLease || c.Lease > maxLease {
		bad("failover.lease", "%s: want %s to %s", c.Lease, minLease, maxLease)
	}
}
