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
	// Routed puts routers (r1, r2) between the clients and the load balancers.
	// Clients (192.168.80.101 and up) and the routers' eth1 (.1 and up) share
	// 192.168.80.0/24, and client i's default route is router i, or the first one
	// when there is no such; the routers' eth2 (192.168.90.1 and up) and the nodes'
	// eth1 (.11 and up) share 192.168.90.0/24; behind the nodes' eth2 are the
	// endpoints as in TwoLeg. A node's cluster address is its eth1 address, its
	// default routes are the routers (see Config.LearnRoutes). For IPv6 the segment
	// between is fd00:90::/64.
	Routed Topology = "routed"
)

// The sizes a lab may have.
const (
	MaxNodes     = 8 // also the number of load balancers a cluster may have
	MaxEndpoints = 50
	MaxClients   = 90
	MaxRouters   = 2
)

// role says which of the kinds of host a namespace is.
type role string

const (
	roleNode     role = "node"
	roleClient   role = "client"
	roleEndpoint role = "endpoint"
	roleRouter   role = "router"
)

// hostSpec is what one host shall look like.
type hostSpec struct {
	name     string
	role     role
	ports    []portSpec
	gateway  []netip.Addr // default routes, shared by layer 4 if several
	gateway6 []netip.Addr // the same for IPv6
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
	segCore      = "core" // between routers and nodes
)

func frontAddr(last int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 80, byte(last)}), 24)
}

func backAddr(last int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, 0, byte(last)}), 24)
}

func coreAddr(last int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 90, byte(last)}), 24)
}

func coreAddr6(last int) netip.Prefix { return addr6(0x90, last) }

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

func corePort(last int) portSpec {
	return portSpec{segment: segCore, address: coreAddr(last), address6: coreAddr6(last)}
}

func backPort(last int) portSpec {
	return portSpec{segment: segEndpoints, address: backAddr(last), address6: backAddr6(last)}
}

// planLayout computes the network for cfg. The hardware addresses hold the
// lab's id, so that a host keeps its own over a power loss and no two labs
// share one.
func planLayout(cfg Config, id [2]byte) layout {
	l := layout{segments: []string{segClients}}
	if cfg.Topology == Routed {
		l.segments = append(l.segments, segCore)
	}
	if cfg.Topology != OneLeg {
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
		add(nodeSpec(cfg, i))
	}
	for i := range cfg.Clients {
		h := hostSpec{name: fmt.Sprintf("client%d", i+1), role: roleClient, ports: []portSpec{frontPort(101 + i)}}
		if cfg.Topology == Routed {
			r := 1
			if i < cfg.Routers {
				r = i + 1
			}
			h.gateway, h.gateway6 = []netip.Addr{frontAddr(r).Addr()}, []netip.Addr{frontAddr6(r).Addr()}
		}
		add(h)
	}
	for i := range cfg.Endpoints {
		h := hostSpec{name: fmt.Sprintf("ep%d", i+1), role: roleEndpoint, ports: []portSpec{frontPort(21 + i)}}
		if cfg.Topology != OneLeg {
			h.ports = []portSpec{backPort(21 + i)}
			h.gateway, h.gateway6 = []netip.Addr{GatewayVIP()}, []netip.Addr{GatewayVIP6()}
		}
		add(h)
	}
	for i := range cfg.Routers {
		add(hostSpec{name: fmt.Sprintf("r%d", i+1), role: roleRouter, ports: []portSpec{frontPort(1 + i), corePort(1 + i)}})
	}
	return l
}

// nodeSpec is the i-th load balancer.
func nodeSpec(cfg Config, i int) hostSpec {
	h := hostSpec{name: fmt.Sprintf("lb%d", i+1), role: roleNode, ports: []portSpec{frontPort(11 + i)}}
	if cfg.Topology == Routed {
		h.ports = []portSpec{corePort(11 + i)}
		for r := range cfg.Routers {
			if !cfg.LearnRoutes {
				h.gateway = append(h.gateway, coreAddr(1+r).Addr())
				h.gateway6 = append(h.gateway6, coreAddr6(1+r).Addr())
			}
		}
	}
	if cfg.Topology != OneLeg {
		h.ports = append(h.ports, backPort(11+i))
	}
	return h
}
