package announce

import (
	"context"
	"net/netip"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
)

// seen is what GoBGP knows of a neighbour.
type seen struct {
	state    PeerState
	routerID netip.Addr
	hold     time.Duration
	in, out  uint64 // messages
}

func newStateEvent(s apiutil.PeerState) stateEvent {
	return stateEvent{
		peer: s.NeighborAddress.Unmap(), state: stateOf(s.SessionState), routerID: s.RouterID, reason: s.DisconnectMessage,
		graceful: s.DisconnectReason == api.PeerState_DISCONNECT_REASON_GRACEFUL_RESTART,
		limit:    s.AdminState == api.PeerState_ADMIN_STATE_PFX_CT,
	}
}

func stateOf(s bgp.FSMState) PeerState {
	switch s {
	case bgp.BGP_FSM_CONNECT:
		return StateConnect
	case bgp.BGP_FSM_ACTIVE:
		return StateActive
	case bgp.BGP_FSM_OPENSENT:
		return StateOpenSent
	case bgp.BGP_FSM_OPENCONFIRM:
		return StateOpenConfirm
	case bgp.BGP_FSM_ESTABLISHED:
		return StateEstablished
	}
	return StateIdle
}

// peers asks for all neighbours.
func (e *engine) peers(ctx context.Context) map[netip.Addr]seen {
	out := map[netip.Addr]seen{}
	_ = e.srv.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) { // fails only when it is stopped
		addr, err := netip.ParseAddr(p.GetConf().GetNeighborAddress())
		if err != nil {
			return
		}
		s := p.GetState()
		id, _ := netip.ParseAddr(s.GetRouterId())
		if id.IsUnspecified() {
			id = netip.Addr{}
		}
		out[addr] = seen{
			state:    stateOf(bgp.FSMState(s.GetSessionState()) - 1),
			routerID: id,
			hold:     time.Duration(p.GetTimers().GetState().GetNegotiatedHoldTime()) * time.Second,
			in:       s.GetMessages().GetReceived().GetTotal(),
			out:      s.GetMessages().GetSent().GetTotal(),
		}
	})
	return out
}

// announce hands routes to the sessions: first what is new or different, which
// replaces what was there without a withdrawal, then what is to go.
func (e *engine) announce(routes []Route, hops nextHops, withdraw []netip.Prefix) error {
	add := make([]*apiutil.Path, 0, len(routes))
	for _, r := range routes {
		p, err := newPath(r, hops)
		if err != nil {
			return err
		}
		add = append(add, p)
	}
	if len(add) > 0 {
		if _, err := e.srv.AddPath(apiutil.AddPathRequest{Paths: add}); err != nil {
			return err
		}
	}
	gone := make([]*apiutil.Path, 0, len(withdraw))
	for _, p := range withdraw {
		nlri, err := bgp.NewIPAddrPrefix(p)
		if err != nil {
			return err
		}
		gone = append(gone, &apiutil.Path{Family: familyOf(p), Nlri: nlri, Withdrawal: true})
	}
	if len(gone) == 0 {
		return nil
	}
	return e.srv.DeletePath(apiutil.DeletePathRequest{Paths: gone})
}

// nextHops is what stands for a next hop that a route does not name; zero is this
// end of each session.
type nextHops struct{ v4, v6 netip.Addr }

func (h nextHops) of(r Route) netip.Addr {
	own, any := h.v6, netip.IPv6Unspecified()
	if r.Prefix.Addr().Is4() {
		own, any = h.v4, netip.IPv4Unspecified()
	}
	switch {
	case r.NextHop.IsValid():
		return r.NextHop
	case own.IsValid():
		return own
	}
	return any
}

