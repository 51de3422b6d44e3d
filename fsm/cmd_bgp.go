package fsm

import (
	"cmp"
	"reflect"
	"slices"
)

// normalBGP fills in the defaults and sorts, in a copy.
func normalBGP(b BGP) BGP {
	b.AS = cmp.Or(b.AS, DefaultAS)
	b.RestartTime = cmp.Or(b.RestartTime, DefaultRestartTime)
	b.MaxImport = cmp.Or(b.MaxImport, DefaultMaxImport)
	nodes := make([]BGPNode, 0, len(b.Nodes))
	for _, n := range b.Nodes {
		n.RouterID = n.RouterID.Unmap()
		if n.AS != 0 || n.RouterID.IsValid() {
			nodes = append(nodes, n)
		}
	}
	slices.SortStableFunc(nodes, func(a, b BGPNode) int { return cmp.Compare(a.Node, b.Node) })
	b.Nodes = nodes
	rules := make([]ImportRule, len(b.Import))
	for i, r := range b.Import {
		rules[i] = r.normal()
	}
	slices.SortStableFunc(rules, compareImportRules)
	b.Import = rules
	return b
}

func compareImportRules(a, b ImportRule) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
		cmp.Compare(a.MinLen, b.MinLen), cmp.Compare(a.MaxLen, b.MaxLen))
}

// normal gives a rule two explicit lengths. One that is no prefix stays as it is.
func (r ImportRule) normal() ImportRule {
	if !r.Prefix.IsValid() {
		return r
	}
	bits, most := uint8(r.Prefix.Bits()), uint8(r.Prefix.Addr().BitLen())
	switch {
	case r.MinLen == 0 && r.MaxLen == 0:
		r.MinLen, r.MaxLen = bits, bits
	case r.MaxLen == 0:
		r.MaxLen = most
	case r.MinLen == 0:
		r.MinLen = bits
	}
	return r
}

func (c PutBGP) apply(d *draft) error {
	b := normalBGP(c.BGP)
	chk := &checker{object: "bgp"}
	d.checkBGP(chk, b)
	if err := chk.err(); err != nil {
		return err
	}
	d.setBGP(b)
	return nil
}

// setBGP keeps nothing of settings that are the defaults: such a state can be read
// by programs that know nothing of BGP.
func (d *draft) setBGP(b BGP) {
	if reflect.DeepEqual(b, defaultBGP()) {
		d.bgp = nil
		return
	}
	d.bgp = &b
}

// dropNodeOfBGP forgets what was configured for a node that is gone.
func (d *draft) dropNodeOfBGP(name NodeID) {
	b := d.BGP()
	if slices.ContainsFunc(b.Nodes, func(n BGPNode) bool { return n.Node == name }) {
		b.Nodes = slices.DeleteFunc(slices.Clone(b.Nodes), func(n BGPNode) bool { return n.Node == name })
		d.setBGP(b)
	}
	for _, p := range d.bgpPeers.values() {
		if p.Node == name {
			d.bgpPeers.drop(p.key())
		}
	}
}

// normalPeer fills in the defaults.
func normalPeer(p BGPPeer) BGPPeer {
	p.Address, p.Source = p.Address.Unmap(), p.Source.Unmap()
	p.Port = cmp.Or(p.Port, DefaultBGPPort)
	p.Hold = cmp.Or(p.Hold, DefaultHold)
	if p.Keepalive == 0 {
		p.Keepalive = p.Hold / 3 / MinKeepalive * MinKeepalive
	}
	p.Family = cmp.Or(p.Family, FamilyBoth)
	p.MaxPrefixes = cmp.Or(p.MaxPrefixes, DefaultMaxPrefixes)
	if p.Multihop == 1 {
		p.Multihop = 0
	}
	if p.BFD {
		p.BFDInterval = cmp.Or(p.BFDInterval, DefaultBFDInterval)
		p.BFDMultiplier = cmp.Or(p.BFDMultiplier, DefaultBFDMultiplier)
	}
	return p
}

func (c PutBGPPeer) apply(d *draft) error {
	p := normalPeer(c.Peer)
	chk := &checker{object: "bgp peer " + shown(p.Address)}
	old := d.bgpPeers.get(p.key())
	if p.Password == KeepPassword {
		p.Password = ""
		if old != nil {
			p.Password = old.Password
		}
		if p.Password == "" {
			chk.bad("password", nil, "stands for the one that is there, and there is none: give the password itself")
		}
	}
	d.checkPeer(chk, p)
	if old == nil && d.bgpPeers.len() >= MaxBGPPeers {
		chk.clash(ErrInUse, "address", p.Address, "would be peer %d: there may be %d", d.bgpPeers.len()+1, MaxBGPPeers)
	}
	if err := chk.err(); err != nil {
		return err
	}
	d.bgpPeers.put(p.key(), p)
	return nil
}

func (c DeleteBGPPeer) apply(d *draft) error {
	key := peerKey{c.Address.Unmap(), c.Node}
	if !d.bgpPeers.has(key) {
		p := BGPPeer{Address: key.addr, Node: key.node}
		return refuse(ErrNotFound, "bgp peer %s does not exist: see \"pontoon bgp peer list\"", shown(p.name()))
	}
	d.bgpPeers.drop(key)
	return nil
}
