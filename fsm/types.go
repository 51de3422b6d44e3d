package fsm

import (
	"net/netip"
	"time"
)

// NodeID is the name of a node, unique in the cluster and stable for its life.
type NodeID string

// Role says what a node takes part in.
type Role string

// The roles of a node.
const (
	RoleLB      Role = "lb"      // full member: votes and owns a data plane
	RoleWitness Role = "witness" // votes, owns no data plane
)

// MaxSlots is the number of SNAT port partitions of a cluster, and so the
// greatest number of nodes of role lb. Slots make SNAT tuples unique in the
// cluster without asking anybody (design.md §5).
const MaxSlots = 8

// Node is one member of the cluster: what it is, and the last committed
// verdict about how it is.
type Node struct {
	Name       NodeID `json:"name"`
	Role       Role   `json:"role"`
	Address    string `json:"address"`     // cluster port, "ip:port"
	GossipPort uint16 `json:"gossip_port"` // UDP and TCP on the same ip
	Slot       uint8  `json:"slot"`        // SNAT port partition, 0..MaxSlots-1; 255 for a witness
	Voter      bool   `json:"voter"`       // has caught up and votes
	Alive      bool   `json:"alive"`       // the leader's verdict (gossip, later BFD)
	Ready      bool   `json:"ready"`       // its data plane is attached and has applied the state
	LinksUp    bool   `json:"links_up"`    // all its data plane interfaces have carrier
	InSync     bool   `json:"in_sync"`     // it holds every flow its live peers hold
	Draining   bool   `json:"draining"`    // the operator asked it to own nothing
	Joined     uint64 `json:"joined"`      // index of its join; tells a re-joined name from the old one
}

// Instance is a named group of services that fails over together.
type Instance struct {
	Name       string         `json:"name"`
	Priorities map[NodeID]int `json:"priorities,omitempty"` // higher is preferred; absent is 0
	Assignment `json:",inline"`
}

// DefaultInstance always exists.
const DefaultInstance = "default"

// Assignment is the committed outcome of an election.
type Assignment struct {
	Master     NodeID   `json:"master"`     // "" while nobody is eligible
	Succession []NodeID `json:"succession"` // the master first, then who follows, in order
	Epoch      uint64   `json:"epoch"`      // index at which Master last changed; only grows
}

// VIPKind says what a VIP is for.
type VIPKind string

// The kinds of VIP.
const (
	VIPService VIPKind = "service" // clients connect to it
	VIPGateway VIPKind = "gateway" // the endpoints' next hop
)

// AnnounceMode says how a VIP reaches the network.
type AnnounceMode string

// The ways to announce a VIP.
const (
	AnnounceL2   AnnounceMode = "l2"
	AnnounceNone AnnounceMode = "none"
)

// VIP is an address that moves with its instance.
type VIP struct {
	Address   netip.Addr   `json:"address"`
	Instance  string       `json:"instance"`            // default "default"
	Kind      VIPKind      `json:"kind"`                // default "service"
	Interface string       `json:"interface,omitempty"` // default: the one whose subnet contains Address
	Announce  AnnounceMode `json:"announce"`            // default "l2"
}

// Protocol is a transport protocol.
type Protocol string

// The protocols a service may have.
const (
	TCP Protocol = "tcp"
	UDP Protocol = "udp"
)

// Mode is the kind of address translation of a service.
type Mode string

// The NAT modes.
const (
	ModeDNAT    Mode = "dnat"    // destination only; the endpoints route back through the gateway VIP
	ModeOneArm  Mode = "onearm"  // source becomes an address of the load balancer on the endpoint's side
	ModeFullNAT Mode = "fullnat" // source becomes the VIP
)

// Algorithm selects the endpoint of a new flow.
type Algorithm string

// The selection algorithms.
const (
	RoundRobin Algorithm = "rr"
	Maglev     Algorithm = "maglev"
)

// AdminState is the operator's wish for an endpoint.
type AdminState string

// The administrative states of an endpoint.
const (
	AdminUp    AdminState = "up"
	AdminDrain AdminState = "drain" // keeps its flows, gets no new ones
	AdminDown  AdminState = "down"
)

// Endpoint is one backend of a service.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	Weight  uint16         `json:"weight"` // 1..100 when up; 0 takes no new flows
	Admin   AdminState     `json:"admin"`  // default "up"
}

// Service maps a VIP, protocol and port to endpoints.
type Service struct {
	Name        string     `json:"name"`
	ID          uint32     `json:"id"` // given by Apply, never reused; 0 in a request
	VIP         netip.Addr `json:"vip"`
	Port        uint16     `json:"port"`
	Protocol    Protocol   `json:"protocol"`
	Mode        Mode       `json:"mode"`
	Algorithm   Algorithm  `json:"algorithm"`
	IdleTimeout Duration   `json:"idle_timeout"` // of an established flow; default 1h (TCP), 2m (UDP)
	Endpoints   []Endpoint `json:"endpoints"`    // sorted by address
}

// Token lets one node join. Only the hash of its secret is kept.
type Token struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"`
}

// Cluster is what the cluster as a whole agrees on.
type Cluster struct {
	ID        string   `json:"id"`
	CA        []byte   `json:"ca"`         // DER certificate; the key is never here
	GossipKey [][]byte `json:"gossip_key"` // 32 random bytes each, the first is in use
	Seed      uint32   `json:"seed"`       // of the selection hashes, random, the same on every node
}
