package node

import (
	"fmt"
	"net/netip"
	"slices"

	"pontoon/bpf"
	"pontoon/node/plan"
)

// usesIPv6 says whether a VIP or an endpoint of the cluster is an IPv6 address.
func usesIPv6(p plan.Plan) bool {
	is6 := func(a netip.Addr) bool { return a.Unmap().Is6() }
	if slices.ContainsFunc(p.Managed, is6) {
		return true
	}
	return slices.ContainsFunc(p.Dataplane.Services, func(s bpf.Service) bool {
		return slices.ContainsFunc(s.Endpoints, func(e bpf.Endpoint) bool { return is6(e.Addr.Addr()) })
	})
}

// prepareIPv6 has the links forward IPv6 from when the cluster first has a use
// for it: before that, no machine is made an IPv6 router. Like the IPv4 settings
// these are written once in a daemon's life and not taken back.
func (d *driver) prepareIPv6() error {
	if !d.wantsIPv6 || d.readyIPv6 || d.m.removed() {
		return nil
	}
	if err := d.m.host.PrepareIPv6(d.m.cfg.DataPlane.Interfaces); err != nil {
		return fmt.Errorf("prepare links for IPv6: %w", err)
	}
	d.readyIPv6 = true
	return nil
}
