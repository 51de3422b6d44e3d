package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// KernelChange is one change of a host's routes or neighbours, as its kernel told of it.
type KernelChange struct {
	At time.Time // when it was read
	// To is the destination of a route with its next hops, none when it was removed.
	To       netip.Prefix
	NextHops []netip.Addr
	// Neighbour has the hardware address MAC from now on. One of To and Neighbour is valid.
	Neighbour netip.Addr
	MAC       string
}

// WatchKernel hands every change of the host's routes and of its neighbours' addresses to each, until ctx ends; then it
// returns nil. It calls listening when it has begun to listen. A watcher that is too slow loses changes.
func (h *Host) WatchKernel(ctx context.Context, listening func(), each func(KernelChange)) error {
	ns, err := netns.GetFromName(h.ns)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", h.ns, err)
	}
	defer ns.Close()
	const room = 8192 // changes that wait to be read
	routes, neighbours := make(chan netlink.RouteUpdate, room), make(chan netlink.NeighUpdate, room)
	done := make(chan struct{})
	if err := netlink.RouteSubscribeWithOptions(routes, done, netlink.RouteSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 4 << 20,
	}); err != nil {
		return fmt.Errorf("watch routes of %s: %w", h.spec.name, err)
	}
	if err := netlink.NeighSubscribeWithOptions(neighbours, done, netlink.NeighSubscribeOptions{
		Namespace: &ns, ReceiveBufferSize: 4 << 20,
	}); err != nil {
		close(done)
		return fmt.Errorf("watch neighbours of %s: %w", h.spec.name, err)
	}
	listening()
	return watchKernel(ctx, routes, neighbours, done, each)
}

// watchKernel passes on what comes until ctx ends.
func watchKernel(ctx context.Context, routes <-chan netlink.RouteUpdate, neighbours <-chan netlink.NeighUpdate, done chan struct{}, each func(KernelChange)) error {
	defer close(done) // the library's readers end with it
	for {
		select {
		case <-ctx.Done():
			return nil
		case u, ok := <-routes:
			if !ok {
				return nil
			}
			each(routeChange(u))
		case u, ok := <-neighbours:
			if !ok {
				return nil
			}
			if a, valid := netip.AddrFromSlice(u.IP); valid && len(u.HardwareAddr) > 0 {
				each(KernelChange{At: time.Now(), Neighbour: a.Unmap(), MAC: u.HardwareAddr.String()})
			}
		}
	}
}

func routeChange(u netlink.RouteUpdate) KernelChange {
	f := IPv4
	if u.Family == unix.AF_INET6 {
		f = IPv6
	}
	c := KernelChange{At: time.Now(), To: prefixOf(u.Dst, f)}
	if u.Type == unix.RTM_NEWROUTE {
		c.NextHops = hopsOf(u.Route)
	}
	return c
}
