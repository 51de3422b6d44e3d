package fsm

import (
	"fmt"
	"net/netip"
	"strings"
)

// SessionVerb says what a change of the configuration does to a BGP session.
type SessionVerb string

// What happens to a session.
const (
	SessionAdded   SessionVerb = "added"
	SessionReset   SessionVerb = "reset" // ended and begun anew; without graceful restart its routes are gone meanwhile
	SessionRemoved SessionVerb = "removed"
)

// SessionChange is one session that a change of the configuration touches.
type SessionChange struct {
	Peer netip.Addr  `json:"peer"`
	Node NodeID      `json:"node"`
	Verb SessionVerb `json:"change" enum:"added,reset,removed"`
	Why  string      `json:"why,omitempty"` // of a reset: what differs, as "hold time 9s -> 30s"
	// RoutesKept says of a reset that the peer is not told of it: if it does graceful restart, too, it keeps the
	// routes until the session is back.
	RoutesKept bool `json:"routes_kept,omitempty"`
}

// session is everything two speakers agree on when they connect: if any of it
// differs, they have to begin anew.
type session struct {
	BGPPeer
	as       uint32
	routerID netip.Addr
	restart  Duration
}

// SessionChanges tells which BGP sessions the step from one state to another adds,
// resets and removes, by node and peer. What is not listed goes on without
// interruption: VIPs, services, mastership, import rules, limits, the listen port
// and BFD touch no session.
func SessionChanges(before, after *State) []SessionChange {
	var names []NodeID
	diffTables(&before.nodes, &after.nodes, func(n *Node) string { return string(n.Name) }, func(name string, v ChangeVerb) {
		if v == Deleted {
			names = append(names, NodeID(name))
		}
	})
	for _, n := range after.nodes.rows {
		names = append(names, n.key)
	}
	out := []SessionChange{}
	for _, name := range names {
		out = append(out, sessionChanges(name, before.sessions(name), after.sessions(name))...)
	}
	return out
}

// sessions are those of one node, sorted by address.
func (s *State) sessions(node NodeID) []session {
	b := s.BGP()
	as, id := s.BGPOf(node)
	var out []session
	for _, p := range s.BGPPeersOf(node) {
		out = append(out, session{BGPPeer: p, as: as, routerID: id, restart: b.RestartTime})
	}
	return out
}

// sessionChanges walks two sorted lists side by side.
func sessionChanges(node NodeID, before, after []session) []SessionChange {
	var out []SessionChange
	say := func(s session, v SessionVerb, why string, kept bool) {
		out = append(out, SessionChange{Peer: s.Address, Node: node, Verb: v, Why: why, RoutesKept: kept})
	}
	for len(before) > 0 || len(after) > 0 {
		switch {
		case len(after) == 0 || len(before) > 0 && before[0].Address.Less(after[0].Address):
			say(before[0], SessionRemoved, "", false)
			before = before[1:]
		case len(before) == 0 || after[0].Address.Less(before[0].Address):
			say(after[0], SessionAdded, "", false)
			after = after[1:]
		default:
			if why := before[0].differs(after[0]); why != "" {
				say(after[0], SessionReset, why, before[0].sameSpeaker(after[0]))
			}
			before, after = before[1:], after[1:]
		}
	}
	return out
}

// differs says what of a session another has otherwise; "" if nothing.
func (s session) differs(o session) string {
	var why []string
	turn := func(what string, from, to any) {
		if from != to {
			why = append(why, fmt.Sprintf("%s %v -> %v", what, from, to))
		}
	}
	turn("AS", s.AS, o.AS)
	turn("own AS", s.ownAS(), o.ownAS())
	if s.ownAS() == o.ownAS() {
		turn("the node's AS", s.as, o.as) // it identifies the speaker, whatever this peer is told
	}
	turn("router id", s.routerID, o.routerID)
	turn("port", s.Port, o.Port)
	if s.Password != o.Password {
		why = append(why, "another password")
	}
	turn("multihop", s.Multihop, o.Multihop)
	turn("TTL security", onOff(s.TTLSecurity), onOff(o.TTLSecurity))
	turn("passive", onOff(s.Passive), onOff(o.Passive))
	turn("hold time", s.Hold, o.Hold)
	turn("keepalive", s.Keepalive, o.Keepalive)
	turn("source", addrOrAny(s.Source), addrOrAny(o.Source))
	turn("family", s.Family, o.Family)
	turn("graceful restart", s.graceful(), o.graceful())
	return strings.Join(why, ", ")
}

// sameSpeaker says whether the peer takes the next session for one of the same speaker that has restarted.
func (s session) sameSpeaker(o session) bool {
	return !s.NoGracefulRestart && !o.NoGracefulRestart && s.AS == o.AS && s.ownAS() == o.ownAS() && s.as == o.as &&
		s.routerID == o.routerID && s.Source == o.Source && s.Family == o.Family
}

func (s session) ownAS() uint32 {
	if s.LocalAS != 0 {
		return s.LocalAS
	}
	return s.as
}

func (s session) graceful() string {
	if s.NoGracefulRestart {
		return "off"
	}
	return shortSpan(s.restart)
}

func onOff(b bool) string {
	if b {
		return "on"
	}
	return "off"
}

func addrOrAny(a netip.Addr) string {
	if !a.IsValid() {
		return "any"
	}
	return a.String()
}
