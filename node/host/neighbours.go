package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoNeighbour is returned for an address the kernel has no use of at present.
var ErrNoNeighbour = errors.New("no such neighbour")

// Neighbour is the hardware address by which the kernel reaches an address on the
// link with that index. It asks nobody: what the kernel does not know is
// ErrNoNeighbour.
func (h *Host) Neighbour(link int, addr netip.Addr) (net.HardwareAddr, error) {
	there, err := h.Neighbours(link, []netip.Addr{addr})
	if err != nil {
		return nil, err
	}
	if mac := there[addr]; mac != nil {
		return mac, nil
	}
	return nil, fmt.Errorf("%s on link %d: %w", addr, link, ErrNoNeighbour)
}

// Neighbours returns the hardware addresses of those of the addresses that the kernel knows as neighbours on a link.
func (h *Host) Neighbours(link int, addrs []netip.Addr) (map[netip.Addr]net.HardwareAddr, error) {
	out := map[netip.Addr]net.HardwareAddr{}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		ofFamily := func(a netip.Addr) bool { return a.Unmap().Is4() == (family == unix.AF_INET) }
		if !slices.ContainsFunc(addrs, ofFamily) {
			continue
		}
		list, err := h.links.NeighList(link, family)
		if err != nil {
			return nil, fmt.Errorf("list neighbours on link %d: %w", link, err)
		}
		const valid = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
		at := make(map[netip.Addr]net.HardwareAddr, len(list))
		for _, n := range list {
			if a, ok := netip.AddrFromSlice(n.IP); ok && n.State&valid != 0 && len(n.HardwareAddr) > 0 {
				at[a.Unmap()] = n.HardwareAddr
			}
		}
		for _, a := range addrs {
			if mac := at[a.Unmap()]; mac != nil {
				out[a] = mac
			}
		}
	}
	return out, nil
}
