package fsm

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// genPool is a command about the pools of a small universe, whose addresses meet
// those of the VIPs, nodes and endpoints of the others.
func genPool(t *rapid.T) Command {
	name := pick(t, "pool", []string{"p1", "p2"})
	at := netip.AddrFrom4([4]byte{10, 0, 0, byte(dice(t, "host", 16))})
	switch dice(t, "pool command", 10) {
	case 0, 1:
		p := Pool{
			Name: name, Instance: pick(t, "instance", append(propInstances, "", "")), Default: flag(t, "default"),
			Announce: pick(t, "announce", []AnnounceMode{"", "", AnnounceBGP}),
		}
		p.CIDRs = []netip.Prefix{pick(t, "cidr", []netip.Prefix{
			prefix("10.0.0.0/30"), prefix("10.0.0.4/30"), prefix("10.0.0.8/29"), prefix("10.0.0.14/31"), prefix("10.0.1.0/30"), prefix("2001:db8::/126"),
		})}
		if flag(t, "range") {
			p.Ranges = []AddressRange{{at, netip.AddrFrom4([4]byte{10, 0, 0, byte(min(15, int(at.As4()[3])+dice(t, "length", 4)))})}}
		}
		if flag(t, "reserve") {
			p.Reservations = []Reservation{{at, pick(t, "for", append(propServices, ""))}}
		}
		return PutPool{Pool: p, KeepReservations: flag(t, "keep")}
	case 2:
		return DeletePool{Name: name}
	case 3:
		return ReserveAddress{Address: at, Service: pick(t, "for", append(propServices, ""))}
	case 4:
		return UnreserveAddress{Address: at}
	}
	svc := genService(t)
	svc.VIP = netip.Addr{}
	return PutService{Service: svc, Create: flag(t, "create"), Auto: &AutoVIP{
		Pool: pick(t, "from", []string{"p1", "p2", ""}), Share: pick(t, "share", []string{"", "", "x", "y"}),
	}}
}

// checkPools holds what must be true of every single state.
func checkPools(t *rapid.T, s *State) {
	defaults := 0
	for _, p := range s.Pools() {
		if p.Default {
			defaults++
		}
		for _, o := range s.Pools() {
			for _, a := range p.parts() {
				if o.Name != p.Name && slices.ContainsFunc(o.parts(), a.overlaps) {
					t.Fatalf("pools %s and %s overlap", p.Name, o.Name)
				}
			}
		}
		use := s.PoolUse(p.Name)
		if int(use.Used) != len(use.Allocations)+len(use.Others) {
			t.Fatalf("pool %+v is used like %+v", p, use)
		}
		if use.Used+use.Reserved+use.Free != use.Size || use.Free > use.Size {
			t.Fatalf("pool %+v is used like %+v", p, use)
		}
		for _, r := range p.Reservations {
			if !inRanges(p.handsOut(), r.Address) {
				t.Fatalf("%s is reserved outside of %+v", r.Address, p)
			}
		}
	}
	if defaults > 1 {
		t.Fatalf("%d pools are the default", defaults)
	}
	shares := map[[2]string]netip.Addr{}
	for _, v := range s.VIPs() {
		if v.Pool == "" {
			continue
		}
		if at, twice := shares[[2]string{v.Pool, v.Share}]; twice && v.Share != "" {
			t.Fatalf("share %s of pool %s is %s and %s", v.Share, v.Pool, at, v.Address)
		}
		shares[[2]string{v.Pool, v.Share}] = v.Address
		p, ok := s.Pool(v.Pool)
		inst, _ := s.Instance(v.Instance)
		if !ok || !inRanges(p.handsOut(), v.Address) {
			t.Fatalf("%+v is outside of its pool %+v", v, p)
		}
		if len(s.servicesOn(v.Address)) == 0 && !slices.Contains(inst.NextHops, v.Address) {
			t.Fatalf("%+v was not given back", v)
		}
	}
}

// checkHandedOut holds what must be true of a step in which a service was given an
// address: nobody had it, and nobody else was promised it.
func checkHandedOut(t *rapid.T, before, after *State, c PutService) bool {
	svc, ok := after.Service(c.Service.Name)
	v, onVIP := after.VIP(svc.VIP)
	if !ok || !onVIP || v.Pool == "" || c.Auto.Pool != "" && v.Pool != c.Auto.Pool || c.Auto.Share != "" && v.Share != c.Auto.Share {
		t.Fatalf("%+v was taken, and the service is on %+v", c, v)
	}
	others := slices.DeleteFunc(after.servicesOn(v.Address), func(n string) bool { return n == svc.Name })
	_, there := before.VIP(v.Address)
	if there {
		was, _ := before.Service(svc.Name)
		if was.VIP != v.Address && (c.Auto.Share == "" || v.Share != c.Auto.Share) {
			t.Fatalf("%+v was given %s, which %v had", c, v.Address, others)
		}
		return false
	}
	if len(others) > 0 || before.occupant(v.Address) != "" {
		t.Fatalf("%+v was given %s, which is somebody's", c, v.Address)
	}
	p, _ := before.Pool(v.Pool)
	if r, kept := p.reservation(v.Address); kept && r.Service != svc.Name {
		t.Fatalf("%+v was given %s, which is reserved: %+v", c, v.Address, r)
	}
	return true
}

func TestNoAddressIsHandedOutTwice(t *testing.T) {
	given := 0
	rapid.Check(t, func(t *rapid.T) {
		log := []Command{InitCluster{Cluster: testCluster(), Node: lbNode("a", 1)}}
		log = append(log, healthy("a")...)
		log = append(log, rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Command {
			if dice(t, "kind", 3) == 0 {
				return genSingle(t)
			}
			return genPool(t)
		}), 30, 80).Draw(t, "log")...)
		one, two := New(), New()
		for i, c := range log {
			next, err := one.Apply(one.Index()+1, c)
			two, _ = throughLog(t, two, c)
			if a, b := bytesOf(t, next), bytesOf(t, two); string(a) != string(b) {
				t.Fatalf("after command %d %+v:\n%s\n%s", i, c, a, b)
			}
			if put, ok := c.(PutService); ok && err == nil && put.Auto != nil && checkHandedOut(t, one, next, put) {
				given++
			}
			checkPools(t, next)
			one = next
		}
		if back, err := Restore(bytesOf(t, one)); err != nil || string(bytesOf(t, back)) != string(bytesOf(t, one)) {
			t.Fatalf("restored %v", err)
		}
	})
	t.Logf("%d addresses were handed out", given)
	if given < 50 {
		t.Errorf("only %d addresses were handed out, too few to tell anything", given)
	}
}
