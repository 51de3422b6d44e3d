package detect

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errNoFamily: this host does not speak the family at all.
var errNoFamily = errors.New("address family is not supported by this host")

// inbound is where a packet came from, and how.
type inbound struct {
	n        int
	from, to netip.Addr
	iface    string
	ttl      int
	at       time.Time // when the kernel got it, by the clock of the day; zero: unknown
}

// receiver is the socket all control packets of one family come in by.
type receiver struct {
	conn *net.UDPConn
	raw  syscall.RawConn
	oob  []byte

	mu    sync.Mutex // between read setting its deadline and wake
	woken bool

	names map[int]string // interfaces by index
}

func listen(port uint16, v6 bool) (*receiver, error) {
	network := "udp4"
	if v6 {
		network = "udp6"
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error {
			// Only more exact: where it cannot be had a packet came when it was read.
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
			if v6 {
				return errors.Join(
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1),
					unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1))
			}
			return errors.Join(
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVTTL, 1),
				unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
		})
	}}
	pc, err := lc.ListenPacket(context.Background(), network, ":"+strconv.Itoa(int(port)))
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil, errNoFamily
	}
	if err != nil {
		return nil, fmt.Errorf("listen on UDP port %d: %w", port, err)
	}
	conn := pc.(*net.UDPConn)
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen on UDP port %d: %w", port, err), conn.Close())
	}
	return &receiver{conn: conn, raw: raw, oob: make([]byte, 256), names: map[int]string{}}, nil
}

func control(c syscall.RawConn, set func(fd int) error) error {
	var failed error
	if err := c.Control(func(fd uintptr) { failed = set(int(fd)) }); err != nil {
		return err
	}
	return failed
}

// read waits for a packet until deadline (zero: for ever) or wake.
func (r *receiver) read(buf []byte, deadline time.Time) (inbound, error) {
	r.mu.Lock()
	if r.woken {
		r.woken = false
		r.mu.Unlock()
		return inbound{}, os.ErrDeadlineExceeded
	}
	err := r.conn.SetReadDeadline(deadline)
	r.mu.Unlock()
	if err != nil {
		return inbound{}, err
	}
	n, oobn, _, from, err := r.conn.ReadMsgUDPAddrPort(buf, r.oob)
	if err != nil {
		return inbound{}, err
	}
	return r.describe(n, r.oob[:oobn], from.Addr()), nil
}

// wake ends a read, or the next one.
func (r *receiver) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.woken = true
	_ = r.conn.SetReadDeadline(time.Unix(1, 0))
}

// drain reads what is there without waiting.
func (r *receiver) drain(buf []byte, take func(inbound)) {
	r.mu.Lock()
	_ = r.conn.SetReadDeadline(time.Time{})
	r.mu.Unlock()
	_ = r.raw.Read(func(fd uintptr) bool {
		for {
			n, oobn, _, from, err := unix.Recvmsg(int(fd), buf, r.oob, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return true
			}
			take(r.describe(n, r.oob[:oobn], sockaddr(from)))
		}
	})
}

func (r *receiver) close() error { return r.conn.Close() }

func sockaddr(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr)
	}
	return netip.Addr{}
}

// describe reads what the kernel says beside a packet.
func (r *receiver) describe(n int, oob []byte, from netip.Addr) inbound {
	in := inbound{n: n, from: from.Unmap()}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return in
	}
	for _, m := range messages {
		switch {
		case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= int(unsafe.Sizeof(unix.Timespec{})):
			ts := (*unix.Timespec)(unsafe.Pointer(&m.Data[0]))
			in.at = time.Unix(ts.Unix())
		case len(m.Data) >= 4 && (m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL ||
			m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT):
			in.ttl = int(*(*int32)(unsafe.Pointer(&m.Data[0])))
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			info := (*unix.Inet4Pktinfo)(unsafe.Pointer(&m.Data[0]))
			in.to, in.iface = netip.AddrFrom4(info.Addr), r.name(int(info.Ifindex))
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			info := (*unix.Inet6Pktinfo)(unsafe.Pointer(&m.Data[0]))
			in.to, in.iface = netip.AddrFrom16(info.Addr), r.name(int(info.Ifindex))
		}
	}
	return in
}

// name is kept: asking the kernel for each packet would cost more than the
// packet. An index is not given twice while a machine is up, and a renamed
// interface gets its new name when its sessions are set anew.
func (r *receiver) name(index int) string {
	if name, ok := r.names[index]; ok {
		return name
	}
	i, err := net.InterfaceByIndex(index)
	if err != nil {
		return ""
	}
	r.names[index] = i.Name
	return i.Name
}

// sender is a session's own socket: its source port is the same for the life of
// the session and that of no other (RFC 5881, 4).
type sender struct {
	conn *net.UDPConn
	to   netip.AddrPort
}

// Source ports of control packets (RFC 5881, 4).
const (
	sourcePortMin = 49152
	sourcePorts   = 65536 - sourcePortMin
)

func dial(key Key, port uint16) (*sender, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		return control(c, func(fd int) error { return prepare(fd, key) })
	}}
	network := "udp4"
	if key.Local.Is6() {
		network = "udp6"
	}
	local := key.Local
	if local.IsLinkLocalUnicast() && local.Is6() {
		local = local.WithZone(key.Interface)
	}
	remote := key.Remote
	if remote.IsLinkLocalUnicast() && remote.Is6() {
		remote = remote.WithZone(key.Interface)
	}
	var err error
	for range 16 {
		var pc net.PacketConn
		from := netip.AddrPortFrom(local, uint16(sourcePortMin+rand.IntN(sourcePorts)))
		pc, err = lc.ListenPacket(context.Background(), network, from.String())
		if err == nil {
			return &sender{conn: pc.(*net.UDPConn), to: netip.AddrPortFrom(remote, port)}, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return nil, fmt.Errorf("send from %v on %s: %w", key.Local, key.Interface, err)
}

// classSelector6 is the DSCP of network control (RFC 4594, 3.1), as TOS byte.
const classSelector6 = 0xc0

func prepare(fd int, key Key) error {
	err := unix.BindToDevice(fd, key.Interface)
	if key.Local.Is6() {
		return errors.Join(err,
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_TCLASS, classSelector6))
	}
	return errors.Join(err,
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TTL, 255),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_TOS, classSelector6))
}

func (s *sender) send(b []byte) error {
	_, err := s.conn.WriteToUDPAddrPort(b, s.to)
	return err
}

func (s *sender) close() { _ = s.conn.Close() }

// transient tells whether the socket is still good after this error: the way out
// may come back, and refusals are old news from the neighbour.
func transient(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ECONNREFUSED, unix.ENOBUFS, unix.EAGAIN, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
