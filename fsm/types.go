package fsm

import (
	"crypto/sha256"
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

// NoSlot is the slot of a witness, which translates nothing.
const NoSlot = 255

// Node is one member of the cluster: what it is, and the last committed
// verdict about how it is.
type Node struct {
	Name       NodeID `json:"name"`
	Role       Role   `json:"role"`
	Address    string `json:"address"`        // cluster port, "ip:port"
	GossipPort uint16 `json:"gossip_port"`    // UDP and TCP on the same ip
	Slot       uint8  `json:"slot"`           // SNAT port partition, 0..MaxSlots-1; NoSlot for a witness
	Voter      bool   `json:"voter"`          // has caught up and votes
	Alive      bool   `json:"alive"`          // the leader's verdict (gossip, later BFD)
	Ready      bool   `json:"ready"`          // its data plane is attached and has applied the state
	LinksUp    bool   `json:"links_up"`       // all its data plane interfaces have carrier
	InSync     bool   `json:"in_sync"`        // it holds every flow its live peers hold
	Draining   bool   `json:"draining"`       // the operator asked it to own nothing
	Died       uint64 `json:"died,omitempty"` // index of the last verdict that it is dead; 0 is never
	Joined     uint64 `json:"joined"`         // index of its join; tells a re-joined name from the old one
	Key        []byte `json:"key,omitempty"`  // what its certificate must hold, see KeySize; the same for its life
}

// KeySize is the length of Node.Key: the SHA-256 of the public key in the
// node's certificate (its SubjectPublicKeyInfo in DER, RFC 5280, 4.1.2.7). Every
// join makes a new key, so it tells the member from a machine that had its name
// before and still holds a certificate for it. It is no secret.
const KeySize = sha256.Size

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
	Master     NodeID   `json:"master"`     // "" while nobody can be it
	Succession []NodeID `json:"succession"` // the master first, then who follows, in order
	Epoch      uint64   `json:"epoch"`      // index at which Master last changed; only grows; 0 before the first
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

// VIP is an address that moves with its instance. Apply fills in the defaults.
type VIP struct {
	Address   netip.Addr   `json:"address"`
	Instance  string       `json:"instance" required:"false"` // default "default"
	Kind      VIPKind      `json:"kind" required:"false"`     // default "service"
	Interface string       `json:"interface,omitempty"`       // default: the one whose subnet contains Address
	Announce  AnnounceMode `json:"announce" required:"false"` // default "l2"
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
//
// A weight of 0 is legal and means "no new flows", so absence has to be told
// from zero: JSON without the key reads as weight 1 (see UnmarshalJSON), while
// a literal Endpoint in Go has the weight it says.
type Endpoint struct {
	Address netip.AddrPort `json:"address"`
	Weight  uint16         `json:"weight" required:"false"` // 0..MaxWeight; 0 takes no new flows
	Admin   AdminState     `json:"admin" required:"false"`  // default "up"
}

// MaxServices and MaxVIPs are how many the data plane has room for.
const (
	MaxServices = 16384
	MaxVIPs     = 16384
)

// MaxEndpoints is the greatest number of endpoints of one service.
const MaxEndpoints = 256

// MaxWeight is the greatest weight of an endpoint.
const MaxWeight = 100

// The bounds and defaults of Service.IdleTimeout.
const (
	MinIdleTimeout        = Duration(time.Second)
	MaxIdleTimeout        = Duration(24 * time.Hour)
	DefaultIdleTimeoutTCP = Duration(time.Hour)
	DefaultIdleTimeoutUDP = Duration(2 * time.Minute)
)

// Service maps a VIP, protocol and port to endpoints. Apply fills in the
// defaults and sorts the endpoints.
type Service struct {
	Name        string     `json:"name"`
	ID          uint32     `json:"id" required:"false"` // given by Apply, never reused; ignored in a request
	VIP         netip.Addr `json:"vip"`
	Port        uint16     `json:"port"`
	Protocol    Protocol   `json:"protocol" required:"false"`     // default "tcp"
	Mode        Mode       `json:"mode" required:"false"`         // default "fullnat"
	Algorithm   Algorithm  `json:"algorithm" required:"false"`    // default "rr"
	IdleTimeout Duration   `json:"idle_timeout" required:"false"` // of an established flow; default 1h (TCP), 2m (UDP)
	Endpoints   []Endpoint `json:"endpoints" required:"false"`    // sorted by address
}

// Token lets one node join. Only the hash of its secret is kept.
type Token struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // SHA-256 of the secret, 32 bytes
	Role    Role      `json:"role"`
	Expires time.Time `json:"expires"` // kept in UTC; valid before this instant
}

// Cluster is what the cluster as a whole agrees on.
type Cluster struct {
	ID        string   `json:"id"`
	CA        []byte   `json:"ca"`         // DER certificate; the key is never here
	GossipKey [][]byte `json:"gossip_key"` // 32 random bytes each, the first is in use
	Seed      uint32   `json:"seed"`       // of the selection hashes, random, the same on every node
}
