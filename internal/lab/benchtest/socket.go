package benchtest

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The two ends of the connection benchmark are event loops over plain
// sockets, one thread each: the language's own poller would spend more on a
// connection than some of the contenders do.

// poller waits for many sockets at once (epoll(7)).
type poller struct {
	fd     int
	events []unix.EpollEvent
}

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	return &poller{fd: fd, events: make([]unix.EpollEvent, 256)}, nil
}

func (p *poller) close() { unix.Close(p.fd) }

// add watches fd for events, which come back with tag.
func (p *poller) add(fd int, tag int32, events uint32) error {
	ev := unix.EpollEvent{Events: events, Fd: tag}
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, fd, &ev))
}

// pollMillis is how long a loop waits before it looks at its context again.
const pollMillis = 50

// wait returns what has happened, nothing after pollMillis.
func (p *poller) wait() ([]unix.EpollEvent, error) {
	n, err := unix.EpollWait(p.fd, p.events, pollMillis)
	if err == unix.EINTR {
		return nil, nil
	}
	if err != nil {
		return nil, os.NewSyscallError("epoll_wait", err)
	}
	return p.events[:n], nil
}

func sockaddr(a netip.AddrPort) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
}

// socket opens an IPv4 socket in the thread's namespace.
func socket(kind int) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	return fd, os.NewSyscallError("socket", err)
}

// listenTCP opens a listener on all addresses.
func listenTCP(port uint16) (int, error) {
	fd, err := socket(unix.SOCK_STREAM | unix.SOCK_NONBLOCK)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)})
	}
	if err == nil {
		err = unix.Listen(fd, 4096)
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen on tcp port %d: %w", port, err)
	}
	return fd, nil
}
