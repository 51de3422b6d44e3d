package fsm

import (
	"cmp"
	"encoding/binary"
	"hash/fnv"
	"net/netip"
	"slices"
	"time"
)

// BGP is what the nodes' BGP speakers have in common. A BGP that was read from
// JSON without the key "port" has DefaultBGPPort (see UnmarshalJSON); a literal in
// Go has the port it says. Apply fills in the other defaults, sorts Nodes and
// Import, and gives Import explicit lengths.
type BGP struct {
	AS          uint32   `json:"as" required:"false"`           // of every node without one of its own; default DefaultAS
	Port        uint16   `json:"port" required:"false"`         // where the nodes listen (TCP); 0: nowhere, they only connect
	RestartTime Duration `json:"restart_time" required:"false"` // for how long peers keep the routes of a daemon that restarts (RFC 4724); whole seconds; default DefaultRestartTime
	// Nodes are the nodes whose AS or router id is not the derived one, sorted by name.
	Nodes []BGPNode `json:"nodes" required:"false"`
	// Import says which prefixes learned from peers go into the kernel's routes; without any, none do.
	Import    []ImportRule `json:"import" required:"false"`
	MaxImport uint32       `json:"max_import" required:"false"` // prefixes imported from all peers together; default DefaultMaxImport
}

// BGPNode is what one node has instead of the common settings.
type BGPNode struct {
	Node     NodeID     `json:"node"`
	AS       uint32     `json:"as,omitempty"`       // 0: BGP.AS
	RouterID netip.Addr `json:"router_id,omitzero"` // an IPv4 address; none: derived, see BGPOf
}

// ImportRule lets prefixes in that lie within Prefix and are MinLen to MaxLen
// bits long. As written by people: with neither length, exactly Prefix; with
// MinLen alone, up to single addresses; with MaxLen alone, from Prefix on. Apply
// turns these into two explicit lengths.
type ImportRule struct {
	Prefix netip.Prefix `json:"prefix"`
	MinLen uint8        `json:"min_len,omitempty"`
	MaxLen uint8        `json:"max_len,omitempty"`
}

// The defaults and bounds of BGP.
const (
	DefaultAS          = 64512 // the first private one (RFC 6996)
	DefaultBGPPort     = 179
	DefaultRestartTime = Duration(2 * time.Minute)
	DefaultMaxImport   = 1000

	MinRestartTime = Duration(time.Second)
	MaxRestartTime = Duration(4095 * time.Second) // 12 bits (RFC 4724, 3)
	MaxImportRules = 64
	MaxImportBound = 100_000 // of MaxImport: what the kernel's table can take without harm
)

// BGPFamily says which routes are exchanged with a peer. It does not depend on
// the family of the peer's own address.
type BGPFamily string

// The families of a peer.
const (
	FamilyIPv4 BGPFamily = "ipv4"
	FamilyIPv6 BGPFamily = "ipv6"
	FamilyBoth BGPFamily = "both"
)

