package node

import (
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/host"
)

// Where an instance has no master, routers bring its packets to any node; and where it has one, they may turn to
// the next node before the cluster does. What belongs to a connection that another node has begun, and of which there is no copy
// yet, is brought there by the data plane (bpf.SetPeers); it must know where the others are on each link.

// mayStray says whether packets of some VIP may come to a node that does not know their connection: those of an
// instance without a master, and those that go by what routers are told.
func mayStray(s *fsm.State) bool {
	for _, v := range s.VIPs() {
		if in, ok := s.Instance(v.Instance); ok && (in.Kind == fsm.InstanceECMP || v.Announce == fsm.AnnounceBGP) {
			return true
		}
	}
	return false
}

// forwarders are the other nodes whose data plane may know connections: a node that is drained, or not in
// sync, still has its own.
func forwarders(s *fsm.State, self fsm.NodeID) []fsm.Node {
	var out []fsm.Node
	for _, n := range s.Nodes() {
		if n.Name != self && n.Role == fsm.RoleLB && n.Alive && n.Ready {
			out = append(out, n)
		}
	}
	return out
}

// shareConnections tells the data plane where the other nodes are, on each link, while packets may stray.
func (d *driver) shareConnections(s *fsm.State, links []host.Link) error {
	var others []fsm.Node
	if mayStray(s) {
		others = forwarders(s, fsm.NodeID(d.m.cfg.Name))
	}
	var errs []error
	now := make(map[int]peersOn, len(links))
	for _, l := range links {
		p, err := d.peersOn(l, others)
		errs = append(errs, err)
		now[l.Index] = p
	}
	told, err := tellPeers(d.sharing, now, d.m.dp.SetPeers)
	d.sharing = told
	return errors.Join(append(errs, err)...)
}

// tellPeers has set told what is so on each link now where that differs from what was told, and returns what has been
// told. Where that failed it is due again.
func tellPeers(was, now map[int]peersOn, set func(int, bpf.Peers) error) (map[int]peersOn, error) {
	var errs []error
	told := make(map[int]peersOn, len(now))
	for _, index := range slices.Sorted(maps.Keys(now)) {
		p := now[index]
		if old, known := was[index]; !known || old != p {
			if err := set(index, p.peers()); err != nil {
				errs = append(errs, err)
				continue
			}
		}
		told[index] = p
	}
	for _, index := range slices.Sorted(maps.Keys(was)) { // an interface that is gone leaves its place to the next
		if _, there := now[index]; there {
			continue
		}
		if err := set(index, bpf.Peers{}); err != nil {
			errs, told[index] = append(errs, err), was[index]
		}
	}
	return told, errors.Join(errs...)
}

// peersOn are the hardware addresses of nodes on one link, by slot, and this node's own. It can be compared.
type peersOn struct {
	own   [6]byte
	there [fsm.MaxSlots]bool
	macs  [fsm.MaxSlots][6]byte
}

func (p peersOn) peers() bpf.Peers {
	out := bpf.Peers{Own: p.own[:], MACs: map[uint8]net.HardwareAddr{}}
	for slot, there := range p.there {
		if there {
			out.MACs[uint8(slot)] = p.macs[slot][:]
		}
	}
	return out
}

// peersOn finds the nodes that are neighbours on a link. Nobody there is no error.
func (d *driver) peersOn(l host.Link, nodes []fsm.Node) (peersOn, error) {
	var p peersOn
	if len(l.HardwareAddr) != len(p.own) {
		return p, nil
	}
	at := make(map[fsm.NodeID]netip.Addr, len(nodes))
	for _, n := range nodes {
		if a, ok := addressOn(l, d.m.reports.linksOf(n.Name)); ok && n.Slot < fsm.MaxSlots {
			at[n.Name] = a
		}
	}
	macs, err := d.m.host.Neighbours(l.Index, slices.Collect(maps.Values(at)))
	if err != nil {
		return p, err
	}
	for _, n := range nodes {
		if mac := macs[at[n.Name]]; len(mac) == len(p.own) {
			p.there[n.Slot] = true
			copy(p.macs[n.Slot][:], mac)
			copy(p.own[:], l.HardwareAddr)
		}
	}
	return p, nil
}
