package node

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/host"
)

// A planned move leaves the old master alive and forwarding. What it is about to
// open, and what it has opened so lately that the copy is still under way, is not
// known to the new one; so for a moment the new master's data plane brings packets
// of connections it does not know to the old one (bpf.Predecessor).

// predecessorAsked is for how long: a handshake's round trip, and a copy's way, at
// their longest.
const predecessorAsked = time.Second

// mastersOf is who is master of each instance.
func mastersOf(s *fsm.State) map[string]fsm.NodeID {
	out := map[string]fsm.NodeID{}
	for _, in := range s.Instances() {
		out[in.Name] = in.Master
	}
	return out
}

// predecessors lists the nodes that were master before of what self has become
// master of, and can still forward. One that is gone, or cannot, is not asked.
func predecessors(before, now map[string]fsm.NodeID, nodes []fsm.Node, self fsm.NodeID) []fsm.NodeID {
	var out []fsm.NodeID
	for _, n := range nodes {
		if n.Name == self || !n.Alive || !n.Ready || !n.LinksUp {
			continue
		}
		for instance, master := range now {
			if master == self && before[instance] == n.Name {
				out = append(out, n.Name)
				break
			}
		}
	}
	return out
}

// addressOn is an address of a peer in a subnet of the link.
func addressOn(link host.Link, peer []linkAddr) (netip.Addr, bool) {
	for _, a := range peer {
		for _, p := range link.Prefixes {
			if p.Contains(a.Prefix.Addr()) && p.Addr() != a.Prefix.Addr() {
				return a.Prefix.Addr(), true
			}
		}
	}
	return netip.Addr{}, false
}

// askPredecessors has the data plane bring back what it does not know, after a
// planned move, and has it cease when this node is master of nothing any more.
// It comes before the addresses, which bring the packets.
func (d *driver) askPredecessors(s *fsm.State, links []host.Link) error {
	self := fsm.NodeID(d.m.cfg.Name)
	before, now := d.masters, mastersOf(s)
	if maps.Equal(before, now) {
		return nil
	}
	d.masters = now
	owner := slices.Contains(slices.Collect(maps.Values(now)), self)
	from := predecessors(before, now, s.Nodes(), self)
	var errs []error
	for _, l := range links {
		switch {
		case len(from) > 0:
			errs = append(errs, d.askOn(l, from))
		case !owner && slices.Contains(slices.Collect(maps.Values(before)), self):
			errs = append(errs, d.m.dp.SetPredecessor(l.Index, bpf.Predecessor{}))
		}
	}
	return errors.Join(errs...)
}

// askOn sets the first of the nodes that is a neighbour on the link.
func (d *driver) askOn(l host.Link, from []fsm.NodeID) error {
	for _, n := range from {
		at, ok := addressOn(l, d.m.reports.linksOf(n))
		if !ok {
			continue
		}
		mac, err := d.m.host.Neighbour(l.Index, at)
		if errors.Is(err, host.ErrNoNeighbour) {
			continue
		} else if err != nil {
			return err
		}
		boot, err := bpf.Boottime()
		if err != nil {
			return err
		}
		return d.m.dp.SetPredecessor(l.Index, bpf.Predecessor{MAC: mac, Own: l.HardwareAddr, Until: boot + predecessorAsked})
	}
	return nil
}

// linksOf is where a node's data plane is, by its last report.
func (t *reportTable) linksOf(n fsm.NodeID) []linkAddr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rows[string(n)].Links
}