// BGPPeer is a neighbour the nodes speak BGP with. Address and Node name it. Apply
// fills in the defaults.
type BGPPeer struct {
	Address netip.Addr `json:"address"`
	Node    NodeID     `json:"node,omitempty"`     // who speaks with it; "" is every node of role lb that has no entry of its own for this address
	AS      uint32     `json:"as"`                 // the peer's
	LocalAS uint32     `json:"local_as,omitempty"` // what the nodes say theirs is, to this peer; 0: their own
	Port    uint16     `json:"port,omitempty"`     // where the peer listens (TCP); default 179
	// Password signs every segment of the session (TCP MD5, RFC 2385). KeepPassword
	// in a command stands for the one that is there.
	Password    string `json:"password,omitempty"`
	Multihop    uint8  `json:"multihop,omitempty"`     // how many hops away the peer may be (the TTL); 0: on a link of the node. External peers only
	TTLSecurity bool   `json:"ttl_security,omitempty"` // packets have to come from the link itself (RFC 5082)
	Passive     bool   `json:"passive,omitempty"`      // wait for the peer to connect

	Hold      Duration `json:"hold" required:"false"`      // without a word for so long, the session ends; whole seconds; default 9s
	Keepalive Duration `json:"keepalive" required:"false"` // at most a third of Hold, the default; whole seconds

	Source            netip.Addr `json:"source,omitzero"`               // this node's end; none: the kernel's choice. Needs Node
	Family            BGPFamily  `json:"family,omitempty"`              // default "both"
	NoGracefulRestart bool       `json:"no_graceful_restart,omitempty"` // the peer is to drop the routes when the session ends
	MaxPrefixes       uint32     `json:"max_prefixes,omitempty"`        // more than so many received end the session; default 10000

	BFD           bool     `json:"bfd,omitempty"`            // a BFD session (RFC 5880, 5881) tells when the peer is gone
	BFDInterval   Duration `json:"bfd_interval,omitempty"`   // between two packets; BFD only; default DefaultBFDInterval
	BFDMultiplier uint8    `json:"bfd_multiplier,omitempty"` // how many in a row may be missing; BFD only; default DefaultBFDMultiplier
}

// KeepPassword stands in a PutBGPPeer for the password the peer has, and is what
// readers are shown in place of one. No password looks like it: they are ASCII.
const KeepPassword = "…"

// The defaults and bounds of BGPPeer.
const (
	DefaultHold          = Duration(9 * time.Second)
	DefaultMaxPrefixes   = 10_000
	DefaultBFDInterval   = Duration(50 * time.Millisecond) // down after three: 150 ms
	DefaultBFDMultiplier = 3

	MaxBGPPeers      = 256
	MinHold          = Duration(3 * time.Second) // RFC 4271, 4.2
	MaxHold          = Duration(65535 * time.Second)
	MinKeepalive     = Duration(time.Second)
	MinBFDInterval   = Duration(10 * time.Millisecond)
	MaxBFDInterval   = Duration(10 * time.Second)
	MinBFDMultiplier = 2
	MaxBGPPassword   = 80         // TCP_MD5SIG_MAXKEYLEN of Linux
	asTrans          = 23456      // RFC 6793
	asLast           = 4294967295 // RFC 7300
	maxPrefixesBound = 10_000_000
)

// Shown is the peer as readers may see it: KeepPassword in place of a password.
func (p BGPPeer) Shown() BGPPeer {
	if p.Password != "" {
		p.Password = KeepPassword
	}
	return p
}

// peerKey names a peer.
type peerKey struct {
	addr netip.Addr
	node NodeID
}

func comparePeers(a, b peerKey) int {
	return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.node, b.node))
}

func (p BGPPeer) key() peerKey { return peerKey{p.Address, p.Node} }

// defaultBGP is what a cluster has that was told nothing.
func defaultBGP() BGP {
	return BGP{
		AS: DefaultAS, Port: DefaultBGPPort, RestartTime: DefaultRestartTime, MaxImport: DefaultMaxImport,
		Nodes: []BGPNode{}, Import: []ImportRule{},
	}
}

// BGP returns the settings, with the defaults filled in. Their lists are shared
// with the state: read only.
func (s *State) BGP() BGP {
	if s.bgp == nil {
		return defaultBGP()
	}
	return *s.bgp
}

// BGPPeers returns the peers with their passwords, sorted by address and node.
func (s *State) BGPPeers() []BGPPeer { return s.bgpPeers.values() }

// BGPPeer returns the peer of that address and node ("" is the entry for all).
func (s *State) BGPPeer(addr netip.Addr, node NodeID) (BGPPeer, bool) {
	return valueOf(s.bgpPeers.get(peerKey{addr.Unmap(), node}))
}

