package detect

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// echoSocket sends probes to one neighbour and reads what comes back. It is
// connected, so that nothing else is read and the neighbour's kernel can refuse.
type echoSocket struct {
	conn *net.UDPConn
	raw  syscall.RawConn
}

func dialEcho(key Key, port uint16) (*echoSocket, error) {
	zoned := func(a netip.Addr) netip.Addr {
		if a.Is6() && a.IsLinkLocalUnicast() {
			return a.WithZone(key.Interface)
		}
		return a
	}
	network := "udp4"
	if key.Local.Is6() {
		network = "udp6"
	}
	var err error
	for range 16 {
		from := netip.AddrPortFrom(zoned(key.Local), uint16(sourcePortMin+rand.IntN(sourcePorts)))
		d := net.Dialer{
			LocalAddr: net.UDPAddrFromAddrPort(from),
			Control: func(_, _ string, c syscall.RawConn) error {
				return control(c, func(fd int) error { return prepare(fd, key) })
			},
		}
		var conn net.Conn
		conn, err = d.DialContext(context.Background(), network, netip.AddrPortFrom(zoned(key.Remote), port).String())
		if err == nil {
			s := &echoSocket{conn: conn.(*net.UDPConn)}
			if s.raw, err = s.conn.SyscallConn(); err != nil {
				s.close()
			}
			return s, err
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, fmt.Errorf("probe %v from %v on %s: %w", key.Remote, key.Local, key.Interface, err)
}

func (s *echoSocket) send(b []byte) error {
	_, err := s.conn.Write(b)
	return err
}

// read waits for an answer until deadline.
func (s *echoSocket) read(buf []byte, deadline time.Time) (int, error) {
	if err := s.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	return s.conn.Read(buf)
}

// drain takes what has arrived without waiting.
func (s *echoSocket) drain(buf []byte, take func([]byte, error)) {
	_ = s.conn.SetReadDeadline(time.Time{})
	_ = s.raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if errors.Is(err, unix.EAGAIN) {
				return true
			}
			take(buf[:max(n, 0)], err)
			if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
				return true
			}
		}
	})
}

// close also ends a read.
func (s *echoSocket) close() { _ = s.conn.Close() }
