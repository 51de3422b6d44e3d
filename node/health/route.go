package health

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routeSocket asks the kernel for routes and neighbours (rtnetlink). It answers within the call, so
// nothing here waits.
type routeSocket struct {
	fd       int
	sequence uint32
	buf      []byte
}

func (l *loop) routeFor() (*routeSocket, error) {
	if l.sockets.route != nil {
		return l.sockets.route, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, errors.Join(fmt.Errorf("bind netlink socket: %w", err), unix.Close(fd))
	}
	l.sockets.route = &routeSocket{fd: fd, buf: make([]byte, 8<<10)}
	return l.sockets.route, nil
}

func (r *routeSocket) close() { _ = unix.Close(r.fd) }

// attribute appends one, padded.
func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%unix.NLMSG_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

// attributes reads them by kind.
func attributes(b []byte) map[uint16][]byte {
	all := map[uint16][]byte{}
	for len(b) >= unix.SizeofRtAttr {
		n := int(binary.NativeEndian.Uint16(b))
		if n < unix.SizeofRtAttr || n > len(b) {
			break
		}
		const nested = 1<<15 | 1<<14 // flags beside the kind
		all[binary.NativeEndian.Uint16(b[2:])&^nested] = b[unix.SizeofRtAttr:n]
		b = b[min(len(b), (n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return all
}

// ask sends a request and returns the payload of the one answer; an acknowledgement has none.
func (r *routeSocket) ask(kind, flags uint16, payload []byte) ([]byte, error) {
	r.sequence++
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(payload)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = binary.NativeEndian.AppendUint32(b, r.sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = append(b, payload...)
	if err := unix.Sendto(r.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("ask the kernel: %w", err)
	}
	for {
		n, _, err := unix.Recvfrom(r.fd, r.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("ask the kernel: %w", err)
		}
		if n < unix.SizeofNlMsghdr {
			return nil, errors.New("ask the kernel: short answer")
		}
		got := r.buf[:n]
		length := int(binary.NativeEndian.Uint32(got))
		if binary.NativeEndian.Uint32(got[8:]) != r.sequence {
			continue // of a request that was given up
		}
		if length < unix.SizeofNlMsghdr || length > n {
			return nil, errors.New("ask the kernel: broken answer")
		}
		body := got[unix.SizeofNlMsghdr:length]
		if binary.NativeEndian.Uint16(got[4:]) != unix.NLMSG_ERROR {
			return body, nil
		}
		if len(body) < 4 {
			return nil, errors.New("ask the kernel: broken answer")
		}
		if number := int32(binary.NativeEndian.Uint32(body)); number != 0 {
			return nil, fmt.Errorf("ask the kernel: %w", unix.Errno(-number))
		}
		return nil, nil
	}
}

// hop is how packets to an address leave.
type hop struct {
	link    int        // its index
	gateway netip.Addr // invalid: the address is on the link
	source  netip.Addr // this node's, for packets to there
}

// route looks an address up as a packet of our own would be.
func (r *routeSocket) route(to netip.Addr) (hop, error) {
	payload := make([]byte, unix.SizeofRtMsg)
	payload[0] = byte(family(to))
	payload[1] = byte(to.BitLen())
	payload = attribute(payload, unix.RTA_DST, to.WithZone("").AsSlice())
	b, err := r.ask(unix.RTM_GETROUTE, 0, payload)
	if err != nil {
		return hop{}, fmt.Errorf("route to %v: %w", to, err)
	}
	if len(b) < unix.SizeofRtMsg {
		return hop{}, fmt.Errorf("route to %v: short answer", to)
	}
	var h hop
	all := attributes(b[unix.SizeofRtMsg:])
	if v := all[unix.RTA_OIF]; len(v) == 4 {
		h.link = int(binary.NativeEndian.Uint32(v))
	}
	h.gateway, _ = netip.AddrFromSlice(all[unix.RTA_GATEWAY])
	h.source, _ = netip.AddrFromSlice(all[unix.RTA_PREFSRC])
	return h, nil
}

// neighbour is the MAC address of a neighbour; ok is false while it is not known.
func (r *routeSocket) neighbour(link int, addr netip.Addr) (mac [6]byte, ok bool, err error) {
	b, err := r.ask(unix.RTM_GETNEIGH, 0, neighbourMessage(link, addr, 0, 0))
	if errors.Is(err, unix.ENOENT) {
		return mac, false, nil
	}
	if err != nil {
		return mac, false, fmt.Errorf("neighbour %v: %w", addr, err)
	}
	if len(b) < unix.SizeofNdMsg {
		return mac, false, fmt.Errorf("neighbour %v: short answer", addr)
	}
	state := binary.NativeEndian.Uint16(b[8:])
	const known = unix.NUD_PERMANENT | unix.NUD_NOARP | unix.NUD_REACHABLE | unix.NUD_PROBE | unix.NUD_STALE | unix.NUD_DELAY
	v := attributes(b[unix.SizeofNdMsg:])[unix.NDA_LLADDR]
	if state&known == 0 || len(v) != len(mac) {
		return mac, false, nil
	}
	return [6]byte(v), true, nil
}

// use makes the kernel find a neighbour out, or make sure of it, as sending it a packet would.
func (r *routeSocket) use(link int, addr netip.Addr) error {
	_, err := r.ask(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_ACK, neighbourMessage(link, addr, 0, unix.NTF_USE))
	if err != nil {
		return fmt.Errorf("find out neighbour %v: %w", addr, err)
	}
	return nil
}

func neighbourMessage(link int, addr netip.Addr, state uint16, flags byte) []byte {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = byte(family(addr))
	binary.NativeEndian.PutUint32(b[4:], uint32(link))
	binary.NativeEndian.PutUint16(b[8:], state)
	b[10] = flags
	return attribute(b, unix.NDA_DST, addr.WithZone("").AsSlice())
}
