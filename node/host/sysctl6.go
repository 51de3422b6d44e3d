package host

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
)

// The IPv6 settings that PrepareIPv6 deals with (kernel document
// networking/ip-sysctl.rst).
const (
	// Whether an interface behaves like a router's: it sets the Router flag,
	// accepts no redirects, and no router advertisements either unless accept_ra
	// is 2. The FIB lookups of the data plane want it on the interface. Only
	// conf/all decides whether the kernel forwards, and writing it writes every
	// interface.
	keyForwarding = "forwarding"
	// Has the kernel forward what arrives on one interface. Linux 6.17.
	keyForceForwarding = "force_forwarding"
	// 0: take nothing from router advertisements; 1: unless forwarding; 2: always.
	keyAcceptRA = "accept_ra"
	// Announce the interface's addresses when it comes back. A node that was cut
	// off would claim VIPs that have moved. The interface's value or conf/all's
	// being 1 is enough.
	keyNotify = "ndisc_notify"
)

// PrepareIPv6 writes the IPv6 sysctls that links need to forward and to hold
// VIPs. It is apart from Prepare so that a machine whose cluster has no use for
// IPv6 is not made an IPv6 router. Only what differs is written, and logged, so it
// may be called again. Interfaces on which IPv6 does not run are left out, and a
// kernel without IPv6 is no error: an address that cannot be held for that reason
// is reported by SyncAddresses.
//
// Where the kernel can forward from single interfaces (Linux 6.17), it forwards
// from links and no others. Before, forwarding is on or off for the machine, and
// it is switched on; the other interfaces keep behaving like a host's.
//
// Routes learned from router advertisements stay, on links too: to become a
// router drops them, so links that listened to advertisements are told to go on
// (accept_ra=2).
//
// Nothing is undone when a write fails: each setting is harmless alone. The error
// names those to make by hand.
func (h *Host) PrepareIPv6(links []string) error {
	keys := []string{keyForwarding, keyAcceptRA, keyNotify}
	if _, err := h.readSetting(ipv6, "all", keyForceForwarding); err == nil {
		keys = append(keys, keyForceForwarding)
	}
	current, err := h.readConf(ipv6, keys)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // no IPv6 at all
	}
	if err != nil {
		return err
	}
	known := make([]string, 0, len(links))
	for _, l := range links {
		if l == "" || l == "all" || l == "default" || filepath.Base(l) != l {
			return fmt.Errorf("prepare interface %q: %w", l, ErrNoLink)
		}
		if _, ok := current[l]; ok {
			known = append(known, l)
		}
	}
	var errs []error
	for _, s := range planSettings6(current, known) {
		if err := h.set(s); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// planner6 gathers settings and what the kernel will have after them.
type planner6 struct {
	now  conf
	plan []setting
}

func (p *planner6) want(link, key string, value int) {
	old, exists := p.now[link][key]
	if !exists || old == value {
		return
	}
	p.plan = append(p.plan, setting{family: ipv6, link: link, key: key, old: old, want: value})
	p.now[link][key] = value
	if link == "all" && key == keyForwarding { // addrconf_forward_change
		for l := range p.now {
			p.now[l][key] = value
		}
	}
}

// planSettings6 lists the writes that bring current to what links need, in order.
// It is pure.
func planSettings6(current conf, links []string) []setting {
	p := planner6{now: make(conf, len(current))}
	for l, values := range current {
		p.now[l] = maps.Clone(values)
	}
	all := slices.Sorted(maps.Keys(current))
	listeners := slices.DeleteFunc(slices.Clone(all), func(l string) bool {
		return l == "lo" || current[l][keyForwarding] != 0 || current[l][keyAcceptRA] != 1 || l == "all" || l == "default"
	})
	others := slices.DeleteFunc(slices.Clone(all), func(l string) bool { return l == "all" || slices.Contains(links, l) })

	if p.turnsRouter(links) {
		// A write that switches forwarding on anywhere drops, in the whole
		// namespace, the learned default routes of every interface whose accept_ra
		// is not 2 (rt6_purge_dflt_routers). For an interface that does not
		// forward, 2 means the same as 1.
		for _, l := range listeners {
			p.want(l, keyAcceptRA, 2)
		}
	}
	if !p.forwardsSingly() && len(links) > 0 {
		p.want("all", keyForwarding, 1)
		for _, l := range others {
			p.want(l, keyForwarding, current[l][keyForwarding])
		}
	}
	for _, l := range links {
		p.want(l, keyForwarding, 1)
		p.want(l, keyForceForwarding, 1)
	}
	for _, l := range others {
		p.want(l, keyAcceptRA, current[l][keyAcceptRA])
	}
	p.quieten(links, others, current["all"][keyNotify])
	return p.plan
}

// forwardsSingly reports whether the kernel knows force_forwarding.
func (p *planner6) forwardsSingly() bool {
	_, ok := p.now["all"][keyForceForwarding]
	return ok
}

// turnsRouter reports whether forwarding has to be switched on somewhere.
func (p *planner6) turnsRouter(links []string) bool {
	if len(links) > 0 && !p.forwardsSingly() && p.now["all"][keyForwarding] == 0 {
		return true
	}
	return slices.ContainsFunc(links, func(l string) bool { return p.now[l][keyForwarding] == 0 })
}

// quieten keeps the kernel from announcing addresses of links by itself; what
// conf/all had the others do, their own values have them do from now on.
func (p *planner6) quieten(links, others []string, all int) {
	if len(links) == 0 {
		return
	}
	if all > 0 {
		for _, l := range others {
			p.want(l, keyNotify, all)
		}
	}
	for _, l := range links {
		p.want(l, keyNotify, 0)
	}
	p.want("all", keyNotify, 0)
}
