package bpf

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
	"golang.org/x/sys/unix"
)

// shared is a service that any node gets packets of.
func shared(mode Mode) Service {
	s := service(mode, endpoint1)
	s.Shared = true
	return s
}

func udpShared(mode Mode) Service {
	s := shared(mode)
	s.ID, s.Protocol, s.VIP = 8, protoUDP, netip.AddrPortFrom(vip, 80)
	return s
}

// reachable makes these hardware addresses those of the other nodes on both links.
func (b *bench) reachable(macs map[uint8]net.HardwareAddr) {
	b.tb.Helper()
	for _, on := range []bpftest.Iface{b.in, b.out} {
		if err := b.SetPeers(on.Index, Peers{Own: on.MAC, MACs: macs}); err != nil {
			b.tb.Fatal(err)
		}
	}
}

// portOf is a source port that the node of a slot gives out.
func portOf(slot uint16) uint16 { return 1024 + slot*8064 + 77 }

var (
	five = net.HardwareAddr{2, 0, 0, 9, 9, 5}
	six  = net.HardwareAddr{2, 0, 0, 9, 9, 6}
)

func TestPacketsOfConnectionsElsewhereAreBroughtThere(t *testing.T) {
	stranger := netip.MustParseAddrPort("10.8.0.21:9999")
	answer := func(slot uint16) bpftest.Packet {
		return bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, portOf(slot)), Flags: bpftest.SYN | bpftest.ACK}
	}
	udp := func(p bpftest.Packet) bpftest.Packet {
		p.Protocol = layers.IPProtocolUDP
		return p
	}
	fromStranger := answer(5)
	fromStranger.Src = stranger
	for _, tc := range []struct {
		name     string
		mode     Mode
		endpoint bool
		p        bpftest.Packet
		to       net.HardwareAddr // nil: not brought
		frames   uint64           // that are brought
		was      uint32           // what becomes of it where nobody else is there
	}{
		{"data of a client", ModeFullNAT, false, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}, five, 2, actDrop},
		{"its end", ModeFullNAT, false, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK | bpftest.FIN}, five, 2, actDrop},
		{"data to no service", ModeFullNAT, false, bpftest.Packet{Src: clientPort, Dst: netip.AddrPortFrom(vip, 81), Flags: bpftest.ACK}, nil, 0, actDrop},
		{"data that has come too far", ModeFullNAT, false, bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, TTL: 1}, nil, 0, actDrop},
		{"an answer to the port of one node", ModeFullNAT, true, answer(6), six, 1, actRedirect},
		{"an answer to the port of another", ModeFullNAT, true, answer(5), five, 1, actRedirect},
		{"an answer to the port of one that is not there", ModeFullNAT, true, answer(2), five, 2, actRedirect},
		{"an answer to a port of this node", ModeFullNAT, true, answer(3), five, 2, actRedirect},
		{"one that is no endpoint's", ModeFullNAT, true, fromStranger, nil, 0, actRedirect},
		{"a datagram to the port of one node", ModeFullNAT, true, udp(answer(6)), six, 1, actDrop},
		{"an answer to a client", ModeDNAT, true, bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.SYN | bpftest.ACK}, five, 2, actPass},
		{"data to a client", ModeDNAT, true, bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.ACK}, five, 2, actPass},
		{"a SYN to a client", ModeDNAT, true, bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.SYN}, nil, 0, actPass},
		{"data from no service's port", ModeDNAT, true, bpftest.Packet{Src: stranger, Dst: clientPort, Flags: bpftest.ACK}, nil, 0, actPass},
		{"an answer to this host", ModeDNAT, true, bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(lbAddress, 4444), Flags: bpftest.ACK}, nil, 0, actPass},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sync(shared(tc.mode), udpShared(tc.mode))
			send := b.fromClient
			if tc.endpoint {
				send = b.fromEndpoint
			}
			if action, _ := send(tc.p); action != tc.was {
				t.Fatalf("alone: action %d, want %d", action, tc.was)
			}
			b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
			action, frame := send(tc.p)
			if n := b.Stats().Counters["brought"]; n != tc.frames {
				t.Fatalf("%d frames were brought, want %d; action %d", n, tc.frames, action)
			}
			if tc.to == nil {
				if action != tc.was {
					t.Errorf("action %d, want %d", action, tc.was)
				}
				return
			}
			if action != actRedirect || !bytes.Equal(frame[:6], tc.to) {
				t.Errorf("action %d, to %x, want %x", action, frame[:6], tc.to)
			}
			on, want := b.in, tc.p
			want.SrcMAC, want.DstMAC = b.far.MAC, b.in.MAC
			if tc.endpoint {
				on, want.SrcMAC, want.DstMAC = b.out, b.end.MAC, b.out.MAC
			}
			same := want.Bytes(t)
			if !bytes.Equal(frame[6:12], on.MAC) || frame[22] != same[22]-1 || onesSum(slices.Clone(frame[14:34])) != 0xffff || !bytes.Equal(frame[26:], same[26:]) {
				t.Errorf("more than the hop was changed:\n%x\n%x", same, frame)
			}
			b.reachable(nil)
			if action, _ := send(tc.p); action != tc.was {
				t.Errorf("alone again: action %d, want %d", action, tc.was)
			}
		})
	}
}

// Where the instance has a master nothing is brought, whoever is there.
func TestNothingIsBroughtForAServiceWithAMaster(t *testing.T) {
	b := newBench(t, nil)
	b.reachable(map[uint8]net.HardwareAddr{5: five})
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		b.sync(service(mode, endpoint1))
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
		b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, portOf(5)), Flags: bpftest.ACK})
		b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.ACK})
	}
	if n := b.Stats().Counters["brought"]; n != 0 {
		t.Errorf("%d frames were brought", n)
	}
}

