package fsm

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strconv"
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
//
// What goes beyond Name, Priorities and the assignment are its settings. They are
// kept in the shortest form: a default is "" or nil.
type Instance struct {
	Name       string         `json:"name"`
	Priorities map[NodeID]int `json:"priorities,omitempty"` // higher is preferred; absent is 0

	Kind           InstanceKind   `json:"kind,omitempty"`            // "" reads as InstanceBackup
	AnnouncePolicy AnnouncePolicy `json:"announce_policy,omitempty"` // of its VIPs with AnnounceBGP; "" reads as PolicyRanked
	// NextHops are VIPs of this instance, one of a family at most. Routes to its other
	// VIPs of that family have it as next hop, so that a new master needs to move
	// that one route only. Not with InstanceECMP.
	NextHops    []netip.Addr `json:"next_hops,omitempty"`
	ASPrepend   bool         `json:"as_prepend,omitempty"`  // a backup's routes carry its AS once more for each place behind the master
	Communities []Community  `json:"communities,omitempty"` // of all its routes

	Assignment `json:",inline"`
}

// InstanceKind says how many nodes of an instance serve at a time.
type InstanceKind string

// The kinds of instance.
const (
	InstanceBackup InstanceKind = "backup" // one, the master; the others follow in order
	// InstanceECMP has no master: all nodes of the Succession serve, and routers
	// spread the traffic over them (equal-cost multipath). Epoch is the index at
	// which it became so.
	InstanceECMP InstanceKind = "ecmp"
)

// AnnouncePolicy says which nodes announce the VIPs of an instance by BGP.
type AnnouncePolicy string

// The policies of an instance of kind InstanceBackup.
const (
	PolicyRanked     AnnouncePolicy = "ranked"      // all of the succession, the first as the best way
	PolicyMasterOnly AnnouncePolicy = "master-only" // nobody else
)

// DefaultInstance always exists.
const DefaultInstance = "default"

// Assignment is the committed outcome of an election. An instance of kind
// InstanceECMP has no master: Succession is all who serve it.
type Assignment struct {
	Master     NodeID   `json:"master"`     // "" while nobody can be it
	Succession []NodeID `json:"succession"` // the master first, then who follows, in order
	Epoch      uint64   `json:"epoch"`      // index at which Master last changed, or whether there is one by kind; only grows; 0 before the first
}

// Serves says whether packets of the instance are meant to come to the node: to its
// master, or, without one, to each of the succession.
func (i Instance) Serves(node NodeID) bool {
	if i.Kind == InstanceECMP {
		return slices.Contains(i.Succession, node)
	}
	return node != "" && i.Master == node
}

// VIPKind says what a VIP is for.
type VIPKind string

// The kinds of VIP.
const (
	VIPService VIPKind = "service" // clients connect to it
	VIPGateway VIPKind = "gateway" // the endpoints' next hop
	VIPSNAT    VIPKind = "snat"    // a source towards endpoints, in place of the VIP of a service (fullnat)
)

// AnnounceMode says how a VIP reaches the network.
type AnnounceMode string

// The ways to announce a VIP.
const (
	AnnounceL2   AnnounceMode = "l2"   // ARP and neighbour discovery, on a link of the master
	AnnounceBGP  AnnounceMode = "bgp"  // routes to routers, see BGP
	AnnounceNone AnnounceMode = "none" // something else brings traffic
)

// NoEndpoint says what becomes of the route to a VIP when none of its services has
// an endpoint that takes new flows (see State.TakesNewFlows).
type NoEndpoint string

// What becomes of the route to a VIP without endpoints.
const (
	NoEndpointWithdraw NoEndpoint = "withdraw" // routers look for another way; flows that go on are lost
	NoEndpointKeep     NoEndpoint = "keep"     // flows go on; new ones are refused
)

// QuorumLoss says what a node does with a VIP it holds once it hears of no
// quorum any more, and so cannot know whether another holds it meanwhile.
type QuorumLoss string

// What becomes of a VIP in the minority.
const (
	QuorumRelease QuorumLoss = "release" // the node stops claiming it within its lease; what still arrives is forwarded
	QuorumHold    QuorumLoss = "hold"    // the node goes on claiming it; two may, then
)

