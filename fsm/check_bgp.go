package fsm

import (
	"net/netip"
	"time"
)

// checkBGP validates settings in their normal form, by themselves and against the
// nodes and peers.
func (d *draft) checkBGP(chk *checker, b BGP) {
	chk.as("as", b.AS)
	chk.seconds("restart_time", b.RestartTime, MinRestartTime, MaxRestartTime)
	if b.MaxImport > MaxImportBound {
		chk.bad("max_import", b.MaxImport, "must be 1 to %d", MaxImportBound)
	}
	d.checkBGPNodes(chk, b)
	checkImport(chk, b.Import)
	for _, p := range d.bgpPeers.values() {
		if p.Passive && b.Port == 0 {
			chk.clash(ErrInUse, "port", b.Port, "means that nobody can connect, and peer %s is passive: let it connect first", p.name())
		}
		if node, same := d.internalOn(b, p); same && p.Multihop != 0 {
			chk.clash(ErrInUse, "as", nil, "of node %s would be that of peer %s, which has multihop: that goes with other AS only, take it off first", node, p.name())
		}
	}
}

func (d *draft) checkBGPNodes(chk *checker, b BGP) {
	for i, n := range b.Nodes {
		field := "nodes." + shown(n.Node)
		member := d.nodes.get(n.Node)
		switch {
		case member == nil:
			chk.bad(field, nil, "names no member: see \"pontoon node list\"")
		case member.Role != RoleLB:
			chk.bad(field, nil, "names a witness, which speaks no BGP: leave it out")
		}
		if i > 0 && b.Nodes[i-1].Node == n.Node {
			chk.bad(field, nil, "is there twice: leave one out")
		}
		if n.AS != 0 {
			chk.as(field+".as", n.AS)
		}
		if n.RouterID.IsValid() {
			d.checkRouterID(chk, b, n, field+".router_id")
		}
	}
}

func (d *draft) checkRouterID(chk *checker, b BGP, n BGPNode, field string) {
	id := n.RouterID
	if !id.Is4() || id.IsUnspecified() || id.IsMulticast() || id.As4()[0] >= 240 {
		chk.bad(field, id, "must be an IPv4 address of one host; it is a number only, and need not be in use")
		return
	}
	for _, o := range d.nodes.values() {
		if o.Name == n.Node || o.Role != RoleLB {
			continue
		}
		if _, other := b.of(o.Name, &o); other == id {
			chk.bad(field, id, "is the router id of node %s, too: give one nobody has", o.Name)
		}
	}
}

func checkImport(chk *checker, rules []ImportRule) {
	if len(rules) > MaxImportRules {
		chk.bad("import", len(rules), "are too many rules: at most %d", MaxImportRules)
		return
	}
	for i, r := range rules {
		field := "import." + shown(r.Prefix)
		if !r.Prefix.IsValid() {
			chk.bad("import", nil, "has a rule without a prefix: give one like 10.0.0.0/8 or 2001:db8::/32")
			continue
		}
		bits, most := r.Prefix.Bits(), r.Prefix.Addr().BitLen()
		switch {
		case r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6():
			chk.bad(field, nil, "has bits beyond its length: %s is meant", netip.PrefixFrom(r.Prefix.Addr().Unmap(), min(bits, r.Prefix.Addr().Unmap().BitLen())).Masked())
		case int(r.MinLen) < bits || int(r.MaxLen) > most || r.MinLen > r.MaxLen:
			chk.bad(field, nil, "lets lengths %d to %d in: they must be between %d and %d, the shorter one first", r.MinLen, r.MaxLen, bits, most)
		case i > 0 && rules[i-1] == r:
			chk.bad(field, nil, "is there twice: leave one out")
		}
	}
}

// internalOn returns the first node whose session with the peer would be within
// one AS (iBGP).
func (d *draft) internalOn(b BGP, p BGPPeer) (NodeID, bool) {
	for _, n := range d.nodes.values() {
		if n.Role != RoleLB || p.Node != "" && p.Node != n.Name || p.Node == "" && d.bgpPeers.has(peerKey{p.Address, n.Name}) {
			continue
		}
		as, _ := b.of(n.Name, &n)
		if p.LocalAS != 0 {
			as = p.LocalAS
		}
		if as == p.AS {
			return n.Name, true
		}
	}
	return "", false
}

// checkPeer validates a peer in its normal form, by itself and against what else
// there is.
func (d *draft) checkPeer(chk *checker, p BGPPeer) {
	d.checkPeerAddress(chk, p)
	if p.Node != "" {
		switch n := d.nodes.get(p.Node); {
		case n == nil:
			chk.bad("node", p.Node, "is not a member: see \"pontoon node list\"")
		case n.Role != RoleLB:
			chk.bad("node", p.Node, "is a witness, which speaks no BGP: name a node of role %s", RoleLB)
		}
	}
	chk.as("as", p.AS)
	if p.LocalAS != 0 {
		chk.as("local_as", p.LocalAS)
	}
	checkPassword(chk, p.Password)
	if p.Passive && d.BGP().Port == 0 {
		chk.bad("passive", nil, "waits for the peer to connect, and the nodes listen nowhere: set a port with \"pontoon bgp set --listen-port\"")
	}
	d.checkHops(chk, p)
	d.checkSource(chk, p)
	checkTimers(chk, p)
	oneOf(chk, "family", p.Family, FamilyIPv4, FamilyIPv6, FamilyBoth)
	if p.MaxPrefixes > maxPrefixesBound {
		chk.bad("max_prefixes", p.MaxPrefixes, "must be 1 to %d", maxPrefixesBound)
	}
	checkBFD(chk, p)
}

