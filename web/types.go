package web

import (
	"cmp"
	"net/netip"

	"pontoon/fsm"
)

// Status is everything one node knows about the cluster and itself, at one
// moment. The parts that are counted (flows, drops, replication, interfaces)
// are those of the node that answers; the rest is replicated.
//
// Its JSON form is that of `pontoon status -o json`.
type Status struct {
	Summary     Summary           `json:"summary" doc:"The state of the cluster in words. Filled in by the API."`
	Cluster     ClusterStatus     `json:"cluster"`
	Self        fsm.NodeID        `json:"self" doc:"The node that answers."`
	Version     string            `json:"version" doc:"The version of the node that answers. Filled in by the API."`
	Nodes       []NodeStatus      `json:"nodes"`
	Instances   []InstanceStatus  `json:"instances"`
	VIPs        []fsm.VIP         `json:"vips"`
	Services    []ServiceStatus   `json:"services"`
	Replication []PeerReplication `json:"replication" doc:"One entry for each peer that flows are sent to."`
	Pools       []PoolBrief       `json:"pools" doc:"The address pools, without what each address is used for. Filled in by the API."`

	Lease        *LeaseStatus      `json:"lease,omitempty" doc:"For how long this node may claim its VIPs without hearing from a quorum anew. Not of a witness."`
	Failovers    []fsm.Failover    `json:"failovers" doc:"The newest changes of mastership with their timelines, newest first."`
	LastTakeover *Takeover         `json:"last_takeover,omitempty" doc:"Absent while this node has not become master since its daemon was started."`
	Flows        FlowCounts        `json:"flows"`
	Drops        map[string]uint64 `json:"drops" doc:"Packets not passed on by this node, by reason."`
	Counters     map[string]uint64 `json:"counters,omitempty" doc:"What else this node's data plane has counted, by name: packets brought to other nodes, answers sent, flows adopted and so on."`
	Interfaces   []InterfaceStatus `json:"interfaces" doc:"The data plane interfaces of this node."`
	BFD          []BFDSession      `json:"bfd"`
	BGP          []BGPPeer         `json:"bgp" doc:"The BGP sessions of this node."`
	Warnings     []string          `json:"warnings" doc:"What this node would tell its operator about itself, one sentence each. What concerns the cluster is in summary.notes."`
}

// Level grades a Summary.
type Level string

// The levels of a summary.
const (
	LevelOK   Level = "ok"   // nothing to do
	LevelWarn Level = "warn" // serving, and something needs a look
	LevelBad  Level = "bad"  // not serving everything, or unable to decide
)

// Summary is the state of the cluster in words. See Summarise.
type Summary struct {
	Level Level    `json:"level" enum:"ok,warn,bad"`
	Text  string   `json:"text" example:"3 of 3 nodes healthy, lb1 leads"`
	Notes []string `json:"notes" doc:"What stands behind the level, one sentence each."`
}

// ClusterStatus is what Raft says.
type ClusterStatus struct {
	ID      string     `json:"id"`
	Leader  fsm.NodeID `json:"leader" doc:"Empty while there is none."`
	Term    uint64     `json:"term"`
	Applied uint64     `json:"applied" doc:"Index of the last command applied on this node."`

	Recovered uint64       `json:"recovered" doc:"How often the cluster was rebuilt from one node by pontoon recover."`
	Without   []fsm.NodeID `json:"without" doc:"The nodes the last recovery left behind, until there are three voters again."`

	Quorum bool `json:"quorum" doc:"This node hears from a majority of the voters."`
}

// RaftRole is a node's part in the Raft group.
type RaftRole string

// The parts of a node in the Raft group.
const (
	RaftLeader   RaftRole = "leader"
	RaftVoter    RaftRole = "voter"
	RaftNonvoter RaftRole = "nonvoter"
)

// NodeStatus is one member: what is replicated about it, and what it said last.
type NodeStatus struct {
	fsm.Node
	Raft     RaftRole `json:"raft" enum:"leader,voter,nonvoter"`
	Applied  uint64   `json:"applied" doc:"Index its data plane has reached, as last heard."`
	MasterOf []string `json:"master_of" doc:"The instances it is master of."`
	Serves   []string `json:"serves,omitempty" doc:"The instances without a master (kind ecmp) that it serves."`
}

// InstanceStatus is one instance, its election and its addresses.
type InstanceStatus struct {
	Name       string             `json:"name"`
	Priorities map[fsm.NodeID]int `json:"priorities,omitempty" doc:"Higher is preferred; absent is 0."`
	InstanceSettings
	fsm.Assignment
	VIPs     []netip.Addr `json:"vips"`
	Services int          `json:"services" doc:"How many services are on its VIPs."`
}

// InstanceSettings are what an operator says of an instance, beyond priorities.
type InstanceSettings struct {
	Kind           fsm.InstanceKind   `json:"kind,omitempty" doc:"backup (default): one node serves, the master, and the others follow in order. ecmp: all of the succession serve, and routers spread the traffic."`
	AnnouncePolicy fsm.AnnouncePolicy `json:"announce_policy,omitempty" doc:"Of VIPs announced by bgp. ranked (default): all of the succession announce them, the first as the best way. master-only: nobody else."`
	NextHops       []netip.Addr       `json:"next_hops,omitempty" doc:"VIPs of this instance, one of a family at most, that are the next hop of the routes to its others."`
	ASPrepend      bool               `json:"as_prepend,omitempty" doc:"A backup's routes carry its AS once more for each place behind the master."`
	Communities    []fsm.Community    `json:"communities,omitempty" doc:"Of all its routes: 65000:100 (RFC 1997) or 65000:1:2 (large, RFC 8092)."`
}

