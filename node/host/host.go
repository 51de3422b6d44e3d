package host

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one rtnetlink request. The kernel answers in
// microseconds; a request without an answer after this long never gets one.
const netlinkTimeout = 5 * time.Second

// Host reads and changes the network stack of one network namespace.
// All methods may be called from several goroutines.
type Host struct {
	logger  *slog.Logger
	links   *netlink.Handle
	route   *nl.SocketHandle
	procSys string

	// mu makes each SyncAddresses one pass, and guards managed.
	mu      sync.Mutex
	managed map[netip.Addr]bool // VIPs named by the last SyncAddresses

	routes sync.Mutex // makes each SyncRoutes one pass
}

// New opens the netlink sockets in the calling thread's network namespace.
// A nil logger discards. The caller closes the Host.
func New(logger *slog.Logger) (*Host, error) {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	links, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for links: %w", err)
	}
	if err := links.SetSocketTimeout(netlinkTimeout); err != nil {
		links.Close()
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	route, err := openRoute()
	if err != nil {
		links.Close()
		return nil, err
	}
	return &Host{logger: logger, links: links, route: route, procSys: "/proc/sys"}, nil
}

// openRoute opens the socket for address requests, which the netlink package's
// own calls cannot make: they know no IFA_PROTO.
func openRoute() (*nl.SocketHandle, error) {
	socket, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket for addresses: %w", err)
	}
	timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := socket.SetSendTimeout(&timeout); err != nil {
		socket.Close()
		return nil, fmt.Errorf("set netlink send timeout: %w", err)
	}
	if err := socket.SetReceiveTimeout(&timeout); err != nil {
		socket.Close()
		return nil, fmt.Errorf("set netlink receive timeout: %w", err)
	}
	return &nl.SocketHandle{Socket: socket}, nil
}

// Close closes the netlink sockets. Addresses and sysctls stay as they are: a
// daemon that stops leaves the machine forwarding.
func (h *Host) Close() error {
	h.links.Close()
	h.route.Close()
	return nil
}
