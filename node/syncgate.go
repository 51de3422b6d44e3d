package node

import (
	"sync"
	"time"
)

// syncGate decides whether this node holds every flow its live peers hold,
// which makes it eligible as a master.
type syncGate struct {
	grace time.Duration // see syncGrace; set before use

	mu sync.Mutex
	st syncState
}

// syncState is the gate's memory.
type syncState struct {
	ok   bool
	lost time.Time // since when a peer that counts is not streaming; zero while all are
}

// syncPeer is one other load balancer as this node sees it.
type syncPeer struct {
	counts    bool // alive and ready by the cluster's verdict: it may own flows
	streaming bool // its snapshot's marker was applied here and its stream goes on
}

// syncGrace, on top of agent_grace, is how long a stream may be down before its
// silence costs eligibility: a peer that dies or whose daemon stops takes its
// stream with it, and the survivors are as much in sync as anybody can be until
// the verdict comes.
const syncGrace = 5 * time.Second

// next is the pure decision.
func (s syncState) next(peers []syncPeer, now time.Time, grace time.Duration) syncState {
	for _, p := range peers {
		if !p.counts || p.streaming {
			continue
		}
		switch {
		case !s.ok:
			return syncState{}
		case s.lost.IsZero():
			return syncState{ok: true, lost: now}
		case now.Sub(s.lost) > grace:
			return syncState{}
		}
		return s
	}
	return syncState{ok: true}
}

// start sets where the gate begins: a daemon that adopted the maps of its
// earlier life holds what it held.
func (g *syncGate) start(adopted bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.st = syncState{ok: adopted}
}

// reset closes the gate until every peer has streamed to its marker again:
// the cluster declared this node dead, so what it holds may be old.
func (g *syncGate) reset() { g.start(false) }

// inSync decides at now; known is false while this node does not know the
// cluster's state, and then nothing changes.
func (g *syncGate) inSync(now time.Time, peers []syncPeer, known bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if known {
		g.st = g.st.next(peers, now, g.grace)
	}
	return g.st.ok
}
