package fsm

import (
	"net/netip"
	"time"
)

// Command is one typed change of the state. The commands are the plain structs
// of this package; they are passed by value and never written to.
type Command interface {
	// kind is the name of the command in the log.
	kind() string
	// apply makes the change in the draft, or returns an error and leaves the
	// draft exactly as it was.
	apply(d *draft) error
}

// Kind returns the name of a command as it stands in the log, like
// "put_service"; "" for nil. It is meant for logs and events.
func Kind(c Command) string {
	if c == nil {
		return ""
	}
	return c.kind()
}

// InitCluster makes the first node's cluster. Of Node the name, role, address,
// gossip port and key are taken; it starts as voter, alive, with slot 0 (role lb).
// Refused with ErrAlreadyInitialised.
type InitCluster struct {
	Cluster Cluster `json:"cluster"`
	Node    Node    `json:"node"`
}

// CreateToken adds a join token that lives at most MaxTokenTTL from Now, and
// forgets tokens that expired more than TokenMemory before Now. Refused with
// ErrExists, ErrInvalid.
type CreateToken struct {
	Token Token     `json:"token"`
	Now   time.Time `json:"now"` // the proposer's clock
}

// RevokeToken removes a join token. Refused with ErrNotFound.
type RevokeToken struct {
	ID string `json:"id"`
}

// JoinNode checks and uses up a token and makes the node a member, in one
// step. Of Node the name, role, address, gossip port and key are taken; it starts
// as a non-voter, not alive until the leader's first verdict, with the lowest
// free slot (role lb). Refused with ErrTokenInvalid, ErrExists (name), ErrInUse
// (address, slots), ErrInvalid; then the token stays as it was.
type JoinNode struct {
	TokenID    string    `json:"token_id"`
	SecretHash []byte    `json:"secret_hash"` // SHA-256 of the secret the joiner showed
	Node       Node      `json:"node"`
	Now        time.Time `json:"now"` // the proposer's clock
}

// SetVoter records that a node has caught up and votes. Refused with
// ErrNotFound.
type SetVoter struct {
	Node NodeID `json:"node"`
}

// RemoveNode takes a node out of the cluster, out of all priorities and out of the
// BGP settings, with the peers that are its own. The last voter is refused with ErrInUse unless Force is set. Refused with
// ErrNotFound.
type RemoveNode struct {
	Node  NodeID `json:"node"`
	Force bool   `json:"force"`
}

// RecoverCluster rebuilds the cluster from one voter after its quorum was lost
// for good: every other member is removed, as by RemoveNode with Force; GossipKey
// takes the place of all keys, since those who are gone know them; the survivor
// is alive, for it commits this. Refused with ErrNotFound, and with ErrInvalid if
// the survivor has no vote or the key is not one of 32 bytes.
type RecoverCluster struct {
	Survivor  NodeID `json:"survivor"`
	GossipKey []byte `json:"gossip_key"`
}

// NodeVerdict is the leader's verdict on a node. Alive=false also clears Ready,
// LinksUp and InSync: a node that comes back has to earn them again. Reason is
// for the log's reader only. Refused with ErrNotFound.
type NodeVerdict struct {
	Node   NodeID `json:"node"`
	Alive  bool   `json:"alive"`
	Reason string `json:"reason,omitempty"`
}

// NodeReport is what a node says about itself. Refused with ErrNotFound, and
// with ErrNodeDown while the last verdict on the node is "dead".
type NodeReport struct {
	Node    NodeID `json:"node"`
	Ready   bool   `json:"ready"`
	LinksUp bool   `json:"links_up"`
	InSync  bool   `json:"in_sync"`
}

// DrainNode asks a node to own nothing, or takes the request back. Refused
// with ErrNotFound.
type DrainNode struct {
	Node     NodeID `json:"node"`
	Draining bool   `json:"draining"`
}

// PutInstance creates an instance or replaces its priorities. It never moves
// an instance whose master stays eligible. With any of the settings after
// Priorities it replaces all of them; without, an instance keeps those it has.
// (InstanceBackup alone sets all of them to their defaults.) Refused with
// ErrInvalid, and with ErrInUse if the instance's VIPs do not fit.
type PutInstance struct {
	Name       string         `json:"name"`
	Priorities map[NodeID]int `json:"priorities,omitempty"`

	Kind           InstanceKind   `json:"kind,omitempty"`
	AnnouncePolicy AnnouncePolicy `json:"announce_policy,omitempty"`
	NextHops       []netip.Addr   `json:"next_hops,omitempty"`
	ASPrepend      bool           `json:"as_prepend,omitempty"`
	Communities    []Community    `json:"communities,omitempty"`

	// Spread gives an instance that is new the eligible node as first master that has the
	// fewest masterships, among those with the highest priority for it. Without it the
	// rendezvous hash decides alone, as it did in earlier versions.
	Spread bool `json:"spread,omitempty"`
}