// BGPPeersOf returns the peers a node speaks with, sorted by address. An entry for
// the node itself beats one for all. Multihop is left out where the peer is of the
// node's own AS. The list is empty for who is no member of role lb.
func (s *State) BGPPeersOf(node NodeID) []BGPPeer {
	if n := s.nodes.get(node); n == nil || n.Role != RoleLB {
		return []BGPPeer{}
	}
	as, _ := s.BGPOf(node)
	out := peersOf(s.bgpPeers.values(), node)
	for i, p := range out {
		if p.AS == cmp.Or(p.LocalAS, as) {
			out[i].Multihop = 0
		}
	}
	return out
}

// peersOf picks those of one node from sorted peers. An entry for all comes before
// those for single nodes.
func peersOf(peers []BGPPeer, node NodeID) []BGPPeer {
	out := []BGPPeer{}
	for _, p := range peers {
		switch {
		case p.Node != "" && p.Node != node:
		case len(out) > 0 && out[len(out)-1].Address == p.Address:
			out[len(out)-1] = p
		default:
			out = append(out, p)
		}
	}
	return out
}

// BGPOf returns the AS and the router id of a node. The id is the one it was
// given, else the IPv4 address of its cluster port, else 4 bytes of a hash of its
// name, from 1.0.0.0 to 126.255.255.255: it only has to be unique (RFC 6286).
func (s *State) BGPOf(node NodeID) (as uint32, routerID netip.Addr) {
	return s.BGP().of(node, s.nodes.get(node))
}

func (b BGP) of(node NodeID, member *Node) (uint32, netip.Addr) {
	as, id := b.AS, netip.Addr{}
	if i, ok := slices.BinarySearchFunc(b.Nodes, node, func(n BGPNode, name NodeID) int { return cmp.Compare(n.Node, name) }); ok {
		as, id = cmp.Or(b.Nodes[i].AS, as), b.Nodes[i].RouterID
	}
	if !id.IsValid() && member != nil {
		if at, ok := sockets(*member); ok && at[0].Addr().Is4() && !at[0].Addr().IsLoopback() {
			id = at[0].Addr()
		}
	}
	if !id.IsValid() {
		id = hashedRouterID(node)
	}
	return as, id
}

// hashedRouterID is FNV-1a (32 bit) of the name, its first byte put into 1 to 126.
func hashedRouterID(node NodeID) netip.Addr {
	h := fnv.New32a()
	h.Write([]byte(node)) // a hash never fails to write
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], h.Sum32())
	b[0] = b[0]%126 + 1
	return netip.AddrFrom4(b)
}

// TakesNewFlows says whether new connections to a VIP find an endpoint: some
// service of it has one that is set up, has a weight and is not down; also with
// AllDown open one that is down does not count, since another site may do better.
// Gateways, SNAT addresses and the next hops of instances lead to no endpoint of
// their own: for them it is always true.
func (s *State) TakesNewFlows(vip netip.Addr) bool {
	vip = vip.Unmap()
	v := s.vips.get(vip)
	if v == nil {
		return false
	}
	if v.Kind != VIPService {
		return true
	}
	if inst := s.instances.get(v.Instance); inst != nil && slices.Contains(inst.NextHops, vip) {
		return true
	}
	i, _ := s.frontends.find(frontend{vip: vip})
	for ; i < s.frontends.len() && s.frontends.rows[i].key.vip == vip; i++ {
		svc := s.services.get(s.frontends.rows[i].val.service)
		if svc != nil && slices.ContainsFunc(svc.Endpoints, s.takesNewFlows) {
			return true
		}
	}
	return false
}

func (s *State) takesNewFlows(e Endpoint) bool { return e.refuses() == "" && !s.isDown(e.ID) }

// UnmarshalJSON reads settings; without the key "port" the port is
// DefaultBGPPort. Unknown keys are an error.
func (b *BGP) UnmarshalJSON(data []byte) error {
	type plain BGP // without this method
	p := plain{Port: DefaultBGPPort}
	if err := strict(data, &p); err != nil {
		return err
	}
	*b = BGP(p)
	return nil
}
