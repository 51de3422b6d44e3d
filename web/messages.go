package web

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"pontoon/fsm"
)

// The kinds of Event. A program should pass over a kind it does not know.
const (
	EventElection    = "election"    // the Raft group has a new leader, or none
	EventFailover    = "failover"    // an instance has a new master
	EventJoin        = "join"        // a node became a member
	EventLeave       = "leave"       // a node left or was removed
	EventVerdict     = "verdict"     // the leader declared a node alive or dead
	EventConfig      = "config"      // somebody changed the configuration
	EventReplication = "replication" // flow replication to a peer changed its state
	EventNode        = "node"        // a node became ready, in sync, drained, or ceased to be
	EventDataPlane   = "data_plane"  // attached, adopted, failed
	EventLease       = "lease"       // this node's right to claim its VIPs ran out, or is back
	EventDisk        = "disk"        // this node's data directory takes no writes, or takes them again
	EventRecovery    = "recovery"    // the cluster is rebuilt from one node
	EventHealth      = "health"      // an endpoint was found up or down, or drains, or a node doubts its probes
	EventBGP         = "bgp"         // a BGP session of this node came up or was lost, or a route is withdrawn or back
)

// Event is one thing that happened, as `pontoon events` prints it.
type Event struct {
	Time     time.Time         `json:"time"`
	Index    uint64            `json:"index,omitempty" doc:"Raft index, where the event has one."`
	Kind     string            `json:"kind" example:"failover"`
	Node     fsm.NodeID        `json:"node,omitempty" doc:"The node it is about."`
	Instance string            `json:"instance,omitempty" doc:"The instance it is about."`
	Text     string            `json:"text" doc:"One sentence." example:"lb2 is master of default after lb1"`
	Fields   map[string]string `json:"fields,omitempty"`
}

// Flow is one tracked connection, as `pontoon conntrack list -o json` prints it.
type Flow struct {
	Protocol fsm.Protocol   `json:"protocol"`
	Client   netip.AddrPort `json:"client"`
	VIP      netip.AddrPort `json:"vip"`
	SNAT     netip.AddrPort `json:"snat" doc:"The source the endpoint sees; empty where it is the client's own."`
	Endpoint netip.AddrPort `json:"endpoint"`
	State    string         `json:"state" example:"established" doc:"ended: by an endpoint's removal or idleness; whoever still sends is told so."`
	Service  string         `json:"service"`
	Node     fsm.NodeID     `json:"node" doc:"The node whose table this is."`
	Owner    bool           `json:"owner" doc:"This node forwards it; otherwise it holds a copy."`
	AgeS     float64        `json:"age_s"`
	IdleS    float64        `json:"idle_s"`
	Packets  uint64         `json:"packets" doc:"Both directions."`
	Bytes    uint64         `json:"bytes" doc:"Both directions."`
}

// FlowFilter chooses flows. Its zero value chooses all of them.
type FlowFilter struct {
	Service    string       // of this service; "" is any
	Client     netip.Prefix // from a client within; the zero Prefix is any
	ClientPort uint16       // from this port of the client; 0 is any
	Limit      int          // at most so many; 0 is without limit
}

// Match tells whether a flow of this service and client is chosen. Limit is
// left to whoever counts.
func (f FlowFilter) Match(service string, client netip.AddrPort) bool {
	switch {
	case f.Service != "" && f.Service != service:
		return false
	case f.Client.IsValid() && !f.Client.Contains(client.Addr().Unmap()):
		return false
	case f.ClientPort != 0 && f.ClientPort != client.Port():
		return false
	}
	return true
}

// SetClient reads a client as people write it: an address, an address with a
// port, or a prefix. An empty string is any client.
func (f *FlowFilter) SetClient(s string) error {
	f.Client, f.ClientPort = netip.Prefix{}, 0
	if s == "" {
		return nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("client %q: want an address, address:port or prefix: %w", s, fsm.ErrInvalid)
		}
		f.Client = p.Masked()
		return nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		f.Client = netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen())
		return nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return fmt.Errorf("client %q: want an address, address:port or prefix: %w", s, fsm.ErrInvalid)
	}
	f.Client = netip.PrefixFrom(ap.Addr().Unmap(), ap.Addr().Unmap().BitLen())
	f.ClientPort = ap.Port()
	return nil
}

// Health is what a supervisor asks a node for.
type Health struct {
	Live    bool     `json:"live" doc:"The daemon works. When it does not, start it anew."`
	Ready   bool     `json:"ready" doc:"The node takes part in a cluster and could own an instance, or vote if it is a witness."`
	Reasons []string `json:"reasons" doc:"Why it is not live or not ready."`
}

// WriteResult answers a write that changed the replicated state.
type WriteResult struct {
	Index uint64 `json:"index" doc:"The Raft index of the change. It is applied on the node that answers."`
}

// ServiceWritten answers a write of a service.
type ServiceWritten struct {
	WriteResult
	VIP   *fsm.VIP `json:"vip,omitempty" doc:"The VIP that was created with the service, or that a pool gave it."`
	Notes []string `json:"notes,omitempty" doc:"What the operator may want to do otherwise, in words."`
}

