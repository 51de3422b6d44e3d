package fsm

import (
	"fmt"
	"net/netip"
	"slices"
)

// MaxCommunities is how many communities an instance may have.
const MaxCommunities = 32

// hasSettings says whether the command sets more than priorities.
func (c PutInstance) hasSettings() bool {
	return c.Kind != "" || c.AnnouncePolicy != "" || len(c.NextHops) > 0 || c.ASPrepend || len(c.Communities) > 0
}

// hasSettings says whether any setting is not the default.
func (i Instance) hasSettings() bool {
	return i.Kind != "" || i.AnnouncePolicy != "" || len(i.NextHops) > 0 || i.ASPrepend || len(i.Communities) > 0
}

func sameSettings(a, b *Instance) bool {
	return a.Kind == b.Kind && a.AnnouncePolicy == b.AnnouncePolicy && slices.Equal(a.NextHops, b.NextHops) &&
		a.ASPrepend == b.ASPrepend && slices.Equal(a.Communities, b.Communities)
}

// set gives an instance the settings of the command, in the form the state keeps.
func (c PutInstance) set(inst *Instance) {
	inst.Kind, inst.AnnouncePolicy = c.Kind, c.AnnouncePolicy
	if inst.Kind == InstanceBackup {
		inst.Kind = ""
	}
	if inst.AnnouncePolicy == PolicyRanked {
		inst.AnnouncePolicy = ""
	}
	inst.ASPrepend = c.ASPrepend
	inst.Communities = normalCommunities(c.Communities)
	inst.NextHops = nil
	for _, a := range c.NextHops {
		inst.NextHops = append(inst.NextHops, a.Unmap())
	}
	slices.SortFunc(inst.NextHops, netip.Addr.Compare)
}

func (d *draft) checkSettings(chk *checker, inst Instance) {
	if inst.Kind != "" {
		oneOf(chk, "kind", inst.Kind, InstanceBackup, InstanceECMP)
	}
	if inst.AnnouncePolicy != "" {
		oneOf(chk, "announce_policy", inst.AnnouncePolicy, PolicyRanked, PolicyMasterOnly)
	}
	checkCommunities(chk, inst.Communities)
	if inst.Kind == InstanceECMP {
		d.checkECMP(chk, inst)
		return
	}
	if inst.ASPrepend && inst.AnnouncePolicy == PolicyMasterOnly {
		chk.bad("as_prepend", nil, "is about the routes of backups, and with announce_policy %s they have none: leave it out", PolicyMasterOnly)
	}
	d.checkNextHops(chk, inst)
}

// checkECMP holds that nothing is asked for that needs a master.
func (d *draft) checkECMP(chk *checker, inst Instance) {
	const mend = "goes with kind %s only: leave it out"
	if inst.AnnouncePolicy != "" {
		chk.bad("announce_policy", inst.AnnouncePolicy, mend, InstanceBackup)
	}
	if len(inst.NextHops) > 0 {
		chk.bad("next_hops", inst.NextHops[0], mend, InstanceBackup)
	}
	if inst.ASPrepend {
		chk.bad("as_prepend", nil, mend, InstanceBackup)
	}
	var claimed, gateways []string
	for _, r := range d.vips.rows {
		v := r.val
		switch {
		case v.Instance != inst.Name:
		case v.Kind == VIPGateway:
			gateways = append(gateways, v.Address.String())
		case v.Announce == AnnounceL2:
			claimed = append(claimed, v.Address.String())
		}
	}
	var pools []string
	for _, r := range d.pools.rows {
		if r.val.Instance == inst.Name && r.val.Announce == AnnounceL2 {
			pools = append(pools, r.key)
		}
	}
	if len(pools) > 0 {
		chk.clash(ErrInUse, "kind", inst.Kind, "would let every node answer for addresses of pools %s, which are announced by %s: set them to announce %s or %s first",
			few(pools), AnnounceL2, AnnounceBGP, AnnounceNone)
	}
	if len(claimed) > 0 {
		chk.clash(ErrInUse, "kind", inst.Kind, "would let every node answer for VIPs %s, which are announced by %s: set them to announce %s or %s first",
			few(claimed), AnnounceL2, AnnounceBGP, AnnounceNone)
	}
	if len(gateways) > 0 {
		chk.clash(ErrInUse, "kind", inst.Kind, "leaves no one node to hold the gateways %s: move them to another instance first", few(gateways))
	}
}

func (d *draft) checkNextHops(chk *checker, inst Instance) {
	for i, a := range inst.NextHops {
		if i > 0 && inst.NextHops[i-1].Is4() == a.Is4() {
			chk.bad("next_hops", a, "is a second one of %s: give one of a family at most", family(a))
		}
		switch v := d.vips.get(a); {
		case !a.IsValid():
			chk.bad("next_hops", nil, "has one that is no address: give VIPs of this instance")
		case v == nil || v.Instance != inst.Name:
			chk.bad("next_hops", a, "is no VIP of this instance: create it with \"pontoon vip create %s --instance %s\"", a, inst.Name)
		case v.Announce == AnnounceNone:
			chk.bad("next_hops", a, "is announced by nobody: use a VIP with announce %s or %s", AnnounceL2, AnnounceBGP)
		}
	}
}

func checkCommunities(chk *checker, all []Community) {
	if len(all) > MaxCommunities {
		chk.bad("communities", len(all), "are too many: at most %d", MaxCommunities)
		return
	}
	for i, c := range all {
		if err := c.Validate(); err != nil {
			chk.bad("communities", string(c), "%v", err)
			continue
		}
		if i > 0 && all[i-1] == c {
			chk.bad("communities", string(c), "is there twice: leave one out")
		}
		if c == GracefulShutdown {
			chk.bad("communities", string(c), "is what a draining node adds, and asks routers to avoid the route: leave it out")
		}
	}
}

// name is the peer's in a Change.
func (p *BGPPeer) name() string {
	if p.Node == "" {
		return p.Address.String()
	}
	return fmt.Sprintf("%s on %s", p.Address, p.Node)
}
