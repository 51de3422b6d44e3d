package announce

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// Limits and defaults of a configuration.
const (
	bgpPort            = 179
	defaultHold        = 9 * time.Second
	defaultRestartTime = 2 * time.Minute
	maxRestartTime     = 4095 * time.Second // 12 bits (RFC 4724, section 3)
	defaultMaxPrefixes = 10000
	defaultMaxImport   = 1000
	maxPassword        = 80 // of TCP_MD5SIG
	asTrans            = 23456
)

// normal is the configuration with its defaults, and its peers by address.
func (c BGPConfig) normal() BGPConfig {
	if c.RestartTime == 0 {
		c.RestartTime = defaultRestartTime
	}
	c.RestartTime = seconds(c.RestartTime)
	if c.MaxImport == 0 {
		c.MaxImport = defaultMaxImport
	}
	c.Import = slices.Clone(c.Import)
	peers := make([]BGPPeer, len(c.Peers))
	for i, p := range c.Peers {
		peers[i] = p.normal(c.AS)
	}
	slices.SortFunc(peers, func(a, b BGPPeer) int { return a.Address.Compare(b.Address) })
	c.Peers = peers
	return c
}

func (p BGPPeer) normal(as uint32) BGPPeer {
	if p.LocalAS == 0 {
		p.LocalAS = as
	}
	if p.Port == 0 {
		p.Port = bgpPort
	}
	if p.Hold == 0 {
		p.Hold = defaultHold
	}
	p.Hold = seconds(p.Hold)
	if p.Keepalive == 0 {
		p.Keepalive = p.Hold / 3
	}
	p.Keepalive = seconds(p.Keepalive)
	if p.MaxPrefixes == 0 {
		p.MaxPrefixes = defaultMaxPrefixes
	}
	if p.Multihop == 1 {
		p.Multihop = 0
	}
	return p
}

// seconds rounds up: the wire knows nothing finer.
func seconds(d time.Duration) time.Duration {
	return (d + time.Second - 1).Truncate(time.Second)
}

// external reports whether the neighbour is of another AS (RFC 4271, section 1.1).
func (p BGPPeer) external() bool { return p.AS != p.LocalAS }

// Validate says everything that is wrong with the configuration.
func (c BGPConfig) Validate() error {
	c = c.normal()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(c.Peers) > 0 {
		if !usableAS(c.AS) {
			bad("AS %d cannot be used", c.AS)
		}
		if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
			bad("router id %v is no IPv4 address", c.RouterID)
		}
	}
	if c.RestartTime < 0 || c.RestartTime > maxRestartTime {
		bad("restart time %v is not between 0 and %v", c.RestartTime, maxRestartTime)
	}
	for i, p := range c.Peers {
		if i > 0 && p.Address == c.Peers[i-1].Address {
			bad("peer %v stands there twice", p.Address)
		}
		if err := p.validate(); err != nil {
			errs = append(errs, fmt.Errorf("peer %v: %w", p.Address, err))
		}
	}
	for _, r := range c.Import {
		if err := r.validate(); err != nil {
			errs = append(errs, fmt.Errorf("import %v: %w", r.Prefix, err))
		}
	}
	return errors.Join(errs...)
}

// validate expects what normal returns.
func (p BGPPeer) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if a := p.Address; !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
		bad("%v is no neighbour's address", a)
	}
	if !usableAS(p.AS) || !usableAS(p.LocalAS) {
		bad("AS %d here and %d there cannot be used", p.LocalAS, p.AS)
	}
	if p.Hold < 3*time.Second || p.Hold > 65535*time.Second {
		bad("hold time %v is not between 3 s and 65535 s (RFC 4271, section 4.2)", p.Hold)
	}
	if p.Keepalive <= 0 || p.Keepalive > p.Hold {
		bad("a keepalive every %v does not go with hold time %v", p.Keepalive, p.Hold)
	}
	if len(p.Password) > maxPassword {
		bad("the password is longer than %d bytes", maxPassword)
	}
	if p.TTLSecurity && p.Multihop != 0 {
		bad("TTL security and multihop exclude each other")
	}
	if p.Multihop != 0 && !p.external() {
		bad("multihop is for neighbours of another AS: within one AS any distance is allowed")
	}
	if p.Source.IsValid() && p.Source.Is4() != p.Address.Is4() {
		bad("source %v is of another family", p.Source)
	}
	if !p.IPv4 && !p.IPv6 {
		bad("no family of routes is exchanged")
	}
	return errors.Join(errs...)
}

func usableAS(as uint32) bool { return as != 0 && as != asTrans && as != 1<<32-1 }

