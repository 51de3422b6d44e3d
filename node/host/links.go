package host

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Link is one network interface as it stands at one moment.
type Link struct {
	Name         string
	Index        int
	Up           bool // set up by the operator, and the carrier is there
	MTU          int
	HardwareAddr net.HardwareAddr
	// Prefixes are the link's IPv4 addresses and global IPv6 addresses, each with
	// the length of its subnet; primary addresses first, IPv6 addresses that are
	// still tentative or deprecated last. Pontoon's own are left out, and so are
	// temporary IPv6 addresses (RFC 8981) and those found to be duplicates.
	Prefixes []netip.Prefix
}

// ErrNoLink is wrapped by errors about an interface that does not exist.
var ErrNoLink = errors.New("no such interface")

// Links describes the named interfaces, in the order of names. An interface that
// does not exist is an error that names it and lists those there are.
func (h *Host) Links(names []string) ([]Link, error) {
	all, err := h.listLinks()
	if err != nil {
		return nil, err
	}
	byName := make(map[string]*netlink.LinkAttrs, len(all))
	byIndex := make(map[int]string, len(all))
	indexes := make(map[string]int, len(all))
	for _, l := range all {
		a := l.Attrs()
		byName[a.Name], byIndex[a.Index], indexes[a.Name] = a, a.Name, a.Index
	}
	addrs, err := h.dumpAddresses(byIndex)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	managed := h.managed
	h.mu.Unlock()
	links := make([]Link, 0, len(names))
	var errs []error
	for _, name := range names {
		a, ok := byName[name]
		if !ok {
			errs = append(errs, missingLink(name, indexes))
			continue
		}
		links = append(links, Link{
			Name: name, Index: a.Index, Up: running(a.RawFlags), MTU: a.MTU, HardwareAddr: a.HardwareAddr,
			Prefixes: subnets(addrs, a.Index, managed),
		})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return links, nil
}

// running reads the device flags. IFF_UP is the operator's wish, IFF_LOWER_UP
// the carrier, and IFF_RUNNING that the operational state is "up" or, for
// devices that keep none, "unknown" (RFC 2863; kernel operstates document).
func running(flags uint32) bool {
	const all = unix.IFF_UP | unix.IFF_LOWER_UP | unix.IFF_RUNNING
	return flags&all == all
}

// subnets picks the prefixes of one link that are not Pontoon's.
func subnets(addrs []ifaddr, index int, managed map[netip.Addr]bool) []netip.Prefix {
	var out, last []netip.Prefix
	for _, a := range addrs {
		ours := a.marked() || a.full() && managed[a.addr]
		local := a.addr.Is6() && a.scope != unix.RT_SCOPE_UNIVERSE
		switch {
		case a.index != index || ours || local || a.passing():
		case a.unsettled():
			last = append(last, a.prefix())
		default:
			out = append(out, a.prefix())
		}
	}
	return append(out, last...)
}

// SubnetLink returns the link whose subnet contains a; the longest prefix wins,
// then the earlier link. It reads links only, and never the kernel.
func (h *Host) SubnetLink(links []Link, a netip.Addr) (string, bool) {
	a = a.Unmap()
	name, best := "", -1
	for _, l := range links {
		for _, p := range l.Prefixes {
			if p.Contains(a) && p.Bits() > best {
				name, best = l.Name, p.Bits()
			}
		}
	}
	return name, best >= 0
}

// linkNames maps interface indexes to names.
func (h *Host) linkNames() (map[int]string, error) {
	all, err := h.listLinks()
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(all))
	for _, l := range all {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	return names, nil
}

func (h *Host) listLinks() ([]netlink.Link, error) {
	for try := 1; ; try++ {
		all, err := h.links.LinkList()
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < dumpTries {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list interfaces: %w", err)
		}
		return all, nil
	}
}

func missingLink(name string, indexes map[string]int) error {
	there := slices.Sorted(maps.Keys(indexes))
	return fmt.Errorf("interface %q: %w (there are: %s)", name, ErrNoLink, strings.Join(there, ", "))
}
