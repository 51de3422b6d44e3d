package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// RoutedVIP is the i-th address, from 0 to 9999, that is served in [Routed]: one of no
// segment, so that it is reached by routes alone (198.18.0.0/15 is set apart for
// measurements, RFC 2544; fd00:100::/64 is as private as the others).
func RoutedVIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i / 200), byte(1 + i%200)})
}

// RoutedVIP6 is the same for IPv6.
func RoutedVIP6(i int) netip.Addr {
	return netip.AddrFrom16([16]byte{0: 0xfd, 2: 0x01, 14: byte(i / 200), 15: byte(1 + i%200)})
}

// RoutedVIP is [RoutedVIP] or [RoutedVIP6].
func (f Family) RoutedVIP(i int) netip.Addr {
	if f == IPv6 {
		return RoutedVIP6(i)
	}
	return RoutedVIP(i)
}

// NextHopVIP is an address between routers and nodes that no host has: one that
// can float between nodes.
func (f Family) NextHopVIP() netip.Addr {
	if f == IPv6 {
		return coreAddr6(100).Addr()
	}
	return coreAddr(100).Addr()
}

// ClientNet is the network the clients are in.
func (f Family) ClientNet() netip.Prefix {
	if f == IPv6 {
		return frontAddr6(0).Masked()
	}
	return frontAddr(0).Masked()
}

// routerSettings make a namespace a router. Packets of one connection keep their way as
// long as the ways are the same, and those of one client are spread: layer 4 is hashed.
func routerSettings() map[string]string {
	return map[string]string{
		"/proc/sys/net/ipv4/ip_forward":                  "1",
		"/proc/sys/net/ipv4/conf/all/rp_filter":          "0",
		"/proc/sys/net/ipv4/conf/default/rp_filter":      "0",
		"/proc/sys/net/ipv4/conf/all/send_redirects":     "0",
		"/proc/sys/net/ipv4/conf/default/send_redirects": "0",
		"/proc/sys/net/ipv4/fib_multipath_hash_policy":   "1",
		"/proc/sys/net/ipv6/conf/all/forwarding":         "1",
		"/proc/sys/net/ipv6/fib_multipath_hash_policy":   "1",
	}
}

// settle makes those settings of the host's kernel that its role asks for.
func (h hostSpec) settle(ns string) error {
	if h.role != roleRouter {
		return nil
	}
	settings := routerSettings()
	for _, p := range h.ports {
		// The greater of "all" and the interface's own counts.
		settings["/proc/sys/net/ipv4/conf/"+p.iface+"/rp_filter"] = "0"
		settings["/proc/sys/net/ipv4/conf/"+p.iface+"/send_redirects"] = "0"
	}
	return inNS(ns, func() error {
		for path, value := range settings {
			err := os.WriteFile(path, []byte(value), 0)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("host %s: %w", h.name, err)
			}
		}
		return nil
	})
}

// Router is a host that forwards between the clients and the nodes. Its own routes are
// those to its segments; others are learned by what the caller starts on it.
type Router struct {
	*Host

	mu    sync.Mutex
	procs []*Process
	off   bool
}

// CoreAddr is the router's address of the family on the nodes' side.
func (r *Router) CoreAddr(f Family) netip.Addr {
	if f == IPv6 {
		return r.spec.ports[1].address6.Addr()
	}
	return r.spec.ports[1].address.Addr()
}

// CoreInterface is its leg on the nodes' side.
func (r *Router) CoreInterface() string { return r.spec.ports[1].iface }

// Start is [Host.Start] for what shall die with a PowerOff.
func (r *Router) Start(cmd *exec.Cmd) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off {
		return nil, fmt.Errorf("start %s on %s: it has no power", cmd.Path, r.Name())
	}
	p, err := r.Host.Start(cmd)
	if err == nil {
		r.procs = append(r.procs, p)
	}
	return p, err
}

// PowerOff is a power loss: links first, then everything that runs, then the kernel's
// memory with all routes.
func (r *Router) PowerOff(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.off {
		return nil
	}
	errs := []error{r.LinksDown()}
	r.off = true
	for _, p := range r.procs {
		errs = append(errs, p.Kill(ctx))
	}
	r.procs = nil
	if err := errors.Join(append(errs, r.destroy())...); err != nil {
		return fmt.Errorf("power %s off: %w", r.Name(), err)
	}
	return nil
}

// PowerOn boots the router again with the same addresses. Nothing runs on it then.
func (r *Router) PowerOn() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.off {
		return fmt.Errorf("power %s on: it has power", r.Name())
	}
	if err := r.build(); err != nil {
		return fmt.Errorf("power %s on: %w", r.Name(), err)
	}
	r.off = false
	return nil
}

// RouteTable reads the routes of a host's kernel: what its packets follow, whatever its
// daemons think. Close it after use. It is safe for concurrent use.
type RouteTable struct {
	host string
	nl   *netlink.Handle
	mu   sync.Mutex
}

// RouteTable opens the kernel's table of the host. After a power loss it is another one.
func (h *Host) RouteTable() (*RouteTable, error) {
	nl, err := nlHandle(h.ns)
	if err != nil {
		return nil, err
	}
	return &RouteTable{host: h.spec.name, nl: nl}, nil
}

// Close gives the handle back.
func (t *RouteTable) Close() { t.nl.Close() }

// NextHops maps each destination of the family, in the main table and by a next hop, to its
// sorted next hops. Several metrics of one destination count as the best one.
func (t *RouteTable) NextHops(f Family) (map[netip.Prefix][]netip.Addr, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	family := unix.AF_INET
	if f == IPv6 {
		family = unix.AF_INET6
	}
	routes, err := t.nl.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list routes of %s: %w", t.host, err)
	}
	slices.SortStableFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
	out := map[netip.Prefix][]netip.Addr{}
	metric := map[netip.Prefix]int{}
	for _, r := range routes {
		p := prefixOf(r.Dst, f)
		if m, known := metric[p]; known && m != r.Priority {
			continue
		}
		hops := hopsOf(r)
		if len(hops) == 0 {
			continue
		}
		metric[p] = r.Priority
		out[p] = append(out[p], hops...)
	}
	for p := range out {
		slices.SortFunc(out[p], netip.Addr.Compare)
	}
	return out, nil
}

func prefixOf(n *net.IPNet, f Family) netip.Prefix {
	if n == nil {
		return netip.PrefixFrom(f.Unspecified(), 0)
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// hopsOf are the next hops of one route; a blackhole has none.
func hopsOf(r netlink.Route) []netip.Addr {
	var out []netip.Addr
	add := func(ip net.IP, via netlink.Destination) {
		if v, ok := via.(*netlink.Via); ok && ip == nil {
			ip = v.Addr
		}
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	for _, h := range r.MultiPath {
		add(h.Gw, h.Via)
	}
	if len(r.MultiPath) == 0 {
		add(r.Gw, r.Via)
	}
	return out
}

// To are the sorted next hops of one address, none when there is no such route.
func (t *RouteTable) To(addr netip.Addr) ([]netip.Addr, error) {
	all, err := t.NextHops(familyOf(addr))
	return all[netip.PrefixFrom(addr, addr.BitLen())], err
}