// SettingsOf returns the settings of an instance, with the defaults in words.
func SettingsOf(i fsm.Instance) InstanceSettings {
	s := InstanceSettings{
		Kind: cmp.Or(i.Kind, fsm.InstanceBackup), AnnouncePolicy: i.AnnouncePolicy,
		NextHops: i.NextHops, ASPrepend: i.ASPrepend, Communities: i.Communities,
	}
	if s.Kind == fsm.InstanceBackup {
		s.AnnouncePolicy = cmp.Or(s.AnnouncePolicy, fsm.PolicyRanked)
	}
	return s
}

// ServiceStatus is one service with what this node knows about its endpoints.
type ServiceStatus struct {
	fsm.Service
	Endpoints []EndpointStatus `json:"endpoints" doc:"Sorted by address."` // in place of Service.Endpoints
	Instance  string           `json:"instance" doc:"That of its VIP. Filled in by the API."`
	Flows     uint64           `json:"flows" doc:"Live flows that this node forwards; its copies of other nodes' flows do not count."`
	Traffic   Traffic          `json:"traffic" doc:"What this node has done for it, by endpoints that are gone too."`
}

// Traffic is what one node has done for a service or an endpoint since its data
// plane was set up. Bytes are those of IP packets.
type Traffic struct {
	Active         uint64 `json:"active" doc:"Connections that are not closed, copies of other nodes' flows included."`
	New            uint64 `json:"new" doc:"Connections completed."`
	ForwardPackets uint64 `json:"forward_packets" doc:"From clients to endpoints."`
	ForwardBytes   uint64 `json:"forward_bytes"`
	ReplyPackets   uint64 `json:"reply_packets" doc:"From endpoints to clients; none pass here in dsr."`
	ReplyBytes     uint64 `json:"reply_bytes"`
}

// FlowCounts counts the flow table of this node, in connections.
type FlowCounts struct {
	Established uint64 `json:"established"`
	HalfOpen    uint64 `json:"half_open" doc:"Handshakes not completed."`
	Owned       uint64 `json:"owned" doc:"This node forwards them."`
	Replica     uint64 `json:"replica" doc:"Another node forwards them; this one holds a copy."`
	Adopted     uint64 `json:"adopted" doc:"Replicas this node took over since it started: what survived a failover."`
	Orphans     uint64 `json:"orphans" doc:"Connections of nodes that died which this node learned of from the others, since its daemon was started."`
	Max         uint64 `json:"max"`
}

// InterfaceStatus is one data plane interface of this node.
type InterfaceStatus struct {
	Name string `json:"name"`
	Up   bool   `json:"up" doc:"It has carrier."`
	Hook string `json:"hook" doc:"How the data plane is attached: tcx or clsact, with xdp+ (xdp-generic+ when that was asked for) before it where XDP forwards what it can; empty when it is not."`

	HookReason string `json:"hook_reason" doc:"Why this hook was chosen, or why the data plane is not attached."`
}

// The kinds of BFDSession.
const (
	BFDEcho  = "echo"
	BFDAsync = "async"
	BFDNone  = "none" // also the state: it cannot be watched
)

// BFDSession is one way from this node to another that is watched: by echoes that the peer's data
// plane sends back (RFC 9747), or by a session between the daemons (RFC 5880, asynchronous mode).
type BFDSession struct {
	Peer        fsm.NodeID `json:"peer"`
	Kind        string     `json:"kind" enum:"echo,async,none" doc:"What is watched: the peer's data plane, its daemon, or nothing since there is no way to it (why says more)."`
	Address     string     `json:"address"`
	State       string     `json:"state" enum:"up,down,init,none"`
	IntervalMS  float64    `json:"interval_ms" doc:"Between two packets of this node; of a session as agreed, before jitter."`
	Multiplier  int        `json:"multiplier" doc:"How many in a row have to be missing."`
	DetectionMS float64    `json:"detection_ms" doc:"How long the peer has to be silent to be down. That of a session is agreed on; 0 before."`
	Interface   string     `json:"interface" doc:"This node's end."`
	Why         string     `json:"why,omitempty" doc:"Why it is down. An echo: unanswered, refused (the peer's kernel answers, its data plane does not), unsent. A session: silent, stopped (the peer said so), not heard there (one direction fails), not up yet, unsent."`
	RTTMS       float64    `json:"rtt_ms" doc:"Of the last answered echo."`
	Error       string     `json:"error,omitempty" doc:"Why packets cannot be sent or received."`
}

// normalise makes the JSON form steady: lists that are empty, not null.
func (s *Status) normalise() {
	s.Cluster.Without = notNil(s.Cluster.Without)
	s.Nodes = notNil(s.Nodes)
	for i := range s.Nodes {
		s.Nodes[i].MasterOf = notNil(s.Nodes[i].MasterOf)
	}
	s.Instances = notNil(s.Instances)
	for i := range s.Instances {
		s.Instances[i].Succession = notNil(s.Instances[i].Succession)
		s.Instances[i].VIPs = notNil(s.Instances[i].VIPs)
	}
	s.VIPs = notNil(s.VIPs)
	s.Services = notNil(s.Services)
	for i := range s.Services {
		s.Services[i].Endpoints = notNil(s.Services[i].Endpoints)
	}
	s.Pools = notNil(s.Pools)
	s.Replication = normaliseReplication(s.Replication)
	s.Interfaces = notNil(s.Interfaces)
	s.BFD = notNil(s.BFD)
	s.Failovers = notNil(s.Failovers)
	s.BGP = notNil(s.BGP)
	s.Warnings = notNil(s.Warnings)
	s.Summary.Notes = notNil(s.Summary.Notes)
	if s.Drops == nil {
		s.Drops = map[string]uint64{}
	}
}

// notNil returns an empty list for a nil one, so that JSON says [] and not null.
func notNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}
