package transport

import (
	"errors"
	"fmt"
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// The differentiated services code points (RFC 2474) of what goes over the one
// port. TLS hides from the network which subsystem a connection belongs to; this
// does not, so that an operator's switches can treat the few packets on which the
// cluster's agreement hangs as they treat a routing protocol's, and let the bulk
// of the flow records stand behind them.
const (
	DSCPRaft        = 48 // CS6, network control (RFC 4594, 3.2)
	DSCPReplication = 10 // AF11, high-throughput data (RFC 4594, 4.8)
	DSCPDefault     = 0  // the API, joining, the CA key
)

// DSCPOf is the code point of the connections that speak the given protocol.
func DSCPOf(alpn string) int {
	switch alpn {
	case ALPNRaft:
		return DSCPRaft
	case ALPNReplication:
		return DSCPReplication
	}
	return DSCPDefault
}

// markRaw sets the code point of what a socket sends; network is "tcp4" or "tcp6".
// An IPv6 socket that carries IPv4 takes the option of IPv4.
func markRaw(network string, raw syscall.RawConn, dscp int) error {
	const ecnBits = 2 // the two low bits of the field belong to ECN (RFC 3168)
	var failed error
	err := raw.Control(func(fd uintptr) {
		if network == "tcp4" {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, dscp<<ecnBits)
			return
		}
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, dscp<<ecnBits)
	})
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("set code point %d: %w", dscp, err)
	}
	return nil
}

// markConn sets the code point on a connection that is already there. Anything
// but TCP (a pipe in a test) is left as it is.
func markConn(conn net.Conn, dscp int) error {
	tcp, ok := conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("set code point %d: %w", dscp, err)
	}
	network := "tcp4"
	if a, ok := tcp.LocalAddr().(*net.TCPAddr); ok && a.IP.To4() == nil {
		network = "tcp6"
	}
	return markRaw(network, raw, dscp)
}

// dialer opens connections whose packets, from the first on, have the code point
// of the protocol.
func dialer(alpn string) *net.Dialer {
	dscp := DSCPOf(alpn)
	return &net.Dialer{Control: func(network, _ string, raw syscall.RawConn) error {
		if dscp == DSCPDefault {
			return nil
		}
		return markRaw(network, raw, dscp)
	}}
}
