package lab

import "net/netip"

// Family is an address family, for tests that do the same in both, or cross
// them: a client of one and endpoints of the other.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Families are both.
func Families() []Family { return []Family{IPv4, IPv6} }

func familyOf(a netip.Addr) Family {
	if a.Is6() {
		return IPv6
	}
	return IPv4
}

func (f Family) String() string {
	if f == IPv6 {
		return "IPv6"
	}
	return "IPv4"
}

// ServiceVIP is [ServiceVIP] or [ServiceVIP6].
func (f Family) ServiceVIP() netip.Addr {
	if f == IPv6 {
		return ServiceVIP6()
	}
	return ServiceVIP()
}

// GatewayVIP is [GatewayVIP] or [GatewayVIP6].
func (f Family) GatewayVIP() netip.Addr {
	if f == IPv6 {
		return GatewayVIP6()
	}
	return GatewayVIP()
}

// Unspecified is the address to listen at for all of a host's addresses.
func (f Family) Unspecified() netip.Addr {
	if f == IPv6 {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}

// SNATAddr is an address of the endpoints' side that no host has: what endpoints
// of the family can be made to see as the client. With two legs it is one of the
// endpoints' segment, with one leg of the only one. n is 0 to 9.
func (l *Lab) SNATAddr(f Family, n int) netip.Addr {
	last := 240 + n
	switch two := l.cfg.Topology != OneLeg; {
	case two && f == IPv6:
		return backAddr6(last).Addr()
	case two:
		return backAddr(last).Addr()
	case f == IPv6:
		return frontAddr6(last).Addr()
	default:
		return frontAddr(last).Addr()
	}
}

// AddrIn is the host's address of the family on its first leg.
func (h *Host) AddrIn(f Family) netip.Addr {
	if f == IPv6 {
		return h.Addr6()
	}
	return h.Addr()
}
