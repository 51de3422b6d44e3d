package node

import (
	"net/netip"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
)

// linkAddr is one address of a node's data plane interface, with its subnet. Nodes
// tell them in their reports, so that the others can probe them.
type linkAddr struct {
	Interface string       `json:"interface"`
	Prefix    netip.Prefix `json:"prefix"`
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

// pathsTo lists the ways from this node's links to those of its peers: each peer
// address on each subnet this node is on, too. owner says whose path each is.
func pathsTo(own []linkAddr, peers map[fsm.NodeID][]linkAddr, cfg detect.EchoConfig) (paths []detect.Path, owner map[detect.Key]fsm.NodeID) {
	owner = map[detect.Key]fsm.NodeID{}
	for _, mine := range own {
		for name, theirs := range peers {
			for _, a := range theirs {
				if !mine.Prefix.Contains(a.Prefix.Addr()) || mine.Prefix.Addr() == a.Prefix.Addr() {
					continue
				}
				key := detect.Key{Local: mine.Prefix.Addr(), Remote: a.Prefix.Addr(), Interface: mine.Interface}
				if _, ok := owner[key]; ok {
					continue // two nodes claim one address: no path of either
				}
				owner[key] = name
				paths = append(paths, detect.Path{Key: key, Config: cfg})
			}
		}
	}
	return paths, owner
}

// lostNodes lists the nodes this one does not reach by any path any more: probes
// went out on all of them, on at least one there were answers before, and none
// comes back now. A refusal is an answer in this sense: the machine lives. What
// could not be sent says nothing.
func lostNodes(paths []detect.EchoStatus, owner map[detect.Key]fsm.NodeID) []fsm.NodeID {
	type view struct{ known, reached bool }
	views := map[fsm.NodeID]view{}
	for _, p := range paths {
		name, ok := owner[p.Key]
		if !ok {
			continue
		}
		v := views[name]
		v.known = v.known || !p.LastGood.IsZero()
		v.reached = v.reached || p.State == detect.Up || p.Why != detect.Unanswered
		views[name] = v
	}
	var lost []fsm.NodeID
	for name, v := range views {
		if v.known && !v.reached {
			lost = append(lost, name)
		}
	}
	slices.Sort(lost)
	return lost
}

// lossAge is how old a report may be whose word about lost nodes counts. Reports
// come three times a second.
const lossAge = time.Second

// losses counts for each node how many others have lost it, by their last reports.
func losses(reports []agedReport) map[fsm.NodeID]int {
	out := map[fsm.NodeID]int{}
	for _, r := range reports {
		if r.AgeMS > lossAge.Milliseconds() {
			continue
		}
		for _, n := range r.Lost {
			if string(n) != r.Node {
				out[n]++
			}
		}
	}
	return out
}
