package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Dial opens a TCP connection from the host. Only the making of the socket
// visits the namespace; the waiting is done by the runtime's poller, so that
// hundreds of connections may be opened at once without a thread for each.
// When ctx ends first its error is returned.
func (h *Host) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := h.dial(ctx, to)
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("dial %s from %s: %w", to, h.spec.name, err)
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	family, sa, err := sockaddr(to)
	if err != nil {
		return nil, err
	}
	fd := -1
	err = h.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	// Connect before the poller sees the socket: an unconnected one counts as
	// hung up.
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	f := os.NewFile(uintptr(fd), "tcp:"+to.String())
	defer f.Close() // FileConn works on a duplicate
	stop := context.AfterFunc(ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := finishConnect(f); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// sockaddr is an address as the kernel takes it. Link-local ones would need an
// interface number of the host's and are refused.
func sockaddr(to netip.AddrPort) (family int, sa unix.Sockaddr, err error) {
	addr, port := to.Addr().Unmap(), int(to.Port())
	switch {
	case !addr.IsValid() || addr.Zone() != "" || addr.IsLinkLocalUnicast() && addr.Is6():
		return 0, nil, errors.New("want an IPv4 address or an IPv6 address that needs no interface")
	case addr.Is4():
		return unix.AF_INET, &unix.SockaddrInet4{Port: port, Addr: addr.As4()}, nil
	default:
		return unix.AF_INET6, &unix.SockaddrInet6{Port: port, Addr: addr.As16()}, nil
	}
}

// finishConnect waits until the handshake is over, and returns its outcome.
func finishConnect(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var outcome error
	err = raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err != nil {
			outcome = os.NewSyscallError("getsockopt", err)
			return true
		}
		if code != 0 {
			outcome = os.NewSyscallError("connect", syscall.Errno(code))
			return true
		}
		// No error may also mean: still at it. Only a peer's name proves it.
		_, err = unix.Getpeername(int(fd))
		return err == nil
	})
	if err != nil {
		return err
	}
	return outcome
}
