package node

import (
	"net/netip"
	"slices"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
)

// linkAddr is one address of an interface, with its subnet. Nodes tell them in their reports, so
// that the others can watch them.
type linkAddr struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix"`
}

// whereabouts is where a node can be watched: on links its data plane sends echoes back, on
// control only its daemon answers. A witness has no links.
type whereabouts struct {
	witness bool
	links   []linkAddr
	control []linkAddr
}

// probeAddrs picks what is told of links: one address each, by which the
// neighbours on that link reach this node. One family is enough to probe a link.
func probeAddrs(links []host.Link) []linkAddr {
	var out []linkAddr
	for _, l := range links {
		best := slices.IndexFunc(l.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() && p.Bits() < 32 })
		if best < 0 {
			best = slices.IndexFunc(l.Prefixes, func(p netip.Prefix) bool { return !p.IsSingleIP() })
		}
		if best >= 0 {
			out = append(out, linkAddr{l.Name, l.Prefixes[best]})
		}
	}
	return out
}

// mostControl is how many addresses a node tells that only its daemon answers at.
const mostControl = 16

// controlAddrs picks those of all links where only the daemon can be spoken to: on a witness every
// address that has neighbours, elsewhere that of the cluster if it is on none of the data plane's links.
func controlAddrs(all []host.Link, data []string, cluster netip.Addr, witness bool) []linkAddr {
	var out []linkAddr
	for _, l := range all {
		if slices.Contains(data, l.Name) {
			continue
		}
		for _, p := range l.Prefixes {
			if !p.IsSingleIP() && (witness || p.Addr() == cluster) {
				out = append(out, linkAddr{l.Name, p})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b linkAddr) int { // the cluster's address first: it surely is meant for this
		return boolFirst(a.Prefix.Addr() == cluster, b.Prefix.Addr() == cluster)
	})
	return out[:min(len(out), mostControl)]
}

func boolFirst(a, b bool) int {
	switch {
	case a && !b:
		return -1
	case b && !a:
		return 1
	}
	return 0
}

// watch is all ways from one node to its peers that are to be watched.
type watch struct {
	echoes   []detect.Key // the peer's data plane answers
	sessions []detect.Key // the peer's daemon does
	owner    map[detect.Key]fsm.NodeID
	witness  map[fsm.NodeID]bool
}

// waysTo lists the ways from this node to its peers: from each of its addresses to each of theirs
// in the same subnet. Data planes are watched by echoes and their daemons by sessions on the same
// ways; where a witness is one of the two ends, the addresses of the cluster do as well. An
// address that two nodes claim is no way to either.
func waysTo(own whereabouts, peers map[fsm.NodeID]whereabouts) watch {
	w := watch{owner: map[detect.Key]fsm.NodeID{}, witness: map[fsm.NodeID]bool{}}
	clash := map[detect.Key]bool{}
	add := func(to *[]detect.Key, from []linkAddr, name fsm.NodeID, theirs []linkAddr) {
		for _, mine := range from {
			for _, a := range theirs {
				key := detect.Key{Local: mine.Prefix.Addr(), Remote: a.Prefix.Addr(), Interface: mine.Interface}
				if !mine.Prefix.Contains(key.Remote) || key.Local == key.Remote {
					continue
				}
				if other, taken := w.owner[key]; taken && other != name {
					clash[key] = true
				}
				w.owner[key] = name
				if !slices.Contains(*to, key) {
					*to = append(*to, key)
				}
			}
		}
	}
	for name, peer := range peers {
		if peer.witness {
			w.witness[name] = true
		}
		from := own.links
		if own.witness {
			from = own.control
		}
		add(&w.echoes, from, name, peer.links)
		add(&w.sessions, from, name, peer.links)
		if own.witness || peer.witness {
			add(&w.sessions, slices.Concat(own.links, own.control), name, peer.control)
			add(&w.sessions, own.control, name, peer.links)
		}
	}
	for key := range clash {
		delete(w.owner, key)
	}
	w.echoes, w.sessions = w.sorted(w.echoes), w.sorted(w.sessions)
	return w
}

// sorted drops the ways that have no owner and puts the others in order.
func (w watch) sorted(keys []detect.Key) []detect.Key {
	keys = slices.DeleteFunc(keys, func(k detect.Key) bool { _, ok := w.owner[k]; return !ok })
	slices.SortFunc(keys, compareKeys)
	return keys
}

func compareKeys(a, b detect.Key) int {
	if c := a.Remote.Compare(b.Remote); c != 0 {
		return c
	}
	if c := a.Local.Compare(b.Local); c != 0 {
		return c
	}
	return slices.Compare([]byte(a.Interface), []byte(b.Interface))
}