// VIP is an address that moves with its instance. Apply fills in the defaults.
type VIP struct {
	Address   netip.Addr   `json:"address"`
	Instance  string       `json:"instance" required:"false"` // default "default"
	Kind      VIPKind      `json:"kind" required:"false"`     // default "service"
	Interface string       `json:"interface,omitempty"`       // default: the one whose subnet contains Address
	Announce  AnnounceMode `json:"announce" required:"false"` // default "l2"
	// OnQuorumLoss is what a node that is cut off does with it. Default "release".
	OnQuorumLoss QuorumLoss `json:"on_quorum_loss,omitempty"`
	// OnNoEndpoint goes with AnnounceBGP only. Default "withdraw".
	OnNoEndpoint NoEndpoint `json:"on_no_endpoint,omitempty"`

	// Pool is the pool that handed the address out, and gets it back when no service
	// is on it any more; "" is nobody. Share is what services say that want to be on
	// it too, see AutoVIP. Both are given by Apply and ignored in a request.
	Pool  string `json:"pool,omitempty"`
	Share string `json:"share,omitempty"`
}

// Protocol is a transport protocol.
type Protocol string

// The protocols a service may have.
const (
	TCP  Protocol = "tcp"
	UDP  Protocol = "udp"
	SCTP Protocol = "sctp" // one-to-one associations
)

// Mode is the kind of address translation of a service.
type Mode string

// The NAT modes. Only ModeFullNAT may have endpoints of another IP family than
// the VIP's (NAT64 and NAT46).
const (
	ModeDNAT    Mode = "dnat"    // destination only; the endpoints route back through the gateway VIP
	ModeOneArm  Mode = "onearm"  // source becomes an address of the load balancer on the endpoint's side
	ModeFullNAT Mode = "fullnat" // source becomes the VIP, or an address of the instance's SNAT pool
	ModeDSR     Mode = "dsr"     // no address changes; the endpoints hold the VIP and answer the client directly
)

// Tunnel is how a packet of ModeDSR travels to its endpoint.
type Tunnel string

// The ways to an endpoint in ModeDSR.
const (
	TunnelL2   Tunnel = "l2"   // by MAC address: the endpoint is in a subnet of the load balancer
	TunnelIPIP Tunnel = "ipip" // IP in IP (RFC 2003, RFC 2473): the endpoint may be anywhere
)

// Algorithm selects the endpoint of a new flow.
type Algorithm string

// The selection algorithms.
const (
	RoundRobin       Algorithm = "rr"     // in turn, in exact proportion to the weights
	Maglev           Algorithm = "maglev" // by a consistent hash of the flow, the same on every node
	LeastConnections Algorithm = "lc"     // the fewest established flows for its weight
)

// Affinity says which flows have to go to the same endpoint.
type Affinity string

// The kinds of affinity.
const (
	AffinityNone     Affinity = "none"
	AffinityClientIP Affinity = "client-ip" // all flows of one client address
)

// RemovePolicy is what the flows of an endpoint get that was deleted, set down,
// or drained until its deadline.
type RemovePolicy string

// What becomes of the flows of an endpoint that is gone.
const (
	RemoveReset RemovePolicy = "reset" // TCP reset, SCTP abort, ICMP unreachable
	RemoveDrop  RemovePolicy = "drop"  // nothing is said
	RemoveKeep  RemovePolicy = "keep"  // they go on until they end
)

// FullPolicy is what a new connection gets when the flow table is full.
type FullPolicy string

// What a new connection gets when there is no room for it.
const (
	FullDrop  FullPolicy = "drop"  // nothing is said
	FullReset FullPolicy = "reset" // TCP reset, SCTP abort, ICMP unreachable
)

// Replicate says which flows of a service the other nodes hold copies of.
type Replicate string

// What is copied to the other nodes, and so survives the loss of one.
const (
	ReplicateEstablished Replicate = "established" // complete connections, both ways heard
	ReplicateAll         Replicate = "all"         // half-open ones too
	ReplicateNone        Replicate = "none"        // nothing: short exchanges that a client just repeats
)

// MaxReplicateMinAge is the greatest Service.ReplicateMinAge.
const MaxReplicateMinAge = Duration(time.Hour)

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
	ID         uint32         `json:"id" required:"false"`     // given by Apply, see MaxID; ignored in a request
	Address    netip.AddrPort `json:"address"`                 // of a port range: where its first port leads
	Weight     uint16         `json:"weight" required:"false"` // 0..MaxWeight; 0 takes no new flows
	Admin      AdminState     `json:"admin" required:"false"`  // default "up"
	DrainUntil time.Time      `json:"drain_until,omitzero"`    // in UTC; AdminDrain only: when its flows are ended; zero is never
}

