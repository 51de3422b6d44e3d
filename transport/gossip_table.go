package transport

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"
)

// GossipState is what gossip makes of a member.
type GossipState string

// The states of a member.
const (
	// GossipAlive: it answers somebody.
	GossipAlive GossipState = "alive"
	// GossipSuspect: it is not declared dead, but does not answer this node's own
	// pings (two in a row). The library's suspicion has no event and no accessor,
	// so this is measured here; it is each node's own view.
	GossipSuspect GossipState = "suspect"
	// GossipDead: it was probed by several and did not speak up in time.
	GossipDead GossipState = "dead"
	// GossipLeft: it said that it goes.
	GossipLeft GossipState = "left"
)

// GossipMember is one line of Gossip.Members.
type GossipMember struct {
	Node    string
	State   GossipState
	Address netip.AddrPort // where it gossips
	Meta    []byte         // what it says of itself (GossipConfig.Meta); do not modify
}

// Meta on the wire is one byte of flags and then the caller's bytes. The flag
// tells, when a member goes, whether it left or died: the library's leave event
// does not.
const metaLeaving byte = 1

// gossipTable keeps what the library tells by callbacks, because the library
// itself forgets the dead. Its callbacks run under the library's locks: they
// take only mu, for moments, and never call back.
type gossipTable struct {
	self    string
	meta    []byte
	changed chan struct{}

	mu      sync.Mutex
	leaving bool
	nodes   map[string]*gossipEntry
}

type gossipEntry struct {
	GossipMember      // State is alive, dead or left; suspect is shown from misses
	leaving      bool // it announced that it goes
	misses       int  // own pings missed in a row
	busy         bool // a ping is under way
	fresh        bool // came to life since takeFresh
}

var (
	_ memberlist.EventDelegate = (*gossipTable)(nil)
	_ memberlist.Delegate      = (*gossipTable)(nil)
)

func newGossipTable(self string, meta []byte) *gossipTable {
	return &gossipTable{
		self:    self,
		meta:    bytes.Clone(meta),
		changed: make(chan struct{}, 1),
		nodes:   map[string]*gossipEntry{},
	}
}

func (t *gossipTable) signal() {
	select {
	case t.changed <- struct{}{}:
	default: // one is pending already
	}
}

func (e *gossipEntry) shown() GossipState {
	if e.State == GossipAlive && e.misses >= missesToSuspect {
		return GossipSuspect
	}
	return e.State
}

func (t *gossipTable) members() []GossipMember {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]GossipMember, 0, len(t.nodes))
	for _, e := range t.nodes {
		m := e.GossipMember
		m.State = e.shown()
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b GossipMember) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

func (t *gossipTable) forget(node string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.nodes[node]; e != nil && e.State != GossipAlive {
		delete(t.nodes, node)
		t.signal()
	}
}

// alive reports whether the library holds the node for alive (suspects too).
func (t *gossipTable) alive(node string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	return e != nil && e.State == GossipAlive
}

// takeFresh returns the other members that came to life since the last call.
func (t *gossipTable) takeFresh() map[string]netip.AddrPort {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]netip.AddrPort{}
	for name, e := range t.nodes {
		if e.fresh && name != t.self {
			out[name] = e.Address
		}
		e.fresh = false
	}
	return out
}

// startPings returns the members to ping now and marks them busy: the living but
// this node, unless the last ping to them is still under way.
func (t *gossipTable) startPings() []GossipMember {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []GossipMember
	for name, e := range t.nodes {
		if name != t.self && e.State == GossipAlive && !e.busy {
			e.busy = true
			out = append(out, e.GossipMember)
		}
	}
	return out
}

// endPing notes the outcome of one ping.
func (t *gossipTable) endPing(node string, answered bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[node]
	if e == nil {
		return
	}
	before := e.shown()
	e.busy = false
	e.misses++
	if answered {
		e.misses = 0
	}
	if e.shown() != before {
		t.signal()
	}
}

func (t *gossipTable) setLeaving() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.leaving = true
}

// NotifyJoin is called when a node appears, or comes back from the dead.
func (t *gossipTable) NotifyJoin(n *memberlist.Node) { t.update(n, GossipAlive) }

// NotifyUpdate is called when a node's meta changed.
func (t *gossipTable) NotifyUpdate(n *memberlist.Node) { t.update(n, GossipAlive) }

// NotifyLeave is called when a node left or was declared dead.
func (t *gossipTable) NotifyLeave(n *memberlist.Node) { t.update(n, GossipDead) }

func (t *gossipTable) update(n *memberlist.Node, state GossipState) {
	addr, _ := netip.AddrFromSlice(n.Addr)
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.nodes[n.Name]
	if e == nil {
		e = &gossipEntry{}
		t.nodes[n.Name] = e
	}
	e.leaving = len(n.Meta) > 0 && n.Meta[0]&metaLeaving != 0
	if state == GossipDead && e.leaving {
		state = GossipLeft
	}
	if state != e.State {
		e.misses = 0
		e.fresh = state == GossipAlive
	}
	e.GossipMember = GossipMember{
		Node:    n.Name,
		State:   state,
		Address: netip.AddrPortFrom(addr.Unmap(), n.Port),
	}
	if len(n.Meta) > 1 {
		e.Meta = bytes.Clone(n.Meta[1:])
	}
	t.signal()
}

// NodeMeta gives the library what to tell others of this node.
func (t *gossipTable) NodeMeta(int) []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var flags byte
	if t.leaving {
		flags |= metaLeaving
	}
	return append([]byte{flags}, t.meta...)
}

// The rest of memberlist.Delegate carries user messages and user state, which
// Pontoon does not send by gossip.

// NotifyMsg ignores user messages.
func (t *gossipTable) NotifyMsg([]byte) {}

// GetBroadcasts has nothing to send.
func (t *gossipTable) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState has nothing to add to a state exchange.
func (t *gossipTable) LocalState(bool) []byte { return nil }

// MergeRemoteState ignores user state.
func (t *gossipTable) MergeRemoteState([]byte, bool) {}