// DeleteInstance removes an instance. Refused with ErrNotFound, with ErrInUse
// while it has VIPs, and always for DefaultInstance.
type DeleteInstance struct {
	Name string `json:"name"`
}

// MoveInstance makes an eligible node master. Moving to the present master
// changes nothing. Refused with ErrNotFound, ErrNotEligible.
type MoveInstance struct {
	Name string `json:"name"`
	To   NodeID `json:"to"`
}

// PutVIP creates or replaces a VIP. Refused with ErrInvalid, and with ErrInUse
// if the address is that of a node, an endpoint or a BGP peer, if services use
// the VIP and it would cease to be of kind service, or if it is a next hop of its
// instance and would cease to be one that is announced.
type PutVIP struct {
	VIP VIP `json:"vip"`
}

// DeleteVIP removes a VIP. Refused with ErrNotFound, and with ErrInUse while
// services use it or it is a next hop.
type DeleteVIP struct {
	Address netip.Addr `json:"address"`
}

// PutService creates or replaces a service, which keeps its id when replaced, as
// do the endpoints that stay. One that was draining and still is keeps its
// DrainUntil; of one that begins to drain it is what the proposer worked out from
// its clock. With Create, an existing name is refused with ErrExists. Refused
// with ErrInvalid, and with ErrInUse if another service has the same VIP,
// protocol and one of the ports, or if there is no room.
//
// With Auto the service has no VIP and gets one from a pool; a service that has one
// of that pool keeps it. Refused with ErrInUse, too, if the pool has no free address.
// A VIP of a pool that no service is on any more goes back to the pool.
type PutService struct {
	Service Service  `json:"service"`
	Create  bool     `json:"create"`
	Auto    *AutoVIP `json:"auto,omitempty"`
}

// DeleteService removes a service. Refused with ErrNotFound.
type DeleteService struct {
	Name string `json:"name"`
}

// SetEndpointAdmin changes the administrative state of one endpoint. Until goes
// with AdminDrain only, and replaces what was said before. Refused with
// ErrNotFound, ErrInvalid.
type SetEndpointAdmin struct {
	Service  string         `json:"service"`
	Endpoint netip.AddrPort `json:"endpoint"`
	Admin    AdminState     `json:"admin"`
	Until    time.Time      `json:"until,omitzero"` // by the proposer's clock, when its flows are ended; zero is never
}

// PutBGP replaces the settings of all BGP speakers. Refused with ErrInvalid.
type PutBGP struct {
	BGP BGP `json:"bgp"`
}

// PutBGPPeer creates or replaces a peer. With KeepPassword as its password it
// keeps the one it has. Refused with ErrInvalid, and with ErrInUse if the address
// is a VIP or that of a node, or if there are too many peers.
type PutBGPPeer struct {
	Peer BGPPeer `json:"peer"`
}

// DeleteBGPPeer removes the peer of that address and node; "" is the entry for
// all nodes. Refused with ErrNotFound.
type DeleteBGPPeer struct {
	Address netip.Addr `json:"address"`
	Node    NodeID     `json:"node,omitempty"`
}

// Batch applies commands in order, all or none, with one election at the end.
// If some are refused, the error lists every refusal. A batch inside a batch is
// refused with ErrInvalid.
type Batch struct {
	Commands []Command
}

func (InitCluster) kind() string      { return "init_cluster" }
func (CreateToken) kind() string      { return "create_token" }
func (RevokeToken) kind() string      { return "revoke_token" }
func (JoinNode) kind() string         { return "join_node" }
func (SetVoter) kind() string         { return "set_voter" }
func (RemoveNode) kind() string       { return "remove_node" }
func (RecoverCluster) kind() string   { return "recover_cluster" }
func (NodeVerdict) kind() string      { return "node_verdict" }
func (NodeReport) kind() string       { return "node_report" }
func (DrainNode) kind() string        { return "drain_node" }
func (PutInstance) kind() string      { return "put_instance" }
func (DeleteInstance) kind() string   { return "delete_instance" }
func (MoveInstance) kind() string     { return "move_instance" }
func (PutVIP) kind() string           { return "put_vip" }
func (DeleteVIP) kind() string        { return "delete_vip" }
func (PutService) kind() string       { return "put_service" }
func (DeleteService) kind() string    { return "delete_service" }
func (SetEndpointAdmin) kind() string { return "set_endpoint_admin" }
func (PutBGP) kind() string           { return "put_bgp" }
func (PutBGPPeer) kind() string       { return "put_bgp_peer" }
func (DeleteBGPPeer) kind() string    { return "delete_bgp_peer" }
func (Batch) kind() string            { return "batch" }