// MaxID is the greatest id of a service and of an endpoint, and so the greatest
// number of endpoints of a cluster. Both are counted in rings of their own: the
// next one given is the next free one after the last given, so that an id is
// given again as late as can be. What still names the old owner by then (flows,
// counters) has had the time to end.
const MaxID = 65535

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
	DefaultIdleTimeout    = Duration(time.Hour) // TCP and SCTP
	DefaultIdleTimeoutUDP = Duration(2 * time.Minute)
)

// The bounds and the default of Service.AffinityTimeout.
const (
	MinAffinityTimeout     = Duration(time.Second)
	MaxAffinityTimeout     = Duration(7 * 24 * time.Hour)
	DefaultAffinityTimeout = Duration(3 * time.Hour)
)

// The bounds of Service.DrainTimeout, apart from 0.
const (
	MinDrainTimeout = Duration(time.Second)
	MaxDrainTimeout = Duration(7 * 24 * time.Hour)
)

// DefaultNewFlowRate is what Service.NewFlowRate is when not given.
const DefaultNewFlowRate = 50000

// Service maps a VIP, protocol and port or ports to endpoints. Apply fills in
// the defaults and sorts the endpoints.
//
// A range of ports keeps its offsets: port Port+i of the VIP leads to port
// Address.Port()+i of the endpoint.
type Service struct {
	Name            string       `json:"name"`
	ID              uint32       `json:"id" required:"false"` // given by Apply, see MaxID; ignored in a request
	VIP             netip.Addr   `json:"vip"`
	Port            uint16       `json:"port"`                          // the first port
	PortEnd         uint16       `json:"port_end,omitempty"`            // the last port of a range; 0: one port
	Protocol        Protocol     `json:"protocol" required:"false"`     // default "tcp"
	Mode            Mode         `json:"mode" required:"false"`         // default "fullnat"
	Tunnel          Tunnel       `json:"tunnel,omitempty"`              // ModeDSR only; default "l2"
	Algorithm       Algorithm    `json:"algorithm" required:"false"`    // default "rr"
	Affinity        Affinity     `json:"affinity" required:"false"`     // default "none"
	AffinityTimeout Duration     `json:"affinity_timeout,omitempty"`    // since the client's last new flow; AffinityClientIP only; default 3h
	IdleTimeout     Duration     `json:"idle_timeout" required:"false"` // of an established flow; default 1h (TCP, SCTP), 2m (UDP)
	IdleReset       bool         `json:"idle_reset" required:"false"`   // both sides are told when a connection idles out
	OnRemove        RemovePolicy `json:"on_remove" required:"false"`    // default "reset"
	OnFull          FullPolicy   `json:"on_full" required:"false"`      // default "drop"
	// NewFlowRate is how many new flows a second a node takes before its flood
	// defence starts: TCP clients then have to repeat their SYN, which those with
	// a made-up address do not, and new flows of other protocols are dropped.
	// Default 50000.
	NewFlowRate     uint32     `json:"new_flow_rate" required:"false"`
	DrainTimeout    Duration   `json:"drain_timeout,omitempty"`     // how long a drained endpoint keeps its flows; 0 is without end
	Probe           Probe      `json:"probe,omitzero"`              // how the endpoints are asked whether they work
	OnDown          DownPolicy `json:"on_down,omitempty"`           // what the flows of an endpoint get that is down; default "keep"
	AllDown         AllDown    `json:"all_down,omitempty"`          // what new flows get when all endpoints are down; default "open"
	SlowStart       Duration   `json:"slow_start,omitempty"`        // over how long the weight of an endpoint grows that is up again; 0: at once
	Replicate       Replicate  `json:"replicate,omitempty"`         // default "established"
	ReplicateMinAge Duration   `json:"replicate_min_age,omitempty"` // a flow that ends before this age is never copied; 0: at once
	Endpoints       []Endpoint `json:"endpoints" required:"false"`  // sorted by address
}

// LastPort is the last port of the service: PortEnd of a range, else Port.
func (s Service) LastPort() uint16 { return max(s.Port, s.PortEnd) }

// Frontend is what clients connect to, for people: "192.0.2.10:80/tcp",
// "[2001:db8::10]:8000-8100/udp".
func (s Service) Frontend() string {
	at := netip.AddrPortFrom(s.VIP, s.Port).String()
	if s.PortEnd > s.Port {
		at += "-" + strconv.Itoa(int(s.PortEnd))
	}
	return at + "/" + string(s.Protocol)
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

	// Recoveries counts how often the group was rebuilt from one node; see RecoverCluster.
	Recoveries uint64 `json:"recoveries,omitempty"`
	// Without names, sorted, who the last of them left behind; nobody any more once there are recoveredVoters again.
	Without []NodeID `json:"without,omitempty"`
}
