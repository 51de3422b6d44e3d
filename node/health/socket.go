package health

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// prepared is what the probes of a check need and what is the same for all of them.
type prepared struct {
	request  []byte
	expect   statuses
	tls      *tls.Config
	to, from unix.Sockaddr
}

// sockaddr is an address for the kernel. A zone is the name of an interface.
func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	sa := &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
	if zone := a.Addr().Zone(); zone != "" {
		if i, err := net.InterfaceByName(zone); err == nil {
			sa.ZoneId = uint32(i.Index)
		}
	}
	return sa
}

func addrOf(sa unix.Sockaddr) netip.Addr {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(sa.Addr)
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(sa.Addr).Unmap()
	}
	return netip.Addr{}
}

// ends fills in the addresses of a check.
func (c *check) ends() (to, from unix.Sockaddr) {
	if c.prepared.to == nil {
		c.prepared.to = sockaddr(c.addr)
		if c.probe.Source.IsValid() {
			c.prepared.from = sockaddr(netip.AddrPortFrom(c.probe.Source, 0))
		}
	}
	return c.prepared.to, c.prepared.from
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// dial opens the op's own socket, begins to connect it, and lets the loop watch it.
func (l *loop) dial(o *op, sotype int, events uint32) error {
	to, _ := o.check.ends()
	fd, err := unix.Socket(family(o.check.addr.Addr()), sotype|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	o.fd = fd
	if sotype == unix.SOCK_STREAM {
		// Closing resets: no connection of a probe is left in TIME_WAIT, at either end.
		_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
		// A port that bind gives serves many peers. Not so for datagrams: the kernel would connect two
		// such sockets to the same peer, and hand the answer for one to the other; and until it is
		// connected a socket would take datagrams from whoever else has the port.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err := o.bind(l.ports); err != nil {
		return err
	}
	if err := unix.Connect(fd, to); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return fmt.Errorf("connect: %w", err)
	}
	return l.watch(fd, events, o)
}

// errSource: the source address of a probe cannot be used.
var errSource = errors.New("source address")

// bindTries is how many ports are tried that may be in use.
const bindTries = 8

// bind gives the op's socket the source and the port that it must have.
func (o *op) bind(may ports) error {
	_, from := o.check.ends()
	port := may.pick()
	if from == nil && port == 0 {
		return nil
	}
	if port == 0 {
		// The port is chosen when the peer is known, so that the same one serves many peers.
		_ = unix.SetsockoptInt(o.fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if err := unix.Bind(o.fd, from); err != nil {
			return fmt.Errorf("bind to %w: %w", errSource, err)
		}
		return nil
	}
	var err error
	for range bindTries {
		err = unix.Bind(o.fd, sockaddr(netip.AddrPortFrom(o.check.source(), port)))
		if !errors.Is(err, unix.EADDRINUSE) {
			break
		}
		port = may.pick()
	}
	if err != nil {
		return fmt.Errorf("bind to %w: %w", errSource, err)
	}
	return nil
}

// source is the address that a check's sockets are bound to.
func (c *check) source() netip.Addr {
	switch {
	case c.probe.Source.IsValid():
		return c.probe.Source
	case c.addr.Addr().Is4():
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// connected tells how the op's connection attempt ended, once the socket is writable.
func (o *op) connected(events uint32) error {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if err := pendingError(o.fd); err != nil {
			return err
		}
	}
	// A socket that asks for a port of this machine's own that nobody listens on may, by bad luck, have
	// got that port itself, and then is connected to itself.
	self, err := unix.Getsockname(o.fd)
	if err != nil {
		return err
	}
	if port(self) == o.check.addr.Port() && addrOf(self) == o.check.addr.Addr() {
		return unix.ECONNREFUSED
	}
	return nil
}

func port(sa unix.Sockaddr) uint16 {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(sa.Port)
	case *unix.SockaddrInet6:
		return uint16(sa.Port)
	}
	return 0
}

// pendingError is the error that waits on a socket; nil: none.
func pendingError(fd int) error {
	number, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if number != 0 {
		return unix.Errno(number)
	}
	return nil
}

// ours are errors of this node: they tell nothing about the endpoint.
var ours = []error{
	unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EAGAIN,
	unix.EPERM, unix.EACCES, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT, unix.EINVAL, unix.ENODEV, context.Canceled,
}

// plain are errors whose own words do not say enough to somebody who does not know them.
var plain = map[error]string{
	unix.ECONNREFUSED: "connection refused",
	unix.ECONNRESET:   "connection reset",
	unix.EPIPE:        "connection closed",
	unix.EHOSTUNREACH: "no route to host",
	unix.ENETUNREACH:  "network is unreachable",
	unix.ETIMEDOUT:    "no answer",
	unix.ENOPROTOOPT:  "protocol is not spoken there",
	unix.EHOSTDOWN:    "host is down",
	io.EOF:            "connection closed before an answer",
}

// judge makes an outcome of an error.
func (o *op) judge(err error) outcome { return o.check.judge(err) }

func (c *check) judge(err error) outcome {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		out := failed("no answer in %v", c.probe.Timeout)
		out.late = true
		return out
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) && errors.Is(err, errSource) {
		return void("%v is not an address of this node", c.probe.Source)
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE) { // the port, just now
		return outcome{void: true, again: true}
	}
	for _, e := range ours {
		if errors.Is(err, e) {
			return void("this node cannot send the probe: %v", err)
		}
	}
	var number unix.Errno
	if errors.As(err, &number) {
		if words, ok := plain[number]; ok {
			return failed("%s", words)
		}
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return failed("%s", plain[io.EOF])
	}
	return failed("%v", err)
}

// noApplicationProtocol is the alert of who speaks none of the protocols offered (RFC 7301, 3.2).
const noApplicationProtocol tls.AlertError = 120

// tlsWords makes an outcome of an error of TLS.
func (c *check) tlsWords(err error) outcome {
	var cert *tls.CertificateVerificationError
	var header tls.RecordHeaderError
	var remote *net.OpError
	var name x509.HostnameError
	switch {
	case errors.As(err, &name):
		return failed("certificate: it is not for %s", name.Host)
	case errors.As(err, &cert):
		return failed("certificate: %s", trim(cert.Err.Error()))
	case errors.As(err, &header):
		return failed("no TLS is spoken there")
	case errors.As(err, &remote) && remote.Op == "remote error": // an alert
		if remote.Err.Error() == noApplicationProtocol.Error() {
			return failed("no HTTP/2 is spoken there")
		}
		return failed("TLS was refused: %s", trim(remote.Err.Error()))
	}
	return c.judge(err)
}

// trim takes away which library says so.
func trim(words string) string {
	for _, prefix := range []string{"x509: ", "tls: "} {
		if len(words) > len(prefix) && words[:len(prefix)] == prefix {
			words = words[len(prefix):]
		}
	}
	return words
}

// slots numbers the probes that share a socket, so that answers find theirs.
type slots struct {
	low  uint16 // the least number
	size int    // how many there are
	next int
	ops  map[uint16]*op
}

func newSlots(low uint16, size int) *slots {
	return &slots{low: low, size: size, next: rand.IntN(size), ops: map[uint16]*op{}}
}

// give finds a number for o, one that was not used for long and that may be; false: there is none.
func (s *slots) give(o *op, may ports) bool {
	for range s.size {
		n := s.low + uint16(s.next)
		s.next = (s.next + 1) % s.size
		if s.ops[n] == nil && !may.avoids(n) {
			s.ops[n], o.slots, o.slot = o, s, n
			return true
		}
	}
	return false
}

func (s *slots) free(n uint16) { delete(s.ops, n) }

// sockets are those that many probes share. They are opened by the first probe that needs them.
type sockets struct {
	icmp  [2]*icmpSocket // IPv4, IPv6
	sctp  [2]*sctpSocket
	paths [2]*pathSocket
	route *routeSocket
}

func (s *sockets) close() {
	for i := range 2 {
		if s.icmp[i] != nil {
			_ = unix.Close(s.icmp[i].fd)
		}
		if s.sctp[i] != nil {
			_ = unix.Close(s.sctp[i].fd)
		}
		if s.paths[i] != nil {
			s.paths[i].close()
		}
	}
	if s.route != nil {
		s.route.close()
	}
	*s = sockets{}
}

// version is 0 for IPv4 and 1 for IPv6.
func version(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// drain reads packets from a shared socket until there are no more, or very many: a flood must not keep
// the loop from everything else. Of what is left the loop hears again.
func (l *loop) drain(fd int, take func(packet []byte, from netip.Addr)) {
	for range 512 {
		n, from, err := unix.Recvfrom(fd, l.buf, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return // EAGAIN, or the error of one packet that the socket also reports by itself
		}
		take(l.buf[:n], addrOf(from))
	}
}

// dialHelper opens a connection for a probe with a goroutine of its own.
func (c *check) dialHelper(ctx context.Context, may ports) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	var conn net.Conn
	var err error
	for range bindTries {
		port := may.pick()
		if port != 0 || c.probe.Source.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.source(), port))
		}
		if conn, err = d.DialContext(ctx, "tcp", c.addr.String()); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if errors.Is(err, unix.EADDRNOTAVAIL) && c.probe.Source.IsValid() {
		return nil, fmt.Errorf("bind to %w: %w", errSource, err)
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // as in dial
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	// Reading and writing know of no context, and a timeout may be hours.
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	return helperConn{conn, stop}, nil
}

