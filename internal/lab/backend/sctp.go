package backend

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// SCTP packets (RFC 9260): a common header of source and destination port,
// verification tag and CRC32c, then chunks of type, flags, length and value.
const (
	sctpHeader    = 12
	sctpChunk     = 4
	sctpInit      = 1
	sctpInitAck   = 2
	sctpAbort     = 6
	sctpInitSize  = 20   // chunk header, initiate tag, window, streams out and in, first TSN
	sctpCookie    = 7    // parameter: State Cookie, section 3.3.3
	sctpTag       = 0x70 // four times: the tag this side asks for
	sctpCookieLen = 8    // of the parameter, header included
)

// openSCTP answers INITs on a raw socket. A kernel that has SCTP of its own is
// kept from answering, too.
func (s *Server) openSCTP() (func(context.Context) error, error) {
	c, err := net.ListenIP(s.family("ip")+":132", &net.IPAddr{IP: s.cfg.At.Addr().AsSlice()})
	if err != nil {
		return nil, err
	}
	mute, err := MuteSCTP(s.cfg.At)
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return func(ctx context.Context) error {
		defer context.AfterFunc(ctx, func() { c.Close() })()
		defer mute.Close()
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromIP(buf)
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			b, _ := s.behaviour()
			if b.Mode == Hangs {
				continue
			}
			if s.dawdle(ctx) != nil {
				return nil // ctx has ended
			}
			answer := answerSCTP(buf[:n], s.cfg.At.Port(), b.Mode == Dead || b.Mode == Fails)
			if answer == nil {
				continue
			}
			if answer[sctpHeader] == sctpInitAck {
				s.requests.Add(1)
			}
			_, _ = c.WriteToIP(answer, from) // a packet may be lost
		}
	}, nil
}

// answerSCTP is the answer to one packet for the port: INIT ACK or ABORT to an
// INIT, nothing to anything else.
func answerSCTP(p []byte, port uint16, abort bool) []byte {
	if len(p) < sctpHeader+sctpInitSize || binary.BigEndian.Uint16(p[2:]) != port || p[sctpHeader] != sctpInit {
		return nil
	}
	if binary.LittleEndian.Uint32(p[8:]) != sctpSum(p) {
		return nil // section 6.8: silently discarded
	}
	chunk := p[sctpHeader:]
	size := sctpInitSize + sctpCookieLen
	if abort {
		size = sctpChunk
	}
	a := make([]byte, sctpHeader+size)
	copy(a[0:2], p[2:4])
	copy(a[2:4], p[0:2])
	copy(a[4:8], chunk[4:8]) // the peer's initiate tag is the answer's verification tag
	c := a[sctpHeader:]
	binary.BigEndian.PutUint16(c[2:], uint16(size))
	if abort {
		c[0] = sctpAbort
	} else {
		c[0] = sctpInitAck
		for i := 4; i < 8; i++ {
			c[i] = sctpTag
		}
		binary.BigEndian.PutUint32(c[8:], 65536) // window
		binary.BigEndian.PutUint16(c[12:], 1)    // streams out
		binary.BigEndian.PutUint16(c[14:], 1)    // streams in
		binary.BigEndian.PutUint32(c[16:], 1)    // first TSN
		binary.BigEndian.PutUint16(c[20:], sctpCookie)
		binary.BigEndian.PutUint16(c[22:], sctpCookieLen)
	}
	binary.LittleEndian.PutUint32(a[8:], sctpSum(a))
	return a
}

// sctpSum is the packet's CRC32c with the field for it taken as zero (RFC 9260,
// appendix A). It travels with its least significant byte first.
func sctpSum(p []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, p[:8])
	sum = crc32.Update(sum, table, make([]byte, 4))
	return crc32.Update(sum, table, p[sctpHeader:])
}

// MuteSCTP keeps the kernel's own SCTP, if it has one, from answering at an
// address and port until what it returns is closed: a socket listens there, and
// its filter drops every packet. Raw sockets get theirs before.
func MuteSCTP(at netip.AddrPort) (io.Closer, error) {
	var addr unix.Sockaddr
	family := unix.AF_INET
	if at.Addr().Is4() {
		addr = &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
	} else {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return io.NopCloser(nil), nil
	}
	if err != nil {
		return nil, fmt.Errorf("open sctp socket: %w", err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	err = errors.Join(
		unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop}),
		unix.Bind(fd, addr),
		unix.Listen(fd, 1))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("keep the kernel's sctp silent at %s: %w", at, err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "sctp"), nil
}
