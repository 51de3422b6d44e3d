package bpf

import (
	"fmt"
	"net"
	"net/netip"
	"time"
)

// Peers are the other nodes that can be reached on one interface.
type Peers struct {
	Own  net.HardwareAddr           // this node's address on it
	MACs map[uint8]net.HardwareAddr // theirs, by slot
}

// SetPeers has packets that come in on an interface, and may belong to a connection of a service
// (Service.Shared, Service.Strays) that is not known here, brought to the nodes that may know it: those with ACK to its VIP, or
// SCTP's that open nothing; what an endpoint sends to a source port of another node, to that node alone; and what
// an endpoint sends past this node from a service's port (ModeDNAT). What one of them sends is not brought on. A packet is brought
// one hop older, as it is otherwise. Its zero value ends it.
func (d *Dataplane) SetPeers(ifindex int, p Peers) error {
	v := pontoonPeerLink{Ifindex: uint32(ifindex)}
	if len(p.MACs) > 0 {
		if len(p.Own) != len(v.Own) {
			return fmt.Errorf("set the peers on interface %d: want addresses of Ethernet", ifindex)
		}
		copy(v.Own[:], p.Own)
	}
	for slot, mac := range p.MACs {
		if int(slot) >= len(v.Mac) || len(mac) != len(v.Own) {
			return fmt.Errorf("set the peers on interface %d: slot %d at %q", ifindex, slot, mac)
		}
		copy(v.Mac[slot][:], mac)
		v.There |= 1 << slot
	}
	err := putOnLink(d.maps.Peers, v, func(v pontoonPeerLink) (uint32, bool) { return v.Ifindex, v.There != 0 })
	if err != nil {
		return fmt.Errorf("set the peers on interface %d: %w", ifindex, err)
	}
	return nil
}

// setLiving tells the programs beside which owners a replica may be forwarded.
func (d *Dataplane) setLiving(alive map[uint8]bool) error {
	var living uint32
	for slot, yes := range alive {
		if yes {
			living |= 1 << slot
		}
	}
	if err := d.maps.Living.Put(uint32(0), living); err != nil {
		return fmt.Errorf("write who lives: %w", err)
	}
	return nil
}

// vipFlags are those of VIPs, and of the sources that endpoints see, which follow from the services.
func vipFlags(services []Service) map[netip.Addr]uint32 {
	flags := make(map[netip.Addr]uint32, len(services))
	for i := range services {
		s := &services[i]
		vip, source := s.vipFlags()
		flags[s.VIP.Addr().Unmap()] |= vip
		if source == 0 {
			continue
		}
		for _, e := range s.Endpoints {
			for _, from := range e.Sources {
				flags[from.Unmap()] |= source
			}
		}
	}
	return flags
}

// vipFlags are the flags of the VIP of s, and of the sources towards its endpoints.
func (s *Service) vipFlags() (vip, source uint32) {
	if s.ranged() {
		vip = uint32(pontoonVipFlagVIP_F_RANGES)
	}
	switch {
	case s.Shared:
		source = uint32(pontoonVipFlagVIP_F_SHARED)
		vip |= source
	case s.Strays != Strays{}:
		source = uint32(pontoonVipFlagVIP_F_ASTRAY)
	}
	if s.Strays.Clients != 0 && !s.Shared {
		vip |= uint32(pontoonVipFlagVIP_F_ASTRAY) | uint32(s.Strays.Clients)<<pontoonSlotsSLOTS_SHIFT
	}
	return vip, source
}

// origin says who may know the connections that the endpoints of s answer; 0: this node, or nobody.
func (s *Service) origin() uint32 {
	var value uint32
	switch {
	case s.Mode == ModeDSR:
		return 0
	case s.Shared:
		value = uint32(pontoonOriginFlagORIGIN_F_ALL)
	case s.Strays != Strays{}:
		value = uint32(s.Strays.Answers) << pontoonSlotsSLOTS_SHIFT
	default:
		return 0
	}
	if s.Mode != ModeDNAT {
		value |= uint32(pontoonOriginFlagORIGIN_F_TO_US)
	}
	return value
}

// syncOrigins makes the map of origins say where the answers come from that another node may know.
func (t *tables) syncOrigins(services []Service) error {
	const toUs = uint32(pontoonOriginFlagORIGIN_F_TO_US)
	want := map[pontoonRangeKey]uint32{}
	for i := range services {
		s := &services[i]
		value := s.origin()
		if value == 0 {
			continue
		}
		more := uint16(0)
		if s.ranged() {
			more = s.PortEnd - s.VIP.Port()
		}
		for _, e := range s.Endpoints {
			for _, key := range rangeKeys(e.Addr.Addr(), s.Protocol, e.Addr.Port(), e.Addr.Port()+more) {
				if was, ok := want[key]; ok { // of several services
					want[key] = (was|value)&^toUs | was&value&toUs
				} else {
					want[key] = value
				}
			}
		}
	}
	return syncMap(t.maps.Origins, "origin", t.origins, want)
}

// guestsEvery is how long a replica is forwarded beside its owner before the programs look at it again: whether
// the owner still speaks of it.
const guestsEvery = 8 * time.Second

// guests are the replicas that a sweep meets which are forwarded here beside their owners.
type guests struct {
	look    bool             // it is time for all of them
	again   []pontoonFlowKey // halves that the programs are to look at
	widowed []lesson         // connections whose owner has died
}

// lesson is what both halves of a connection are to learn: flags to set and to clear, as the forward half
// has them.
type lesson struct {
	key        pontoonFlowKey
	of         pontoonFlow // tells the connection from a later one of the same tuple
	set, clear uint8
}

func (g *guests) begin(d *Dataplane, wall time.Time) {
	g.look = wall.Sub(d.guestsSeen) >= guestsEvery
	if g.look {
		d.guestsSeen = wall
	}
}

// visit notes one half that stays.
func (g *guests) visit(d *Dataplane, key *pontoonFlowKey, f *pontoonFlow) {
	switch {
	case !f.guest():
	case !d.owners.lives(f.OwnerSlot):
		forward := *key
		if f.reply() {
			forward = otherKey(key, f)
		}
		g.widowed = append(g.widowed, lesson{key: forward, of: *f, clear: flagGuest})
	case g.look:
		g.again = append(g.again, *key)
	}
}

// settle takes over what is nobody's any more, and says so.
func (g *guests) settle(d *Dataplane) error {
	defer func() { g.again, g.widowed = g.again[:0], g.widowed[:0] }()
	if len(g.again) > 0 {
		if err := d.finder.louden(g.again, func(int, *pontoonFlow) {}); err != nil {
			return err
		}
	}
	var taken []pontoonFlowKey
	for i := range g.widowed {
		changed, err := d.doomer.learn(&g.widowed[i])
		if err != nil {
			return err
		}
		if changed {
			taken = append(taken, g.widowed[i].key)
		}
	}
	return d.tellOwed(taken)
}

// usedHere says whether packets of a replica, of which f is the forward half, pass here beside its owner.
func (d *Dataplane) usedHere(key *pontoonFlowKey, f *pontoonFlow, now instant) (bool, error) {
	if !d.shares.Load() {
		return false, nil
	}
	recent := func(f *pontoonFlow) bool { return f.guest() && now.idle(f.LastSeen) < guestsEvery }
	if recent(f) {
		return true, nil
	}
	var reply pontoonFlow
	paired, err := partner(d.flowTable(), key, f, &reply)
	return paired && recent(&reply), err
}