func (r ImportRule) validate() error {
	if !r.Prefix.IsValid() || r.Prefix.Addr().Is4In6() || r.Prefix != r.Prefix.Masked() {
		return errors.New("not a prefix, or bits beyond its length are set")
	}
	r = r.normal()
	if int(r.MinLen) < r.Prefix.Bits() || r.MinLen > r.MaxLen || int(r.MaxLen) > r.Prefix.Addr().BitLen() {
		return fmt.Errorf("lengths %d to %d do not lie within it", r.MinLen, r.MaxLen)
	}
	return nil
}

// Changes says which sessions a change from one configuration to the other adds,
// resets and removes, and why, by address. It is pure; Configure does the same.
func Changes(from, to BGPConfig) []PeerChange {
	from, to = from.normal(), to.normal()
	was, is := byAddress(from.Peers), byAddress(to.Peers)
	all := serverChange(from, to)
	var out []PeerChange
	for _, addr := range slices.SortedFunc(maps.Keys(union(was, is)), netip.Addr.Compare) {
		a, before := was[addr]
		b, after := is[addr]
		switch {
		case !before:
			out = append(out, PeerChange{Peer: addr, Action: PeerAdded, Why: "it is new"})
		case !after:
			out = append(out, PeerChange{Peer: addr, Action: PeerRemoved, Why: "it is no neighbour any more"})
		default:
			why := all
			if own := sessionChange(a, b); why == "" || own != "" {
				why = own
			}
			if why == "" && b.GracefulRestart && from.RestartTime != to.RestartTime {
				why = fmt.Sprintf("restart time %v -> %v", from.RestartTime, to.RestartTime)
			}
			if why != "" {
				out = append(out, PeerChange{Peer: addr, Action: PeerReset, Why: why, Quiet: all == "" && sameSpeaker(a, b)})
			}
		}
	}
	return out
}

// sameSpeaker says whether the neighbour would take the next session for one of the same speaker that has restarted, and
// what it keeps of the last one for what it is about to hear again.
func sameSpeaker(a, b BGPPeer) bool {
	return a.GracefulRestart && b.GracefulRestart && a.AS == b.AS && a.LocalAS == b.LocalAS && a.Source == b.Source &&
		a.IPv4 == b.IPv4 && a.IPv6 == b.IPv6
}

// serverChange says what makes every session another one.
func serverChange(from, to BGPConfig) string {
	switch {
	case from.AS != to.AS:
		return fmt.Sprintf("AS %d -> %d", from.AS, to.AS)
	case from.RouterID != to.RouterID:
		return fmt.Sprintf("router id %v -> %v", from.RouterID, to.RouterID)
	}
	return ""
}

// sessionChange says what makes a session another one.
func sessionChange(a, b BGPPeer) string {
	families := func(p BGPPeer) string {
		switch {
		case p.IPv4 && p.IPv6:
			return "both"
		case p.IPv6:
			return "ipv6"
		}
		return "ipv4"
	}
	switch {
	case a.AS != b.AS:
		return fmt.Sprintf("AS %d -> %d", a.AS, b.AS)
	case a.LocalAS != b.LocalAS:
		return fmt.Sprintf("local AS %d -> %d", a.LocalAS, b.LocalAS)
	case a.Port != b.Port:
		return fmt.Sprintf("port %d -> %d", a.Port, b.Port)
	case a.Password != b.Password:
		return "another password"
	case a.Multihop != b.Multihop:
		return fmt.Sprintf("multihop %d -> %d", a.Multihop, b.Multihop)
	case a.TTLSecurity != b.TTLSecurity:
		return fmt.Sprintf("ttl security %t -> %t", a.TTLSecurity, b.TTLSecurity)
	case a.Passive != b.Passive:
		return fmt.Sprintf("passive %t -> %t", a.Passive, b.Passive)
	case a.Hold != b.Hold:
		return fmt.Sprintf("hold time %v -> %v", a.Hold, b.Hold)
	case a.Keepalive != b.Keepalive:
		return fmt.Sprintf("keepalive %v -> %v", a.Keepalive, b.Keepalive)
	case a.Source != b.Source:
		return fmt.Sprintf("source %v -> %v", a.Source, b.Source)
	case families(a) != families(b):
		return fmt.Sprintf("family %s -> %s", families(a), families(b))
	case a.GracefulRestart != b.GracefulRestart:
		return fmt.Sprintf("graceful restart %t -> %t", a.GracefulRestart, b.GracefulRestart)
	}
	return ""
}

func byAddress(peers []BGPPeer) map[netip.Addr]BGPPeer {
	m := make(map[netip.Addr]BGPPeer, len(peers))
	for _, p := range peers {
		m[p.Address] = p
	}
	return m
}

func union[K comparable, V any](a, b map[K]V) map[K]V {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