// What another node has brought is not brought on, nor answered: nobody knows it.
func TestWhatAnotherNodeBroughtGoesNoFurther(t *testing.T) {
	b := newBench(t, nil)
	b.sync(shared(ModeFullNAT))
	b.reachable(map[uint8]net.HardwareAddr{5: b.far.MAC, 6: b.end.MAC, 7: six})
	for i, send := range []func() (uint32, []byte){
		func() (uint32, []byte) {
			return b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
		},
		func() (uint32, []byte) {
			return b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, portOf(7)), Flags: bpftest.SYN | bpftest.ACK})
		},
	} {
		if action, _ := send(); action != actDrop || b.drops("brought") != uint64(i+1) {
			t.Errorf("action %d, drops %v", action, b.Stats().Drops)
		}
	}
	if n := b.Stats().Counters["brought"]; n != 0 {
		t.Errorf("%d frames were brought on", n)
	}
	b.sync(shared(ModeDNAT))
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.ACK}); action != actDrop || b.drops("brought") != 3 {
		t.Errorf("past this node: action %d, drops %v", action, b.Stats().Drops)
	}
	// A connection begins here all the same.
	b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}))
}

// A flood of forged packets is not multiplied without end, and leaves the endpoints' answers their part.
func TestWhatIsBroughtIsBounded(t *testing.T) {
	b := newBench(t, func(o *Options) { o.bringMax = 20 })
	b.sync(shared(ModeFullNAT))
	b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
	last := func() (brought uint64) { return b.Stats().Counters["brought"] }
	const sent = 100
	began := time.Now()
	for range sent {
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	}
	seconds := uint64(time.Since(began)/time.Second) + 2
	cpus := uint64(1) // the runs may change over
	if n := last(); n < 20 || n > 20*seconds*(cpus+1) {
		t.Errorf("%d frames of %d packets were brought", n, sent)
	}
	if b.drops("bring_limit") == 0 {
		t.Error("nothing was refused")
	}
	before := last()
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, portOf(6)), Flags: bpftest.SYN | bpftest.ACK})
	if last() == before {
		t.Error("the answer of an endpoint was refused because of a client's flood")
	}
}

// A datagram that an endpoint sends from a service's port goes its way, too: it may begin something.
func TestDatagramsOfEndpointsGoTheirWayToo(t *testing.T) {
	b := newBench(t, nil)
	b.sync(udpShared(ModeDNAT))
	b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
	p := bpftest.Packet{Src: endpoint1, Dst: clientPort, Protocol: layers.IPProtocolUDP, Payload: []byte("hello")}
	caught := listen(t, b.end)
	action, frame := b.fromEndpoint(p)
	p.SrcMAC, p.DstMAC = b.end.MAC, b.out.MAC
	want := p.Bytes(t)
	if action != actPass || !bytes.Equal(frame, want) {
		t.Errorf("action %d\n%x, sent was\n%x", action, frame, want)
	}
	for range 2 {
		got := caught()
		if !(bytes.Equal(got[:6], five) || bytes.Equal(got[:6], six)) || !bytes.Equal(got[6:12], b.out.MAC) || got[22] != want[22]-1 || !bytes.Equal(got[26:], want[26:]) {
			t.Errorf("brought was\n%x", got)
		}
	}
}

// listen catches the frames for other hosts that arrive on an interface.
func listen(t *testing.T, on bpftest.Iface) (next func() []byte) {
	t.Helper()
	fd := -1
	var err error
	everything := int(uint16(unix.ETH_P_ALL&0xff)<<8 | uint16(unix.ETH_P_ALL>>8))
	on.NS.Do(func() { fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, everything) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: uint16(everything), Ifindex: on.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		t.Fatal(err)
	}
	return func() []byte {
		t.Helper()
		buffer := make([]byte, 2048)
		for {
			n, _, err := unix.Recvfrom(fd, buffer, 0)
			if err != nil {
				t.Fatalf("no frame: %v", err)
			}
			if n >= 34 && buffer[0] == 2 && buffer[1] == 0 { // the addresses that the tests make up
				return buffer[:n]
			}
		}
	}
}

// An error about what another node has sent goes to that node.
func TestErrorsAboutPacketsOfOtherNodesAreBroughtThere(t *testing.T) {
	b := newBench(t, nil)
	b.sync(shared(ModeFullNAT))
	b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
	router := netip.MustParseAddr("10.8.0.9")
	about := func(src netip.AddrPort) []byte {
		inner := bpftest.TCPBytes(src, endpoint1, bpftest.ACK, 1, 1, nil)
		quoted := bpftest.Frame{Src: src.Addr(), Dst: endpoint1.Addr(), Protocol: protoTCP, L4: inner}.IP()
		return bpftest.Frame{SrcMAC: b.end.MAC, DstMAC: b.out.MAC, Src: router, Dst: vip, Protocol: 1, L4: bpftest.Error(router, vip, 3, 4, 1400, quoted)}.Bytes()
	}
	action, frame := b.run(b.out, about(netip.AddrPortFrom(vip, portOf(6))))
	if action != actRedirect || !bytes.Equal(frame[:6], six) || b.Stats().Counters["brought"] != 1 {
		t.Errorf("action %d, to %x, counters %v", action, frame[:6], b.Stats().Counters)
	}
	b.reachable(nil)
	if action, _ := b.run(b.out, about(netip.AddrPortFrom(vip, portOf(6)))); action != actDrop || b.drops("icmp_unknown") != 1 {
		t.Errorf("alone: action %d", action)
	}
}