// PoolWritten answers a write of an address pool.
type PoolWritten struct {
	WriteResult
	Notes []string `json:"notes,omitempty" doc:"Nodes that could not be asked for their addresses, and addresses that are in use already, in words."`
}

// PoolStatus is one address pool and what has become of its addresses.
type PoolStatus struct {
	fsm.Pool
	fsm.PoolUse
}

// PoolBrief is one address pool and how many of its addresses are left; its
// reservations are counted and not listed.
type PoolBrief struct {
	fsm.Pool
	fsm.PoolCounts
}

// NodeUses is what one node uses addresses for, or why it could not be asked.
type NodeUses struct {
	Node  fsm.NodeID
	Uses  []AddressUse
	Error string // "" if it was asked
}

// AddressUse is something that a node uses addresses for, and not Pontoon.
type AddressUse struct {
	Prefix netip.Prefix `json:"prefix"` // one address, or where a route leads
	What   string       `json:"what"`   // in words, like "an address of eth1"
}

// ReservationRequest says for whom an address is kept back.
type ReservationRequest struct {
	Address netip.Addr `json:"address,omitzero" required:"false" doc:"As in the path, if given."`
	Service string     `json:"service,omitempty" doc:"The service that gets the address when it asks its pool for one; nobody when left out."`
}

// MoveRequest asks for another master.
type MoveRequest struct {
	To fsm.NodeID `json:"to" minLength:"1" doc:"An eligible node."`
}

// InstanceRequest is what can be said about an instance. What GET answers can
// be sent back: the fields an election decides are accepted and ignored. With one
// of the settings all are replaced, those left out by their defaults; without any,
// an instance keeps those it has.
type InstanceRequest struct {
	Name       string             `json:"name,omitempty" doc:"As in the path, if given."`
	Priorities map[fsm.NodeID]int `json:"priorities,omitempty" doc:"Higher is preferred; absent is 0."`
	InstanceSettings
	Master     fsm.NodeID   `json:"master,omitempty" readOnly:"true"`
	Succession []fsm.NodeID `json:"succession,omitempty" readOnly:"true"`
	Epoch      uint64       `json:"epoch,omitempty" readOnly:"true"`
	VIPs       []netip.Addr `json:"vips,omitempty" readOnly:"true"`
	Services   int          `json:"services,omitempty" readOnly:"true"`
}

// FlushResult answers a flush of flows.
type FlushResult struct {
	Flushed int `json:"flushed" doc:"Connections forgotten."`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Role fsm.Role     `json:"role,omitempty" doc:"lb or witness; default lb."`
	TTL  fsm.Duration `json:"ttl,omitempty" doc:"How long it can be used; default 1h, at most 720h."`
}

// TokenCreated carries the only copy of a new token.
type TokenCreated struct {
	Token string `json:"token"`
}

// TokenInfo is a join token without its secret.
type TokenInfo struct {
	ID      string    `json:"id"`
	Role    fsm.Role  `json:"role"`
	Expires time.Time `json:"expires"`
	Expired bool      `json:"expired" doc:"By the clock of the node that answers."`
}

// InitResult answers the making of a cluster.
type InitResult struct {
	ClusterID   string `json:"cluster_id"`
	Token       string `json:"token" doc:"A first join token of role lb."`
	JoinCommand string `json:"join_command" doc:"What to type on the next node."`
}

// JoinRequest names a member and the right to join it.
type JoinRequest struct {
	Address string `json:"address" minLength:"1" doc:"Cluster address of any member." example:"192.168.80.11:7400"`
	Token   string `json:"token" minLength:"1"`
}

// JoinResult answers a join.
type JoinResult struct {
	ClusterID string     `json:"cluster_id"`
	Name      fsm.NodeID `json:"name"`
	Role      fsm.Role   `json:"role"`
}

// LeaveRequest asks this node to leave.
type LeaveRequest struct {
	Force bool `json:"force,omitempty" doc:"Leave also as the last voter: the cluster ends."`
}

// LeaveResult answers a leave with the steps that were taken.
type LeaveResult struct {
	Steps []string `json:"steps"`
}

// RecoverRequest asks this node to rebuild the cluster from itself.
type RecoverRequest struct {
	Fenced []fsm.NodeID `json:"fenced" minItems:"1" doc:"All other members, witnesses and nodes without a vote too: the caller vouches that none of them runs or will run with its old disk."`
}

// RecoverResult answers a recovery.
type RecoverResult struct {
	ClusterID string       `json:"cluster_id"`
	Survivor  fsm.NodeID   `json:"survivor"`
	Fenced    []fsm.NodeID `json:"fenced" doc:"The nodes left behind, sorted."`
	Recovered uint64       `json:"recovered" doc:"How often this cluster has been rebuilt now."`
	Index     uint64       `json:"index" doc:"The last command the rebuilt cluster knows of its earlier life."`
	Steps     []string     `json:"steps"`
}
