package node

import (
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/plan"
)

// speaking is everything this node is to be towards its BGP neighbours.
type speaking struct {
	config   announce.BGPConfig
	known    bool         // routes is what the cluster has decided; until then none is taken back
	routes   []plan.Route // by prefix
	withheld []netip.Addr // VIPs without a route for want of endpoints
	graceful bool         // neighbours are to keep the routes when the daemon stops
}

func (w speaking) equal(o speaking) bool {
	return w.known == o.known && w.graceful == o.graceful && slices.Equal(w.withheld, o.withheld) && sayTheSame(w.routes, o.routes) &&
		maps.Equal(epochsOfRoutes(w.routes), epochsOfRoutes(o.routes)) && reflect.DeepEqual(w.config, o.config)
}

// bgpConfig is the sessions of a node at s. A node that is no member has none.
func bgpConfig(s *fsm.State, self fsm.NodeID) announce.BGPConfig {
	peers := s.BGPPeersOf(self)
	if len(peers) == 0 {
		return announce.BGPConfig{}
	}
	b := s.BGP()
	out := announce.BGPConfig{Port: b.Port, RestartTime: time.Duration(b.RestartTime), MaxImport: b.MaxImport, Multipath: true}
	out.AS, out.RouterID = s.BGPOf(self)
	for _, p := range peers {
		out.Peers = append(out.Peers, announce.BGPPeer{
			Address: p.Address, AS: p.AS, LocalAS: p.LocalAS, Port: p.Port, Password: p.Password,
			Multihop: p.Multihop, TTLSecurity: p.TTLSecurity, Passive: p.Passive,
			Hold: time.Duration(p.Hold), Keepalive: time.Duration(p.Keepalive), Source: p.Source,
			IPv4: p.Family != fsm.FamilyIPv6, IPv6: p.Family != fsm.FamilyIPv4,
			GracefulRestart: !p.NoGracefulRestart, MaxPrefixes: p.MaxPrefixes,
		})
	}
	for _, r := range b.Import {
		out.Import = append(out.Import, announce.ImportRule{Prefix: r.Prefix, MinLen: r.MinLen, MaxLen: r.MaxLen})
	}
	return out
}

// announcedRoutes are routes as the speaker takes them.
func announcedRoutes(routes []plan.Route) []announce.Route {
	out := make([]announce.Route, len(routes))
	for i, r := range routes {
		out[i] = announce.Route{
			Prefix: r.Prefix, NextHop: r.NextHop, MED: r.MED, LocalPref: r.LocalPref, Prepend: r.Prepend,
			Communities: r.Communities, LargeCommunities: r.LargeCommunities,
		}
	}
	return out
}

// sayTheSame says whether neighbours would see no difference.
func sayTheSame(a, b []plan.Route) bool {
	return slices.EqualFunc(a, b, func(a, b plan.Route) bool {
		return a.Prefix == b.Prefix && a.NextHop == b.NextHop && a.MED == b.MED && a.LocalPref == b.LocalPref && a.Prepend == b.Prepend &&
			slices.Equal(a.Communities, b.Communities) && slices.Equal(a.LargeCommunities, b.LargeCommunities)
	})
}

// epochsOfRoutes are those of the masterships that this node makes known by routes.
func epochsOfRoutes(routes []plan.Route) map[uint64]bool {
	out := map[uint64]bool{}
	for _, r := range routes {
		if r.Epoch != 0 {
			out[r.Epoch] = true
		}
	}
	return out
}
