package announce

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/mdlayher/packet"
)

// sendTimeout bounds one frame. A packet socket only blocks when its own send
// buffer is full, which is when the driver's queue has stood still.
const sendTimeout = 200 * time.Millisecond

var (
	errLinkDown = errors.New("the link is down")
	errNoMAC    = errors.New("the link has no Ethernet address")
)

// linkState is what a packet socket depends on. If any of it changes, the socket
// is opened anew.
type linkState struct {
	index int
	hw    mac
}

// wire is the network as the driver needs it: packet sockets, or in tests a
// recording.
type wire interface {
	// lookup reads a link that can carry frames now. Errors wrap errLinkDown or
	// errNoMAC, or say that there is no such link.
	lookup(name string) (linkState, error)
	// open opens a port for the protocol of the lane on its link.
	open(on lane, state linkState) (port, error)
}

// port sends and receives the frames of one lane. send and receive may run at the
// same time; close ends both.
type port interface {
	send(frame []byte) error
	receive(buf []byte) (int, error)
	close() error
}

// sockets is the wire made of AF_PACKET sockets in the caller's network namespace.
type sockets struct{}

func (sockets) lookup(name string) (linkState, error) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return linkState{}, fmt.Errorf("look up link %s: %w", name, err)
	}
	const up = net.FlagUp | net.FlagRunning
	switch {
	case i.Flags&up != up:
		return linkState{}, fmt.Errorf("link %s: %w", name, errLinkDown)
	case len(i.HardwareAddr) != len(mac{}):
		return linkState{}, fmt.Errorf("link %s: %w", name, errNoMAC)
	}
	return linkState{index: i.Index, hw: mac(i.HardwareAddr)}, nil
}

func (sockets) open(on lane, state linkState) (port, error) {
	etherType, cfg := etherTypeARP, &packet.Config{}
	if on.proto == ndp {
		filter, err := ndpFilter()
		if err != nil {
			return nil, fmt.Errorf("assemble socket filter: %w", err)
		}
		etherType, cfg.Filter = etherTypeIPv6, filter
	}
	conn, err := packet.Listen(&net.Interface{Index: state.index, Name: on.link}, packet.Raw, etherType, cfg)
	if err != nil {
		return nil, fmt.Errorf("open packet socket on %s: %w", on.link, err)
	}
	return socket{conn}, nil
}

// socket is a packet socket bound to one link and to ARP or to IPv6, then with a
// filter for neighbour discovery. The kernel does not hand it the frames it sends
// itself, and no packet that the data plane's program on the link takes.
type socket struct{ conn *packet.Conn }

func (s socket) send(frame []byte) error {
	if err := s.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	if _, err := s.conn.WriteTo(frame, &packet.Addr{HardwareAddr: frame[:len(mac{})]}); err != nil {
		return fmt.Errorf("send frame: %w", err)
	}
	return nil
}

func (s socket) receive(buf []byte) (int, error) {
	n, _, err := s.conn.ReadFrom(buf)
	return n, err
}

func (s socket) close() error { return s.conn.Close() }
