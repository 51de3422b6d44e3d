package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// needSCTP skips a test where the kernel has no SCTP. PONTOON_REQUIRE_PRIV
// does not forbid that: a kernel is not a privilege, and `make test-vm` boots
// one that has it and insists.
func needSCTP(t testing.TB) {
	t.Helper()
	roottest.Need(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if err != nil {
		t.Skipf("no SCTP on this kernel (%v): make test-vm boots one that has it", err)
	}
	unix.Close(fd)
}

// sctpSocket makes a one-to-one style socket (RFC 6458, section 4) on a host,
// bound to the host's one address: an association with several addresses is
// more than a load balancer can follow.
func sctpSocket(h *lab.Host, port uint16) (fd int, err error) {
	err = h.Do(func() error {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.Bind(fd, sockaddr(netip.AddrPortFrom(h.Addr(), port))); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("bind", err)
		}
		return nil
	})
	if err != nil {
		return -1, fmt.Errorf("sctp socket on %s: %w", h.Name(), err)
	}
	return fd, nil
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	v4, ok := sa.(*unix.SockaddrInet4)
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}

// sctpConn is one end of an association.
type sctpConn struct {
	*os.File
	local, peer netip.AddrPort
}

// newSCTPConn takes fd, which is connected.
func newSCTPConn(fd int) (*sctpConn, error) {
	local, lerr := unix.Getsockname(fd)
	peer, perr := unix.Getpeername(fd)
	if err := errors.Join(lerr, perr); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("ask for an association's addresses: %w", err)
	}
	return &sctpConn{File: os.NewFile(uintptr(fd), "sctp"), local: addrPort(local), peer: addrPort(peer)}, nil
}

// abort ends the association by an ABORT instead of a SHUTDOWN.
func (c *sctpConn) abort() error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	return errors.Join(err, serr, c.Close())
}

// associate opens an association from a host.
func associate(t testing.TB, from *lab.Host, to netip.AddrPort) *sctpConn {
	t.Helper()
	c, err := dialSCTP(within(t, 20*time.Second), from, to)
	if err != nil {
		t.Fatalf("associate %s with %s: %v", from.Name(), to, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func dialSCTP(ctx context.Context, from *lab.Host, to netip.AddrPort) (*sctpConn, error) {
	fd, err := sctpSocket(from, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	err = lab.WaitFor(ctx, "the association", func(context.Context) error {
		code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			return fmt.Errorf("%w: %w", lab.ErrGiveUp, syscall.Errno(code))
		}
		_, perr := unix.Getpeername(fd)
		return errors.Join(err, perr)
	})
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return newSCTPConn(fd)
}

// sctpListener accepts associations on a host.
type sctpListener struct{ *os.File }

func listenSCTP(h *lab.Host, port uint16) (*sctpListener, error) {
	fd, err := sctpSocket(h, port)
	if err != nil {
		return nil, err
	}
	// The poller may see the socket only when it listens: before, it counts as
	// hung up.
	if err := unix.Listen(fd, 16); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("listen", err)
	}
	return &sctpListener{os.NewFile(uintptr(fd), "sctp listener")}, nil
}

func (l *sctpListener) accept() (*sctpConn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var aerr error
	err = raw.Read(func(lfd uintptr) (done bool) {
		fd, _, aerr = unix.Accept4(int(lfd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return !errors.Is(aerr, unix.EAGAIN)
	})
	if err := errors.Join(err, aerr); err != nil {
		return nil, err
	}
	return newSCTPConn(fd)
}

// softwareSums has a host compute the checksum of each packet it sends. By
// default the two ends of a veth leave it out, and nobody notices a wrong one.
func softwareSums(t testing.TB, h *lab.Host) {
	t.Helper()
	const setTxCsum = 0x17 // ETHTOOL_STXCSUM of linux/ethtool.h
	type value struct{ cmd, data uint32 }
	type request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	for _, iface := range h.Interfaces() {
		err := h.Do(func() error {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return os.NewSyscallError("socket", err)
			}
			defer unix.Close(fd)
			v := &value{cmd: setTxCsum}
			r := request{data: unsafe.Pointer(v)}
			copy(r.name[:], iface)
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&r)))
			runtime.KeepAlive(v)
			if errno != 0 {
				return os.NewSyscallError("ioctl", errno)
			}
			return nil
		})
		if err != nil {
			t.Fatalf("switch checksum offload of %s on %s off: %v", iface, h.Name(), err)
		}
	}
}