func newPath(r Route, hops nextHops) (*apiutil.Path, error) {
	nlri, err := bgp.NewIPAddrPrefix(r.Prefix)
	if err != nil {
		return nil, err
	}
	attrs := []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0)}
	family, hop := familyOf(r.Prefix), hops.of(r)
	if hop.Is4() {
		a, err := bgp.NewPathAttributeNextHop(hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	} else {
		a, err := bgp.NewPathAttributeMpReachNLRI(family, []bgp.PathNLRI{{NLRI: nlri}}, hop)
		if err != nil {
			return nil, err
		}
		attrs = append(attrs, a)
	}
	attrs = append(attrs, bgp.NewPathAttributeMultiExitDisc(r.MED), bgp.NewPathAttributeLocalPref(r.LocalPref))
	if len(r.Communities) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeCommunities(r.Communities))
	}
	var large []*bgp.LargeCommunity
	for _, c := range r.LargeCommunities {
		large = append(large, bgp.NewLargeCommunity(c[0], c[1], c[2]))
	}
	for bit := uint32(1); bit <= maxPrepend; bit *= 2 {
		if uint32(r.Prepend)&bit != 0 {
			large = append(large, bgp.NewLargeCommunity(markAS, 0, bit))
		}
	}
	if len(large) > 0 {
		attrs = append(attrs, bgp.NewPathAttributeLargeCommunities(large))
	}
	return &apiutil.Path{Family: family, Nlri: nlri, Attrs: attrs, Age: time.Now().Unix()}, nil
}

func familyOf(p netip.Prefix) bgp.Family {
	if p.Addr().Is4() {
		return bgp.RF_IPv4_UC
	}
	return bgp.RF_IPv6_UC
}

// received is all paths a neighbour told of.
func (e *engine) received(p BGPPeer, id netip.Addr) []received {
	return e.paths(api.TableType_TABLE_TYPE_ADJ_IN, p, id)
}

// advertised is all paths a neighbour was told of.
func (e *engine) advertised(p BGPPeer) []RouteView {
	var out []RouteView
	for _, r := range e.paths(api.TableType_TABLE_TYPE_ADJ_OUT, p, netip.Addr{}) {
		out = append(out, r.RouteView)
	}
	return out
}

func (e *engine) paths(table api.TableType, p BGPPeer, id netip.Addr) []received {
	var out []received
	for _, f := range p.families() {
		req := apiutil.ListPathRequest{TableType: table, Name: p.Address.String(), Family: f}
		_ = e.srv.ListPath(req, func(nlri bgp.NLRI, paths []*apiutil.Path) { // fails only when the peer is gone
			prefix, ok := nlri.(*bgp.IPAddrPrefix)
			if !ok {
				return
			}
			for _, path := range paths {
				r := received{
					RouteView: RouteView{Peer: p.Address, Prefix: prefix.Prefix, LocalPref: defaultLocalPref},
					origin:    originIncomplete, external: p.external(), id: id,
				}
				for _, a := range path.Attrs {
					r.read(a)
				}
				out = append(out, r)
			}
		})
	}
	return out
}

// defaultLocalPref is that of a path whose sender gave none.
const defaultLocalPref = 100

// read takes in one attribute of a path.
func (r *received) read(attr bgp.PathAttributeInterface) {
	switch a := attr.(type) {
	case *bgp.PathAttributeOrigin:
		r.origin = a.Value
	case *bgp.PathAttributeNextHop:
		r.NextHop = a.Value.Unmap()
	case *bgp.PathAttributeMpReachNLRI:
		r.NextHop = a.Nexthop.Unmap()
	case *bgp.PathAttributeMultiExitDisc:
		r.MED = a.Value
	case *bgp.PathAttributeLocalPref:
		r.LocalPref = a.Value
	case *bgp.PathAttributeCommunities:
		r.Communities = a.Value
	case *bgp.PathAttributeLargeCommunities:
		for _, c := range a.Values {
			r.LargeCommunities = append(r.LargeCommunities, [3]uint32{c.ASN, c.LocalData1, c.LocalData2})
		}
	case *bgp.PathAttributeAsPath:
		for _, segment := range a.Value {
			r.ASPath = append(r.ASPath, segment.GetAS()...)
			r.pathLen += segment.ASLen()
		}
	}
}
