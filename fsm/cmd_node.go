package fsm

import (
	"bytes"
	"net/netip"
)

// newNode validates a node to be and returns it with what the cluster gives
// it: slot, index of its join, and no merits yet.
func (d *draft) newNode(chk *checker, want Node) Node {
	n := Node{
		Name: want.Name, Role: want.Role, Address: want.Address, GossipPort: want.GossipPort,
		Slot: NoSlot, Joined: d.index, Key: bytes.Clone(want.Key),
	}
	chk.nodeName("name", n.Name)
	if len(n.Key) != KeySize {
		chk.bad("key", nil, "has %d bytes: it must be the SHA-256 of the public key in the node's certificate, %d bytes", len(n.Key), KeySize)
	}
	if d.nodes.has(n.Name) {
		chk.clash(ErrExists, "name", n.Name,
			"is taken: give this node another --name, or remove the old one with \"pontoon node remove %s\"", n.Name)
	}
	oneOf(chk, "role", n.Role, RoleLB, RoleWitness)
	if n.Role == RoleLB {
		slot, ok := d.freeSlot()
		if !ok {
			chk.clash(ErrInUse, "slot", nil,
				"is not free, all %d are taken: remove a node of role lb first, or join as witness", MaxSlots)
		}
		n.Slot = slot
	}
	n.Address = d.checkSockets(chk, n)
	return n
}

func (d *draft) freeSlot() (uint8, bool) {
	var used [MaxSlots]bool
	for _, n := range d.nodes.values() {
		if n.Slot < MaxSlots {
			used[n.Slot] = true
		}
	}
	for slot, taken := range used {
		if !taken {
			return uint8(slot), true
		}
	}
	return NoSlot, false
}

// checkSockets validates where the node listens and returns its address in
// canonical form.
func (d *draft) checkSockets(chk *checker, n Node) string {
	chk.port("gossip_port", n.GossipPort)
	ap, err := netip.ParseAddrPort(n.Address)
	if err != nil {
		chk.bad("address", n.Address, "must be an IP address and a port, like 192.0.2.11:7400")
		return n.Address
	}
	ap = netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	ip := ap.Addr()
	if ip.IsUnspecified() || ip.IsMulticast() || ip.Zone() != "" {
		chk.bad("address", n.Address, "must be one the other nodes can connect to")
	}
	if ap.Port() == 0 || ap.Port() == n.GossipPort {
		chk.bad("address", n.Address, "must have a port of its own, from 1 to 65535 and not the gossip port")
	}
	if d.vips.has(ip) {
		chk.clash(ErrInUse, "address", n.Address, "is a VIP of this cluster: use the node's own address")
	}
	gossip := netip.AddrPortFrom(ip, n.GossipPort)
	for _, o := range d.nodes.values() {
		taken, ok := sockets(o)
		if !ok {
			continue
		}
		if ap == taken[0] || ap == taken[1] {
			chk.clash(ErrInUse, "address", ap, "is in use by node %s: give another --address", o.Name)
		}
		if gossip == taken[0] || gossip == taken[1] {
			chk.clash(ErrInUse, "gossip_port", gossip, "is in use by node %s: give another --gossip-port", o.Name)
		}
	}
	return ap.String()
}

// sockets returns the cluster and the gossip socket of a member.
func sockets(n Node) ([2]netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(n.Address)
	return [2]netip.AddrPort{ap, netip.AddrPortFrom(ap.Addr(), n.GossipPort)}, err == nil
}

func (d *draft) member(name NodeID) (Node, error) {
	n, ok := d.Node(name)
	if !ok {
		return n, refuse(ErrNotFound, "node %s is not a member: see \"pontoon node list\"", shown(name))
	}
	return n, nil
}

func (c NodeVerdict) apply(d *draft) error {
	n, err := d.member(c.Node)
	if err != nil {
		return err
	}
	if n.Alive && !c.Alive {
		n.Died = d.index
	}
	n.Alive = c.Alive
	if !c.Alive {
		n.Ready, n.LinksUp, n.InSync = false, false, false
	}
	d.putNode(n)
	return nil
}

func (c NodeReport) apply(d *draft) error {
	n, err := d.member(c.Node)
	if err != nil {
		return err
	}
	if !n.Alive {
		return refuse(ErrNodeDown, "node %s is down by the leader's verdict: report again once it is alive", n.Name)
	}
	n.Ready, n.LinksUp, n.InSync = c.Ready, c.LinksUp, c.InSync
	d.putNode(n)
	return nil
}

func (c DrainNode) apply(d *draft) error {
	n, err := d.member(c.Node)
	if err != nil {
		return err
	}
	n.Draining = c.Draining
	d.putNode(n)
	return nil
}