// helperConn is a connection that ends with a context until it is closed.
type helperConn struct {
	net.Conn
	stop func() bool
}

// Close is net.Conn's.
func (c helperConn) Close() error {
	c.stop()
	return c.Conn.Close()
}

// tlsConfig is how a check speaks TLS. Sessions are taken up again where the endpoint allows it: a full
// handshake each time costs both sides ten times as much.
func (c *check) tlsConfig(protocols ...string) *tls.Config {
	if c.prepared.tls == nil {
		c.prepared.tls = &tls.Config{
			ServerName:         c.serverName(),
			InsecureSkipVerify: !c.probe.TLSVerify,
			NextProtos:         protocols,
			ClientSessionCache: tls.NewLRUClientSessionCache(1),
		}
	}
	return c.prepared.tls
}

func (c *check) serverName() string {
	host := c.probe.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return cmp.Or(c.probe.ServerName, host, c.addr.Addr().String())
}

// noAnswer is what is said when the time of an op is over.
func (o *op) noAnswer() outcome {
	if o.stage == stageConnected {
		return failed("connected, but no answer in %v", o.check.probe.Timeout)
	}
	return failed("no answer in %v", o.check.probe.Timeout)
}

// nextDeadline gives an op d more time, but not beyond its end; false: that is reached.
func (l *loop) nextDeadline(o *op, d time.Duration) bool {
	if l.clock.lived >= o.end {
		return false
	}
	l.deadlines.move(o, min(l.clock.lived+d, o.end))
	return true
}
