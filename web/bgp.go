package web

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"pontoon/fsm"
)

// BGPState is how far a BGP session is (RFC 4271, 8.2.2).
type BGPState string

// The states of a BGP session.
const (
	BGPIdle        BGPState = "idle"        // waits before it tries again
	BGPConnect     BGPState = "connect"     // TCP is being set up
	BGPActive      BGPState = "active"      // waits for the peer to connect
	BGPOpenSent    BGPState = "opensent"    // the peer has not said who it is
	BGPOpenConfirm BGPState = "openconfirm" // each knows the other
	BGPEstablished BGPState = "established" // routes are exchanged
)

// The words for BFD at a BGP peer.
const (
	BGPBFDUp   = "up"
	BGPBFDDown = "down"
	BGPBFDOff  = "off" // nobody asked for it
)

// BGPPeer is one BGP session of the node that answers.
type BGPPeer struct {
	Peer       string     `json:"peer" doc:"Its address."`
	Node       fsm.NodeID `json:"node" doc:"Whose session it is: the node that answers."`
	AS         uint32     `json:"as"`
	LocalAS    uint32     `json:"local_as" doc:"This node's AS in this session."`
	State      BGPState   `json:"state" enum:"idle,connect,active,opensent,openconfirm,established"`
	Since      time.Time  `json:"since,omitzero" doc:"Of the state."`
	RouterID   string     `json:"router_id,omitempty" doc:"The peer's, once it has said so."`
	Source     string     `json:"source,omitempty" doc:"This node's end."`
	HoldS      float64    `json:"hold_s" doc:"As agreed; as configured before."`
	Received   int        `json:"received" doc:"Prefixes received."`
	Accepted   int        `json:"accepted" doc:"Prefixes received that an import rule lets in."`
	Advertised int        `json:"advertised" doc:"Prefixes advertised."`
	Flaps      int        `json:"flaps" doc:"How often the session has been lost since the daemon was started."`
	In         uint64     `json:"messages_in"`
	Out        uint64     `json:"messages_out"`
	BFD        string     `json:"bfd" enum:"up,down,off"`
	Error      string     `json:"error,omitempty" doc:"Why the session is not established, in words."`
}

// BGPDirection chooses routes.
type BGPDirection string

// The directions of routes.
const (
	BGPAdvertised BGPDirection = "advertised"
	BGPReceived   BGPDirection = "received"
)

// BGPRoute is one route this node advertises to a peer, or has received from it.
type BGPRoute struct {
	Peer        string          `json:"peer"`
	Prefix      netip.Prefix    `json:"prefix"`
	NextHop     netip.Addr      `json:"next_hop,omitzero"`
	MED         uint32          `json:"med" doc:"Less is better."`
	LocalPref   uint32          `json:"local_pref" doc:"More is better; within one AS only, 0 otherwise."`
	ASPath      []uint32        `json:"as_path"`
	Communities []fsm.Community `json:"communities" doc:"Large ones have three numbers."`
	Best        bool            `json:"best" doc:"Received: the best way to the prefix. Advertised: always."`
	Instance    string          `json:"instance,omitempty" doc:"That of the VIP. Filled in by the API."`
	VIP         netip.Addr      `json:"vip,omitzero" doc:"The VIP the route leads to. Filled in by the API."`
}

// complete fills in what the configuration says of a route.
func (r *BGPRoute) complete(state *fsm.State) {
	r.ASPath, r.Communities = notNil(r.ASPath), notNil(r.Communities)
	if !r.Prefix.IsSingleIP() {
		return
	}
	if v, ok := state.VIP(r.Prefix.Addr()); ok {
		r.VIP, r.Instance = v.Address, v.Instance
	}
}

// BGPSettings are the settings of the BGP speakers and what follows from them for
// each node.
type BGPSettings struct {
	fsm.BGP
	Speakers []BGPSpeaker `json:"speakers" doc:"The nodes of role lb. Ignored in a request."`
}

// UnmarshalJSON reads what GET answers. It stands in place of that of fsm.BGP,
// which knows nothing of Speakers.
func (s *BGPSettings) UnmarshalJSON(b []byte) error {
	var more struct {
		Speakers []BGPSpeaker `json:"speakers"`
	}
	if err := json.Unmarshal(b, &more); err != nil {
		return err
	}
	bgp, err := decodeWithout[fsm.BGP](b, "speakers")
	*s = BGPSettings{BGP: bgp, Speakers: more.Speakers}
	return err
}

// BGPSpeaker is one node as its peers see it.
type BGPSpeaker struct {
	Node     fsm.NodeID `json:"node"`
	AS       uint32     `json:"as"`
	RouterID netip.Addr `json:"router_id"`
}

func bgpSettings(state *fsm.State) BGPSettings {
	out := BGPSettings{BGP: state.BGP(), Speakers: []BGPSpeaker{}}
	for _, n := range state.Nodes() {
		if n.Role == fsm.RoleLB {
			as, id := state.BGPOf(n.Name)
			out.Speakers = append(out.Speakers, BGPSpeaker{Node: n.Name, AS: as, RouterID: id})
		}
	}
	return out
}

// BGPPeerStatus is a configured peer, with this node's session where it has one.
type BGPPeerStatus struct {
	fsm.BGPPeer
	Session *BGPPeer `json:"session,omitempty" doc:"That of the node that answers, if it speaks with the peer. Ignored in a request."`
}

// BGPWritten answers a change of the BGP configuration.
type BGPWritten struct {
	Index    uint64              `json:"index" doc:"The Raft index of the change; 0 of a dry run."`
	DryRun   bool                `json:"dry_run"`
	Sessions []fsm.SessionChange `json:"sessions" doc:"The sessions it adds, resets and removes; all others go on."`
}

// peerStatuses lists the configured peers, with the sessions of a node.
func peerStatuses(state *fsm.State, self fsm.NodeID, sessions []BGPPeer) []BGPPeerStatus {
	mine := map[netip.Addr]fsm.NodeID{}
	for _, p := range state.BGPPeersOf(self) {
		mine[p.Address] = p.Node
	}
	out := []BGPPeerStatus{}
	for _, p := range state.BGPPeers() {
		ps := BGPPeerStatus{BGPPeer: p.Shown()}
		if node, ok := mine[p.Address]; ok && node == p.Node {
			for i := range sessions {
				if sessions[i].Peer == p.Address.String() {
					ps.Session = &sessions[i]
				}
			}
		}
		out = append(out, ps)
	}
	return out
}

// bgpNotes says of a node's BGP what a person has to know.
func bgpNotes(s Status) []string {
	var notes []string
	for _, p := range s.BGP {
		switch {
		case p.State == BGPEstablished:
		case p.Error != "":
			notes = append(notes, fmt.Sprintf("BGP with %s is not established (%s): %s.", p.Peer, p.State, p.Error))
		default:
			notes = append(notes, fmt.Sprintf("BGP with %s is not established (%s).", p.Peer, p.State))
		}
	}
	speaks := false
	for _, n := range s.Nodes {
		speaks = speaks || n.Name == s.Self && n.Role == fsm.RoleLB
	}
	if len(s.BGP) > 0 || !speaks {
		return notes
	}
	for _, v := range s.VIPs {
		if v.Announce == fsm.AnnounceBGP {
			return append(notes, fmt.Sprintf("VIP %s is announced by BGP, and %s has no peer to tell: pontoon bgp peer add.", v.Address, s.Self))
		}
	}
	return notes
}
