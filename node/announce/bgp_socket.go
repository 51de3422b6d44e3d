package announce

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// dialTimeout bounds one attempt to connect: a neighbour on the link answers within
// milliseconds, and a lost SYN is repeated after a second.
const dialTimeout = 2 * time.Second

// maxTTL is what TTL security sends and expects (RFC 5082).
const maxTTL = 255

// watched is a connection to a neighbour that remembers how it was spoken on, so
// that its end can be explained.
type watched struct {
	*net.TCPConn
	mine    bool // opened from here
	mu      sync.Mutex
	in, out transcript
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.TCPConn.Read(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.in.add(b[:n])
	return n, err
}

func (w *watched) Write(b []byte) (int, error) {
	n, err := w.TCPConn.Write(b)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.out.add(b[:n])
	return n, err
}

// ending is what the connection knows of its end so far.
func (w *watched) ending() ending {
	w.mu.Lock()
	defer w.mu.Unlock()
	return ending{opened: w.in.open, openAS: w.in.openAS, got: w.in.notified, sent: w.out.notified}
}

// remote is the neighbour's address.
func (w *watched) remote() netip.Addr { return addrOf(w.RemoteAddr()) }

func addrOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// collides reports whether a connection opened from here has to give way to one that
// the neighbour opened at the same time. The one with the higher address keeps its own:
// RFC 4271, section 6.8, compares router ids, which are not known before both have
// said OPEN; that is too late for two ends that wait for each other.
func (w *watched) collides(with *watched) bool {
	return w.mine && !w.ending().opened && with.remote().Compare(addrOf(w.LocalAddr())) > 0
}

// dial opens a connection to a neighbour the way it wants to be connected to.
func dial(ctx context.Context, p BGPPeer) (*watched, error) {
	d := net.Dialer{
		Timeout: dialTimeout, KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) error { return prepare(c, p) },
	}
	d.SetMultipathTCP(false) // which knows no MD5 signatures
	if p.Source.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.Source, 0))
	}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(p.Address, p.Port).String())
	if err != nil {
		return nil, err
	}
	w, err := watch(conn)
	if err == nil {
		w.mine = true
	}
	return w, err
}

func watch(conn net.Conn) (*watched, error) {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		_ = conn.Close()
		return nil, fmt.Errorf("connection is a %T", conn)
	}
	return &watched{TCPConn: tcp}, nil
}

// prepare sets what has to be set before the first packet goes out.
func prepare(c syscall.RawConn, p BGPPeer) error {
	return control(c, func(fd int) error {
		ttl := 0 // the kernel's
		switch {
		case p.TTLSecurity:
			ttl = maxTTL
		case p.external():
			ttl = max(1, int(p.Multihop))
		}
		if err := setTTL(fd, p.Address, ttl); err != nil {
			return err
		}
		if p.TTLSecurity {
			if err := setMinTTL(fd, p.Address, maxTTL); err != nil {
				return err
			}
		}
		if p.Password == "" {
			return nil
		}
		return setKey(fd, p.Address, p.Password)
	})
}

// listenBGP listens on every address of one family. Connections are accepted with
// TTL 255, because a neighbour may insist on it before it is known which one it is.
func listenBGP(ctx context.Context, v4 bool, port uint16) (*net.TCPListener, error) {
	network, any := "tcp6", netip.IPv6Unspecified()
	if v4 {
		network, any = "tcp4", netip.IPv4Unspecified()
	}
	lc := net.ListenConfig{
		KeepAlive: -1,
		Control: func(_, _ string, c syscall.RawConn) error {
			return control(c, func(fd int) error { return setTTL(fd, any, maxTTL) })
		},
	}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network, netip.AddrPortFrom(any, port).String())
	if err != nil {
		return nil, err
	}
	tcp, ok := l.(*net.TCPListener)
	if !ok {
		_ = l.Close()
		return nil, fmt.Errorf("listener is a %T", l)
	}
	return tcp, nil
}

// noFamily reports whether listening failed because the machine does not have the family.
func noFamily(err error) bool {
	return errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// expectKey makes a listener take connections from an address only with signatures
// of this key; an empty one takes that back.
func expectKey(l *net.TCPListener, from netip.Addr, key string) error {
	c, err := l.SyscallConn()
	if err != nil {
		return err
	}
	err = control(c, func(fd int) error { return setKey(fd, from, key) })
	if key == "" && errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

func control(c syscall.RawConn, set func(fd int) error) error {
	var inner error
	if err := c.Control(func(fd uintptr) { inner = set(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func setTTL(fd int, of netip.Addr, ttl int) error {
	if ttl == 0 {
		return nil
	}
	level, option := unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	if of.Is4() {
		level, option = unix.IPPROTO_IP, unix.IP_TTL
	}
	if err := unix.SetsockoptInt(fd, level, option, ttl); err != nil {
		return fmt.Errorf("set ttl: %w", err)
	}
	return nil
}

func setMinTTL(fd int, of netip.Addr, ttl int) error {
	level, option := unix.IPPROTO_IPV6, unix.IPV6_MINHOPCOUNT
	if of.Is4() {
		level, option = unix.IPPROTO_IP, unix.IP_MINTTL
	}
	if err := unix.SetsockoptInt(fd, level, option, ttl); err != nil {
		return fmt.Errorf("set least ttl: %w", err)
	}
	return nil
}

// setKey sets the key of TCP MD5 signatures (RFC 2385) with one neighbour. The address
// lies in the option as in a sockaddr: behind the port, and for IPv6 the flow label.
func setKey(fd int, with netip.Addr, key string) error {
	sig := unix.TCPMD5Sig{Keylen: uint16(len(key))}
	copy(sig.Key[:], key)
	if with.Is4() {
		a := with.As4()
		sig.Addr.Family = unix.AF_INET
		copy(sig.Addr.Data[2:], a[:])
	} else {
		a := with.As16()
		sig.Addr.Family = unix.AF_INET6
		copy(sig.Addr.Data[6:], a[:])
	}
	if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, &sig); err != nil {
		return fmt.Errorf("set tcp md5 key: %w", err)
	}
	return nil
}

// addressTowards is a global address of this node, of the given family, on the link
// that leads to a neighbour; zero if there is none. No packet is sent.
func addressTowards(p BGPPeer, v4 bool) netip.Addr {
	local := p.Source
	if !local.IsValid() {
		c, err := net.Dial("udp", netip.AddrPortFrom(p.Address, p.Port).String())
		if err != nil {
			return netip.Addr{}
		}
		if a, ok := c.LocalAddr().(*net.UDPAddr); ok {
			local = a.AddrPort().Addr().Unmap()
		}
		_ = c.Close()
	}
	links, err := net.Interfaces()
	if err != nil {
		return netip.Addr{}
	}
	for _, link := range links {
		all, err := link.Addrs()
		if err != nil {
			continue
		}
		var here bool
		var found netip.Addr
		for _, a := range all {
			n, ok := a.(*net.IPNet)
			if !ok {
				continue
			}
			addr, _ := netip.AddrFromSlice(n.IP)
			addr = addr.Unmap()
			here = here || addr == local
			// An address without a network is rather a VIP, and may go elsewhere.
			if ones, bits := n.Mask.Size(); ones < bits && !found.IsValid() && addr.Is4() == v4 && addr.IsGlobalUnicast() {
				found = addr
			}
		}
		if here {
			return found
		}
	}
	return netip.Addr{}
}
