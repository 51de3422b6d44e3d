package node

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/detect"
	"pontoon/web"
)

// status is the sessions as the API shows them: those that are configured at s, also
// those that the speaker does not know yet.
func (r *routing) status(s *fsm.State) []web.BGPPeer {
	self := fsm.NodeID(r.m.cfg.Name)
	running := map[netip.Addr]announce.PeerStatus{}
	for _, p := range r.bgp.Peers() {
		running[p.Address] = p
	}
	out := make([]web.BGPPeer, 0, len(running))
	for _, p := range s.BGPPeersOf(self) {
		is := running[p.Address]
		out = append(out, peerStatus(s, self, p, is, r.bfdOf(p)))
	}
	return out
}

// peerStatus puts together what is configured of a neighbour and what is running.
func peerStatus(s *fsm.State, self fsm.NodeID, p fsm.BGPPeer, is announce.PeerStatus, bfd string) web.BGPPeer {
	as, _ := s.BGPOf(self)
	out := web.BGPPeer{
		Peer: p.Address.String(), Node: self, AS: p.AS, LocalAS: cmp.Or(is.LocalAS, p.LocalAS, as),
		State: web.BGPState(cmp.Or(is.State, announce.StateIdle)), Since: is.Since,
		HoldS:    cmp.Or(is.HoldTime, time.Duration(p.Hold)).Seconds(),
		Received: is.Received, Accepted: is.Accepted, Advertised: is.Advertised, Flaps: is.Flaps,
		In: is.MessagesIn, Out: is.MessagesOut, BFD: bfd, Error: is.Error,
	}
	if is.RouterID.IsValid() {
		out.RouterID = is.RouterID.String()
	}
	if p.Source.IsValid() {
		out.Source = p.Source.String()
	}
	return out
}

// bfdOf is how a neighbour's BFD session is.
func (r *routing) bfdOf(p fsm.BGPPeer) string {
	if !p.BFD {
		return web.BGPBFDOff
	}
	if s, ok := r.m.detector.routerSession(p.Address); ok && s.State == detect.Up {
		return web.BGPBFDUp
	}
	return web.BGPBFDDown
}

// warnings is what an operator should know of this node's BGP, beyond its sessions.
func (r *routing) warnings() []string {
	r.mu.Lock()
	trouble, withheld, problems := r.trouble, r.withheld, r.imports.problems
	r.mu.Unlock()
	var out []string
	if trouble != "" {
		out = append(out, "BGP: "+trouble)
	}
	if len(withheld) > 0 {
		out = append(out, fewVIPs(withheld)+" not announced: no endpoint takes new connections")
	}
	const most = 5
	out = append(out, problems[:min(len(problems), most)]...)
	if more := len(problems) - most; more > 0 {
		out = append(out, fmt.Sprintf("%d more learned routes are not in the kernel", more))
	}
	return append(out, r.m.detector.unwatchedRouters()...)
}

func (d *detector) unwatchedRouters() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.unwatched)
}

// BGPRoutes implements web.Backend.
func (d *daemon) BGPRoutes(_ context.Context, direction web.BGPDirection) ([]web.BGPRoute, error) {
	m, err := d.current()
	if err != nil || m.routing == nil {
		return nil, err
	}
	views := m.routing.bgp.Received
	if direction == web.BGPAdvertised {
		views = m.routing.bgp.Advertised
	}
	var out []web.BGPRoute
	for _, v := range views() {
		out = append(out, webRoute(v, direction == web.BGPAdvertised))
	}
	return out, nil
}

func webRoute(v announce.RouteView, advertised bool) web.BGPRoute {
	out := web.BGPRoute{
		Peer: v.Peer.String(), Prefix: v.Prefix, NextHop: v.NextHop, MED: v.MED, LocalPref: v.LocalPref, ASPath: v.ASPath,
		Best: v.Best || advertised,
	}
	for _, c := range v.Communities {
		out.Communities = append(out.Communities, community(c>>16, c&0xffff))
	}
	for _, c := range v.LargeCommunities {
		out.Communities = append(out.Communities, community(c[:]...))
	}
	return out
}

func community(parts ...uint32) fsm.Community {
	var text []byte
	for i, p := range parts {
		if i > 0 {
			text = append(text, ':')
		}
		text = strconv.AppendUint(text, uint64(p), 10)
	}
	return fsm.Community(text)
}

// bgpMetrics tells of each session, and of the routes.
func bgpMetrics(peers []web.BGPPeer, wanted, imported int, gauge, counter metricFunc) {
	for _, p := range peers {
		of := []string{"peer", p.Peer}
		gauge("bgp_session_up", "1 while the BGP session with the peer is established.", truth(p.State == web.BGPEstablished), of...)
		gauge("bgp_session_received_prefixes", "Prefixes the peer has sent.", float64(p.Received), of...)
		gauge("bgp_session_accepted_prefixes", "Prefixes the peer has sent that an import rule lets in.", float64(p.Accepted), of...)
		gauge("bgp_session_advertised_prefixes", "Prefixes announced to the peer.", float64(p.Advertised), of...)
		counter("bgp_session_flaps_total", "How often the session was lost after it had been established.", float64(p.Flaps), of...)
		for _, d := range []struct {
			direction string
			n         uint64
		}{{"in", p.In}, {"out", p.Out}} {
			gauge("bgp_session_messages", "Messages of the present session, by direction.", float64(d.n), "peer", p.Peer, "direction", d.direction)
		}
		if p.BFD != web.BGPBFDOff {
			gauge("bgp_bfd_up", "1 while the BFD session with the BGP peer is up.", truth(p.BFD == web.BGPBFDUp), of...)
		}
	}
	gauge("bgp_routes_announced", "Routes this node announces by BGP.", float64(wanted))
	gauge("bgp_routes_imported", "Learned routes that are to be in the kernel.", float64(imported))
}

func (r *routing) importedNow() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.imports.routes)
}
