package fsm

import (
	"cmp"
	"net/netip"
	"slices"
)

// assign finds the VIP of a service that asks for one: the one it has, that of
// its share, or a new one at the lowest free address of the pool. The draft stays
// as it is. What stands in the way is said in chk, and the VIP is then without an
// address.
func (d *draft) assign(chk *checker, want AutoVIP, svc, old Service) VIP {
	if svc.VIP.IsValid() {
		chk.bad("vip", svc.VIP, "is given, and %s asks for another one: leave one out", want)
		return VIP{}
	}
	if want.Share != "" {
		chk.name("share", want.Share)
	}
	if v, ok := d.keptVIP(chk, want, old); ok {
		return v
	}
	p := d.poolFor(chk, want)
	if p == nil {
		return VIP{}
	}
	if v, ok := d.adoptedVIP(chk, *p, want, old); ok {
		return v
	}
	if v := d.sharedVIP(p.Name, want.Share); v != nil {
		return *v
	}
	addr := d.lowestFree(p, svc)
	switch {
	case !addr.IsValid():
		chk.clash(ErrInUse, "vip", want, "finds no free address: pool %s hands out %d and all are used or reserved; add some with \"pontoon pool create\", or delete services",
			p.Name, p.size())
		return VIP{}
	case d.vips.len() >= MaxVIPs:
		chk.clash(ErrInUse, "vip", want, "would make VIP %d: the data plane has room for %d", d.vips.len()+1, MaxVIPs)
		return VIP{}
	}
	return normalVIP(VIP{
		Address: addr, Instance: p.Instance, Announce: p.Announce, Interface: p.Interface, Pool: p.Name, Share: want.Share,
	})
}

// keptVIP is the VIP a service is on already, if that is of the pool it asks for: an
// address is its service's for its life. One that has no share yet gets the one that
// is asked for. False: it is on no such VIP, or leaves a share for another.
func (d *draft) keptVIP(chk *checker, want AutoVIP, old Service) (VIP, bool) {
	v := d.vips.get(old.VIP)
	if v == nil || v.Pool == "" || want.Pool != "" && v.Pool != want.Pool || want.Share != "" && v.Share != "" && v.Share != want.Share {
		return VIP{}, false
	}
	return d.sharedAs(chk, *v, want.Share), true
}

// adoptedVIP is the VIP a service is on already, if somebody made it by hand and it
// lies in the pool that the service asks: it is the pool's from now on.
func (d *draft) adoptedVIP(chk *checker, p Pool, want AutoVIP, old Service) (VIP, bool) {
	v := d.vips.get(old.VIP)
	if v == nil || v.Pool != "" || !inRanges(p.handsOut(), v.Address) {
		return VIP{}, false
	}
	adopted := *v
	adopted.Pool = p.Name
	return d.sharedAs(chk, adopted, want.Share), true
}

// sharedAs is a VIP of a pool under the share that is asked for. It is refused where
// another address has that share: which of the two addresses was meant to go is not
// for us to say.
func (d *draft) sharedAs(chk *checker, v VIP, share string) VIP {
	if share == "" || v.Share == share {
		return v
	}
	if other := d.sharedVIP(v.Pool, share); other != nil {
		chk.clash(ErrInUse, "share", share, "is address %s of pool %s, with the services %s, and this service has %s: leave the share out, or move the service with \"--vip %s\"",
			other.Address, v.Pool, cmp.Or(few(d.servicesOn(other.Address)), "none"), v.Address, other.Address)
		return v
	}
	v.Share = share
	return v
}

// poolFor is the pool that is meant, or nil when chk has been told why there is none.
func (d *draft) poolFor(chk *checker, want AutoVIP) *Pool {
	const field = "vip"
	if want.Pool != "" {
		p := d.pools.get(want.Pool)
		if p == nil {
			chk.bad(field, want, "names no pool: see \"pontoon pool list\"")
		}
		return p
	}
	switch d.pools.len() {
	case 0:
		chk.bad(field, want, "needs a pool, and there is none: create one with \"pontoon pool create\"")
		return nil
	case 1:
		return d.pools.rows[0].val
	}
	var names []string
	for _, r := range d.pools.rows {
		if r.val.Default {
			return r.val
		}
		names = append(names, r.key)
	}
	chk.bad(field, want, "may mean any of the pools %s: name one, or mark one as default", few(names))
	return nil
}

// sharedVIP is the address of a pool that the services of a share are on.
func (d *draft) sharedVIP(pool, share string) *VIP {
	if share == "" {
		return nil
	}
	for _, r := range d.vips.rows {
		if r.val.Pool == pool && r.val.Share == share {
			return r.val
		}
	}
	return nil
}

// lowestFree is the address that a service gets: one that is reserved for it if
// there is any, else the lowest that nobody has and that is reserved for nobody;
// the zero Addr if there is none. The sorted lists of what is taken are walked
// beside the addresses, and gathered once, so the cost is that of the addresses in
// use, however big the pool is.
func (d *draft) lowestFree(p *Pool, svc Service) netip.Addr {
	ranges := p.handsOut()
	others := d.others(ranges)
	for _, e := range svc.Endpoints { // its own are not in the state yet
		if a := e.Address.Addr(); inRanges(ranges, a) {
			others = append(others, a)
		}
	}
	slices.SortFunc(others, netip.Addr.Compare)
	for _, r := range p.Reservations {
		if svc.Name == "" || r.Service != svc.Name || d.vips.has(r.Address) {
			continue
		}
		if _, taken := slices.BinarySearchFunc(others, r.Address, netip.Addr.Compare); !taken {
			return r.Address
		}
	}
	for _, r := range ranges {
		v, _ := d.vips.find(r.First)
		o, _ := slices.BinarySearchFunc(others, r.First, netip.Addr.Compare)
		k, _ := p.findReservation(r.First)
		for a := r.First; ; a = a.Next() {
			taken := v < d.vips.len() && d.vips.rows[v].key == a
			if taken {
				v++
			}
			for ; o < len(others) && others[o] == a; o++ {
				taken = true
			}
			if k < len(p.Reservations) && p.Reservations[k].Address == a {
				k, taken = k+1, true
			}
			if !taken {
				return a
			}
			if a == r.Last {
				break
			}
		}
	}
	return netip.Addr{}
}

// release gives an address back to its pool if no service is on it any more and
// it is the next hop of no instance.
func (d *draft) release(addr netip.Addr) {
	v := d.vips.get(addr)
	if v == nil || v.Pool == "" || len(d.servicesOn(addr)) > 0 {
		return
	}
	if _, hop := d.nextHopOf(addr); !hop {
		d.vips.drop(addr)
	}
}

// checkReserved refuses a new VIP where an address is kept back: whoever asked for
// that had a reason.
func (d *draft) checkReserved(chk *checker, addr netip.Addr) {
	p := d.poolAt(addr)
	if p == nil {
		return
	}
	switch r, kept := p.reservation(addr); {
	case !kept:
	case r.Service == "":
		chk.clash(ErrInUse, "address", addr, "is reserved in pool %s: \"pontoon pool unreserve %s\" first", p.Name, addr)
	default:
		chk.clash(ErrInUse, "address", addr, "is reserved for service %s in pool %s, which gets it with --vip auto:%s", r.Service, p.Name, p.Name)
	}
}

// releaseHops gives addresses back that were next hops and are no more.
func (d *draft) releaseHops(was []netip.Addr) {
	for _, a := range was {
		d.release(a)
	}
}
