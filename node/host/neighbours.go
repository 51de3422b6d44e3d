package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoNeighbour is returned for an address the kernel has no use of at present.
var ErrNoNeighbour = errors.New("no such neighbour")

// Neighbour is the hardware address by which the kernel reaches an address on the
// link with that index. It asks nobody: what the kernel does not know is
// ErrNoNeighbour.
func (h *Host) Neighbour(link int, addr netip.Addr) (net.HardwareAddr, error) {
	family := unix.AF_INET6
	if addr = addr.Unmap(); addr.Is4() {
		family = unix.AF_INET
	}
	list, err := h.links.NeighList(link, family)
	if err != nil {
		return nil, fmt.Errorf("list neighbours on link %d: %w", link, err)
	}
	const valid = netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE | netlink.NUD_PERMANENT
	for _, n := range list {
		at, ok := netip.AddrFromSlice(n.IP)
		if ok && at.Unmap() == addr && n.State&valid != 0 && len(n.HardwareAddr) > 0 {
			return n.HardwareAddr, nil
		}
	}
	return nil, fmt.Errorf("%s on link %d: %w", addr, link, ErrNoNeighbour)
}
