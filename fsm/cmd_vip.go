package fsm

import (
	"cmp"
	"net/netip"
	"slices"
)

// normalVIP fills in the defaults.
func normalVIP(v VIP) VIP {
	v.Address = v.Address.Unmap()
	v.Instance = cmp.Or(v.Instance, DefaultInstance)
	v.Kind = cmp.Or(v.Kind, VIPService)
	v.Announce = cmp.Or(v.Announce, AnnounceL2)
	v.OnQuorumLoss = cmp.Or(v.OnQuorumLoss, QuorumRelease)
	if v.Announce == AnnounceBGP {
		v.OnNoEndpoint = cmp.Or(v.OnNoEndpoint, NoEndpointWithdraw)
	}
	return v
}

func (c PutVIP) apply(d *draft) error {
	v := normalVIP(c.VIP)
	v.Pool, v.Share = "", ""
	if old := d.vips.get(v.Address); old != nil {
		v.Pool, v.Share = old.Pool, old.Share
	}
	chk := &checker{object: "vip " + shown(v.Address)}
	addressOK := chk.address("address", v.Address)
	if !d.instances.has(v.Instance) {
		chk.bad("instance", v.Instance, "does not exist: create it with \"pontoon instance create\"")
	}
	oneOf(chk, "kind", v.Kind, VIPService, VIPGateway, VIPSNAT)
	oneOf(chk, "announce", v.Announce, AnnounceL2, AnnounceBGP, AnnounceNone)
	oneOf(chk, "on_quorum_loss", v.OnQuorumLoss, QuorumRelease, QuorumHold)
	checkNoEndpoint(chk, v)
	d.checkInstanceOf(chk, v)
	if !validInterface(v.Interface) {
		chk.bad("interface", v.Interface, "is no name of an interface")
	}
	if addressOK {
		d.checkVIPClashes(chk, v)
	}
	if !d.vips.has(v.Address) && d.vips.len() >= MaxVIPs {
		chk.clash(ErrInUse, "address", v.Address, "would be VIP %d: the data plane has room for %d", d.vips.len()+1, MaxVIPs)
	}
	if err := chk.err(); err != nil {
		return err
	}
	d.vips.put(v.Address, v)
	return nil
}

func checkNoEndpoint(chk *checker, v VIP) {
	switch {
	case v.Announce == AnnounceBGP:
		oneOf(chk, "on_no_endpoint", v.OnNoEndpoint, NoEndpointWithdraw, NoEndpointKeep)
	case v.OnNoEndpoint != "":
		chk.bad("on_no_endpoint", string(v.OnNoEndpoint), "goes with announce %s only: leave it out", AnnounceBGP)
	}
}

// checkInstanceOf holds a VIP against the settings of the instance it is to be in,
// and of the one it is in.
func (d *draft) checkInstanceOf(chk *checker, v VIP) {
	if inst := d.instances.get(v.Instance); inst != nil && inst.Kind == InstanceECMP {
		if v.Announce == AnnounceL2 {
			chk.bad("announce", v.Announce, "would let every node of instance %s answer for it, which is of kind %s: use %s or %s",
				inst.Name, InstanceECMP, AnnounceBGP, AnnounceNone)
		}
		if v.Kind == VIPGateway {
			chk.bad("kind", v.Kind, "needs one node that holds it, and instance %s is of kind %s: put it into another instance", inst.Name, InstanceECMP)
		}
	}
	owner, ok := d.nextHopOf(v.Address)
	if !ok {
		return
	}
	if v.Instance != owner {
		chk.clash(ErrInUse, "instance", v.Instance, "is not %s, whose next hop this VIP is: set other next hops there first", owner)
	}
	if v.Announce == AnnounceNone {
		chk.clash(ErrInUse, "announce", v.Announce, "would leave routers without the next hop of instance %s: set other next hops there first", owner)
	}
}

// nextHopOf returns the instance of which a VIP is a next hop.
func (d *draft) nextHopOf(addr netip.Addr) (string, bool) {
	if v := d.vips.get(addr); v != nil {
		if inst := d.instances.get(v.Instance); inst != nil && slices.Contains(inst.NextHops, addr) {
			return inst.Name, true
		}
	}
	return "", false
}

func (d *draft) checkVIPClashes(chk *checker, v VIP) {
	if users := d.servicesOn(v.Address); len(users) > 0 && v.Kind != VIPService {
		chk.clash(ErrInUse, "kind", v.Kind, "would leave services %s without their VIP: delete them first", few(users))
	}
	if d.vips.has(v.Address) {
		return // checked when it was created, and again with every node and service since
	}
	if what := d.occupant(v.Address); what != "" {
		chk.clash(ErrInUse, "address", v.Address, "is %s: give an address nobody has", what)
	}
	d.checkReserved(chk, v.Address)
}

// hasEndpointAt looks an address up in sorted endpoints.
func hasEndpointAt(endpoints []Endpoint, addr netip.Addr) bool {
	i, _ := slices.BinarySearchFunc(endpoints, netip.AddrPortFrom(addr, 0), compareEndpoint)
	return i < len(endpoints) && endpoints[i].Address.Addr() == addr
}

func (c DeleteVIP) apply(d *draft) error {
	addr := c.Address.Unmap()
	if !d.vips.has(addr) {
		return refuse(ErrNotFound, "vip %s does not exist: see \"pontoon vip list\"", shown(addr))
	}
	if users := d.servicesOn(addr); len(users) > 0 {
		return refuse(ErrInUse, "vip %s is used by services %s: delete them first", addr, few(users))
	}
	if owner, ok := d.nextHopOf(addr); ok {
		return refuse(ErrInUse, "vip %s is a next hop of instance %s: set other next hops there first", addr, owner)
	}
	d.vips.drop(addr)
	return nil
}
