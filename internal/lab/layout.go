package lab

import (
	"fmt"
	"net"
	"net/netip"
)

// Topology names the shape of the network.
type Topology string

// The topologies.
const (
	// TwoLeg puts the load balancers between two segments. Clients
	// (192.168.80.101 and up) and the nodes' eth1 (.11 and up) share
	// 192.168.80.0/24; endpoints (10.2.0.21 and up) and the nodes' eth2
	// (.11 and up) share 10.2.0.0/24. The endpoints' default route is
	// GatewayVIP. A node's cluster address is its eth1 address. For IPv6 the
	// segments are fd00:80::/64 and fd00:2::/64, a host's address ends in the same
	// digits (client1 is fd00:80::101), and the default route is GatewayVIP6.
	TwoLeg Topology = "two-leg"
	// OneLeg puts everybody into 192.168.80.0/24 with the same last octets:
	// nodes from .11, endpoints from .21, clients from .101, and into fd00:80::/64
	// likewise. Nobody has a default route.
	OneLeg Topology = "one-leg"
)

// The sizes a lab may have.
const (
	MaxNodes     = 8 // also the number of load balancers a cluster may have
	MaxEndpoints = 50
	MaxClients   = 90
)

// role says which of the three kinds of host a namespace is.
type role string

const (
	roleNode     role = "node"
	roleClient   role = "client"
	roleEndpoint role = "endpoint"
)

// hostSpec is what one host shall look like.
type hostSpec struct {
	name     string
	role     role
	ports    []portSpec
	gateway  netip.Addr // default route; the zero value for none
	gateway6 netip.Addr // the same for IPv6
}

// portSpec is one leg of a host.
type portSpec struct {
	iface    string // name inside the host
	segment  string
	address  netip.Prefix
	address6 netip.Prefix
	mac      net.HardwareAddr
}

// peerName is the name of the port's other end, on the segment's side.
func (p portSpec) peerName(host string) string { return host + "-" + p.iface }

// layout is the whole wanted network.
type layout struct {
	segments []string
	hosts    []hostSpec
}

// GatewayVIP is the endpoints' default route in [TwoLeg].
func GatewayVIP() netip.Addr { return netip.AddrFrom4([4]byte{10, 2, 0, 1}) }

// ServiceVIP is an address of the clients' segment that no host has, in both
// topologies: the address the demo serves on.
func ServiceVIP() netip.Addr { return netip.AddrFrom4([4]byte{192, 168, 80, 200}) }

// GatewayVIP6 is the endpoints' default route for IPv6 in [TwoLeg].
func GatewayVIP6() netip.Addr { return backAddr6(1).Addr() }

// ServiceVIP6 is an IPv6 address of the clients' segment that no host has, in both
// topologies.
func ServiceVIP6() netip.Addr { return frontAddr6(200).Addr() }

const (
	segClients   = "clients"
	segEndpoints = "endpoints"
)

func frontAddr(last int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 80, byte(last)}), 24)
}

func backAddr(last int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(last)}), 24)
}

func frontAddr6(last int) netip.Prefix { return addr6(0x80, last) }

func backAddr6(last int) netip.Prefix { return addr6(0x02, last) }

// addr6 is fd00:SUBNET::LAST/64, a unique local address (RFC 4193) in which the
// digits of last stand as they are, so that 192.168.80.101 and fd00:80::101 are
// seen to be one host.
func addr6(subnet byte, last int) netip.Prefix {
	digits := byte(last/10%10<<4 | last%10)
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfd, 3: subnet, 14: byte(last / 100), 15: digits}), 64)
}

func frontPort(last int) portSpec {
	return portSpec{segment: segClients, address: frontAddr(last), address6: frontAddr6(last)}
}

func backPort(last int) portSpec {
	return portSpec{segment: segEndpoints, address: backAddr(last), address6: backAddr6(last)}
}

// planLayout computes the network for cfg. The hardware addresses hold the
// lab's id, so that a host keeps its own over a power loss and no two labs
// share one.
func planLayout(cfg Config, id [2]byte) layout {
	two := cfg.Topology == TwoLeg
	l := layout{segments: []string{segClients}}
	if two {
		l.segments = append(l.segments, segEndpoints)
	}
	add := func(h hostSpec) {
		for i := range h.ports {
			p := &h.ports[i]
			p.iface = fmt.Sprintf("eth%d", i+1)
			p.mac = net.HardwareAddr{0x02, 0x50, id[0], id[1], byte(len(l.hosts) + 1), byte(i + 1)}
		}
		l.hosts = append(l.hosts, h)
	}
	for i := range cfg.Nodes {
		h := hostSpec{name: fmt.Sprintf("lb%d", i+1), role: roleNode}
		h.ports = []portSpec{frontPort(11 + i)}
		if two {
			h.ports = append(h.ports, backPort(11+i))
		}
		add(h)
	}
	for i := range cfg.Clients {
		add(hostSpec{
			name: fmt.Sprintf("client%d", i+1), role: roleClient,
			ports: []portSpec{frontPort(101 + i)},
		})
	}
	for i := range cfg.Endpoints {
		h := hostSpec{name: fmt.Sprintf("ep%d", i+1), role: roleEndpoint}
		if two {
			h.ports = []portSpec{backPort(21 + i)}
			h.gateway, h.gateway6 = GatewayVIP(), GatewayVIP6()
		} else {
			h.ports = []portSpec{frontPort(21 + i)}
		}
		add(h)
	}
	return l
}
