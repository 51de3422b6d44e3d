package plan

import (
	"net/netip"

	"pontoon/fsm"
)

// side is what addresses towards endpoints have to have in common.
type side struct {
	instance string
	v4       bool
}

// shared are the addresses of one side that move with the instance.
type shared struct {
	pool     []netip.Addr // the VIPs of kind snat
	gateways []Address
}

func (c *compiler) sharedSources(vips []fsm.VIP) map[side]shared {
	out := map[side]shared{}
	for _, v := range vips {
		at := side{v.Instance, v.Address.Is4()}
		s := out[at]
		switch v.Kind {
		case fsm.VIPSNAT:
			s.pool = append(s.pool, v.Address)
		case fsm.VIPGateway:
			s.gateways = append(s.gateways, Address{Addr: v.Address, Link: c.linkNameOf(v)})
		default:
			continue
		}
		out[at] = s
	}
	return out
}

const (
	noAddress   = "no address here to reach it from"
	noNeighbour = "it is in no subnet of a data plane interface here, and mode dsr without a tunnel reaches no further; use --tunnel ipip"
)

// sources are the addresses that an endpoint of a service sees, or the reason
// why it cannot be reached from here. The slice may be shared: read only.
func (c *compiler) sources(s fsm.Service, instance string, endpoint netip.Addr) ([]netip.Addr, string) {
	switch s.Mode {
	case fsm.ModeDNAT:
		return nil, ""
	case fsm.ModeDSR:
		if s.Tunnel == fsm.TunnelIPIP {
			return one(c.own(s, endpoint))
		}
		if _, onLink := c.linkOf(endpoint); !onLink {
			return nil, noNeighbour
		}
		return nil, ""
	case fsm.ModeFullNAT:
		if pool := c.shared[side{instance, endpoint.Is4()}].pool; len(pool) > 0 {
			return pool, ""
		}
		if s.VIP.Is4() == endpoint.Is4() {
			return []netip.Addr{s.VIP}, ""
		}
	}
	// Only an address that moves with the instance lets a flow survive a failover.
	if a, ok := c.gateway(instance, endpoint); ok {
		return []netip.Addr{a}, ""
	}
	return one(c.own(s, endpoint))
}

func one(a netip.Addr, ok bool) ([]netip.Addr, string) {
	if !ok {
		return nil, noAddress
	}
	return []netip.Addr{a}, ""
}

// gateway is the instance's gateway VIP of the endpoint's family on the
// endpoint's link. One in the endpoint's own subnet comes first.
func (c *compiler) gateway(instance string, endpoint netip.Addr) (netip.Addr, bool) {
	link, onLink := c.linkOf(endpoint)
	if !onLink {
		return netip.Addr{}, false
	}
	var found netip.Addr
	for _, g := range c.shared[side{instance, endpoint.Is4()}].gateways {
		if g.Link != link.Name {
			continue
		}
		if sharesSubnet(link, g.Addr, endpoint) {
			return g.Addr, true
		}
		if !found.IsValid() {
			found = g.Addr
		}
	}
	return found, found.IsValid()
}

// linkNameOf is the link that a VIP is held on; "" for none.
func (c *compiler) linkNameOf(v fsm.VIP) string {
	if v.Interface != "" {
		return v.Interface
	}
	l, _ := c.linkOf(v.Address)
	return l.Name
}

func sharesSubnet(l Link, a, b netip.Addr) bool {
	for _, p := range l.Prefixes {
		if p.Contains(a) && p.Contains(b) {
			return true
		}
	}
	return false
}

// own is an address of this machine that the endpoint can answer: the one in
// its subnet, else, for an endpoint behind a router, any of its family. The
// side that does not face the clients comes first.
func (c *compiler) own(s fsm.Service, endpoint netip.Addr) (netip.Addr, bool) {
	if link, onLink := c.linkOf(endpoint); onLink {
		for _, p := range link.Prefixes {
			if p.Contains(endpoint) {
				return p.Addr(), true
			}
		}
	}
	front := ""
	if v, ok := c.state.VIP(s.VIP); ok {
		front = c.linkNameOf(v)
	}
	var last netip.Addr
	for _, l := range c.self.Links {
		for _, p := range l.Prefixes {
			switch {
			case p.Addr().Is4() != endpoint.Is4():
			case l.Name != front:
				return p.Addr(), true
			case !last.IsValid():
				last = p.Addr()
			}
		}
	}
	return last, last.IsValid()
}