// checkPeerAddress takes loopback addresses: a routing daemon may run on the node
// itself.
func (d *draft) checkPeerAddress(chk *checker, p BGPPeer) {
	if !p.Address.IsLoopback() && !chk.address("address", p.Address) {
		return
	}
	if d.vips.has(p.Address) {
		chk.clash(ErrInUse, "address", p.Address, "is a VIP of this cluster: give the address of the router")
	}
	for _, n := range d.nodes.values() {
		if own, ok := sockets(n); ok && own[0].Addr() == p.Address && !p.Address.IsLoopback() {
			chk.clash(ErrInUse, "address", p.Address, "is the address of node %s, and nodes need no BGP among themselves: give the address of the router", n.Name)
		}
	}
}

func (d *draft) checkHops(chk *checker, p BGPPeer) {
	if p.Multihop == 0 {
		return
	}
	if p.TTLSecurity {
		chk.bad("ttl_security", nil, "is for peers on a link of the node, and multihop for those behind routers: leave one out")
	}
	if node, same := d.internalOn(d.BGP(), p); same {
		chk.bad("multihop", p.Multihop, "is for peers of another AS, and %d is that of node %s: leave it out, sessions within an AS may cross routers", p.AS, node)
	}
}

func (d *draft) checkSource(chk *checker, p BGPPeer) {
	if !p.Source.IsValid() {
		return
	}
	if !p.Source.IsLoopback() {
		if !chk.address("source", p.Source) {
			return
		}
		if p.Node == "" {
			chk.bad("source", p.Source, "is an address of one node: name that node, and give each its own entry")
		}
	}
	if p.Address.IsValid() && p.Source.Is4() != p.Address.Is4() {
		chk.bad("source", p.Source, "is %s and the peer's address is %s: give one of the same family", family(p.Source), family(p.Address))
	}
	if p.Source == p.Address {
		chk.bad("source", p.Source, "is the peer's own address: give one of the node")
	}
	if d.vips.has(p.Source) {
		chk.clash(ErrInUse, "source", p.Source, "is a VIP of this cluster, which moves: give an address of the node itself")
	}
}

func checkTimers(chk *checker, p BGPPeer) {
	chk.seconds("hold", p.Hold, MinHold, MaxHold)
	if p.Keepalive%Duration(time.Second) != 0 || p.Keepalive < MinKeepalive || p.Keepalive > p.Hold/3 {
		chk.bad("keepalive", p.Keepalive, "must be whole seconds, from %s to a third of hold, which is %s", MinKeepalive, p.Hold)
	}
}

func checkBFD(chk *checker, p BGPPeer) {
	if !p.BFD {
		if p.BFDInterval != 0 {
			chk.bad("bfd_interval", p.BFDInterval, "goes with bfd only: leave it out")
		}
		if p.BFDMultiplier != 0 {
			chk.bad("bfd_multiplier", p.BFDMultiplier, "goes with bfd only: leave it out")
		}
		return
	}
	if p.Multihop != 0 {
		chk.bad("bfd", nil, "watches peers on a link of the node only, and this one has multihop: leave one out")
	}
	chk.span("bfd_interval", p.BFDInterval, MinBFDInterval, MaxBFDInterval)
	if p.BFDMultiplier < MinBFDMultiplier {
		chk.bad("bfd_multiplier", p.BFDMultiplier, "must be %d to 255", MinBFDMultiplier)
	}
}

// checkPassword never says what the password is.
func checkPassword(chk *checker, password string) {
	if len(password) > MaxBGPPassword {
		chk.bad("password", nil, "has %d characters: at most %d", len(password), MaxBGPPassword)
	}
	for _, b := range []byte(password) {
		if b < ' ' || b > '~' {
			chk.bad("password", nil, "must be printable ASCII")
			return
		}
	}
}

// as checks an AS number. 0 and the last one are nobody's (RFC 7607, RFC 7300), and
// 23456 stands for those an old router cannot write (RFC 6793).
func (c *checker) as(field string, as uint32) {
	switch as {
	case 0:
		c.bad(field, nil, "is missing: give the AS number, 1 to %d", asLast-1)
	case asTrans:
		c.bad(field, as, "is reserved (RFC 6793): give the AS number itself")
	case asLast:
		c.bad(field, as, "is reserved (RFC 7300): give one up to %d", asLast-1)
	}
}

// seconds checks a duration that BGP carries in seconds.
func (c *checker) seconds(field string, d, least, most Duration) {
	if d%Duration(time.Second) != 0 {
		c.bad(field, d, "must be whole seconds")
		return
	}
	c.span(field, d, least, most)
}
