package bpf

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

// pokesPerSweep bounds how many segments one sweep sends.
const pokesPerSweep = 2048

// poker makes the sides of a connection that was ended speak, so that they can be told. It sends
// an unacceptable segment, which RFC 9293, 3.10.7.4 has answered with an acknowledgement; that
// one meets the doomed flow and is answered by a reset with the number its sender expects.
// The zero poker sends nothing. Methods may be called concurrently.
type poker struct {
	v4, v6 int // raw sockets; 0: none
}

// open opens the sockets, in the network namespace of the calling thread.
func (p *poker) open() error {
	var errs []error
	for _, s := range []struct {
		fd     *int
		family int
	}{{&p.v4, unix.AF_INET}, {&p.v6, unix.AF_INET6}} {
		// IPPROTO_RAW: the IP header comes with the packet, whatever its source.
		fd, err := unix.Socket(s.family, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_RAW)
		if err != nil {
			errs = append(errs, fmt.Errorf("open raw socket: %w", err))
			continue
		}
		*s.fd = fd
	}
	return errors.Join(errs...)
}

func (p *poker) close() error {
	var errs []error
	for _, fd := range []*int{&p.v4, &p.v6} {
		if *fd > 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = 0
	}
	return errors.Join(errs...)
}

// poke is who is to be sent an old segment, and as if by whom.
type poke struct {
	from, to netip.AddrPort
}

// send never waits.
func (p *poker) send(what poke) error {
	src, dst := what.from, what.to
	segment := oldSegment(src, dst, rand.Uint32(), rand.Uint32())
	var err error
	switch {
	case dst.Addr().Is4() && p.v4 > 0:
		err = unix.Sendto(p.v4, segment, unix.MSG_NOSIGNAL, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
	case dst.Addr().Is6() && p.v6 > 0:
		err = unix.Sendto(p.v6, segment, unix.MSG_NOSIGNAL, &unix.SockaddrInet6{Addr: dst.Addr().As16()})
	}
	if err != nil {
		return fmt.Errorf("send to %s: %w", dst, err)
	}
	return nil
}

const (
	ipv4Header = 20
	ipv6Header = 40
	tcpHeader  = 20
	pokeHops   = 64
)

// oldSegment is an empty TCP segment with its IP header. Its numbers are drawn: that both lie in
// the window of the receiver happens less than once in a million.
func oldSegment(src, dst netip.AddrPort, seq, ack uint32) []byte {
	tcp := make([]byte, tcpHeader)
	be16(tcp[0:], src.Port())
	be16(tcp[2:], dst.Port())
	be16(tcp[4:], uint16(seq>>16))
	be16(tcp[6:], uint16(seq))
	be16(tcp[8:], uint16(ack>>16))
	be16(tcp[10:], uint16(ack))
	tcp[12] = tcpHeader / 4 << 4
	tcp[13] = 0x10 // ACK
	from, to := src.Addr().AsSlice(), dst.Addr().AsSlice()
	pseudo := sumBytes(from) + sumBytes(to) + protoTCP + tcpHeader
	be16(tcp[16:], ^foldSum(pseudo+sumBytes(tcp)))
	if dst.Addr().Is4() {
		ip := make([]byte, ipv4Header, ipv4Header+tcpHeader)
		ip[0] = 4<<4 | ipv4Header/4
		be16(ip[2:], ipv4Header+tcpHeader)
		be16(ip[6:], 0x4000) // do not fragment
		ip[8], ip[9] = pokeHops, protoTCP
		copy(ip[12:], from)
		copy(ip[16:], to)
		be16(ip[10:], ^foldSum(sumBytes(ip)))
		return append(ip, tcp...)
	}
	ip := make([]byte, ipv6Header, ipv6Header+tcpHeader)
	ip[0] = 6 << 4
	be16(ip[4:], tcpHeader)
	ip[6], ip[7] = protoTCP, pokeHops
	copy(ip[8:], from)
	copy(ip[24:], to)
	return append(ip, tcp...)
}

func be16(to []byte, v uint16) { to[0], to[1] = byte(v>>8), byte(v) }

// sumBytes adds 16 bit words (RFC 1071).
func sumBytes(b []byte) uint32 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	return sum
}

func foldSum(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
