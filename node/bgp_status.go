package node

import (
	"context"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// bgpSessions lists the sessions a node is to have. No speaker runs yet, so
// all of them are idle.
func bgpSessions(s *fsm.State, self fsm.NodeID) []web.BGPPeer {
	as, _ := s.BGPOf(self)
	var out []web.BGPPeer
	for _, p := range s.BGPPeersOf(self) {
		peer := web.BGPPeer{
			Peer: p.Address.String(), Node: self, AS: p.AS, LocalAS: as, State: web.BGPIdle,
			HoldS: time.Duration(p.Hold).Seconds(), BFD: web.BGPBFDOff,
		}
		if p.LocalAS != 0 {
			peer.LocalAS = p.LocalAS
		}
		if p.BFD {
			peer.BFD = web.BGPBFDDown
		}
		out = append(out, peer)
	}
	return out
}

// BGPRoutes implements web.Backend: a node without a speaker has no routes.
func (d *daemon) BGPRoutes(context.Context, web.BGPDirection) ([]web.BGPRoute, error) {
	_, err := d.current()
	return nil, err
}
