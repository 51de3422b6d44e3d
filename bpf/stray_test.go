package bpf

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

// routedService is a service with a master whose VIP routers learn.
func routedService(mode Mode, s Strays) Service {
	svc := service(mode, endpoint1)
	svc.Strays = s
	return svc
}

// Routers may turn to the next node before the cluster does: the master brings that one the answers of connections it
// does not know, and it brings the master what clients send of those it does not know.
func TestStraysAreBroughtToTheNodeThatMayKnowThem(t *testing.T) {
	master, next := Strays{Answers: 1 << 6}, Strays{Clients: 1 << 5, Answers: 1 << 5}
	answer := func(slot uint16) bpftest.Packet {
		return bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, portOf(slot)), Flags: bpftest.SYN | bpftest.ACK}
	}
	fromClient := bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}
	toClient := bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.SYN | bpftest.ACK}
	for _, tc := range []struct {
		name     string
		mode     Mode
		strays   Strays
		endpoint bool
		p        bpftest.Packet
		to       net.HardwareAddr // nil: not brought
		was      uint32           // what becomes of it where nobody else is there
	}{
		{"a client's data at the master", ModeFullNAT, master, false, fromClient, nil, actDrop},
		{"a client's data at the next", ModeFullNAT, next, false, fromClient, five, actDrop},
		{"a client's data at the next, dnat", ModeDNAT, next, false, fromClient, five, actDrop},
		{"an answer to the next node's port at the master", ModeFullNAT, master, true, answer(6), six, actRedirect},
		{"an answer to the port of yet another", ModeFullNAT, master, true, answer(5), five, actRedirect},
		{"an answer to a port of one that is not there", ModeFullNAT, master, true, answer(2), nil, actRedirect},
		{"an answer to a port of this node", ModeFullNAT, master, true, answer(3), nil, actRedirect},
		{"an answer to a client at the master", ModeDNAT, master, true, toClient, six, actPass},
		{"an answer to a client at the next", ModeDNAT, next, true, toClient, five, actPass},
		{"an answer to another's client, not dnat", ModeFullNAT, master, true, toClient, nil, actPass},
		{"an answer to this host", ModeDNAT, master, true, bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(lbAddress, 4444), Flags: bpftest.ACK}, nil, actPass},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sync(routedService(tc.mode, tc.strays))
			send, on := b.fromClient, b.in
			if tc.endpoint {
				send, on = b.fromEndpoint, b.out
			}
			if action, _ := send(tc.p); action != tc.was {
				t.Fatalf("alone: action %d, want %d", action, tc.was)
			}
			b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
			action, frame := send(tc.p)
			brought := b.Stats().Counters["brought"]
			if tc.to == nil {
				if action != tc.was || brought != 0 {
					t.Errorf("action %d, want %d; %d frames were brought", action, tc.was, brought)
				}
				return
			}
			if action != actRedirect || brought != 1 || !bytes.Equal(frame[:6], tc.to) || !bytes.Equal(frame[6:12], on.MAC) {
				t.Errorf("action %d, %d frames, %x", action, brought, frame[:12])
			}
		})
	}
}

// Who is brought what it does not know either treats it as it would without, since nobody else can know it: it is
// answered, or passed on. A datagram has gone its way already.
func TestStraysThatNobodyKnowsGoTheirWay(t *testing.T) {
	b := newBench(t, nil)
	svc := routedService(ModeDNAT, Strays{Clients: 1 << 5, Answers: 1 << 5})
	udp := svc
	udp.ID, udp.Protocol = 8, protoUDP
	udp.Endpoints = []Endpoint{{ID: 9, Addr: endpoint1, Weight: 1, State: EndpointUp}}
	b.sync(svc, udp)
	b.reachable(map[uint8]net.HardwareAddr{5: b.far.MAC, 6: b.end.MAC})
	answer := bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.ACK}
	if action, _ := b.fromEndpoint(answer); action == actDrop {
		t.Errorf("an answer that the node on slot 6 has brought: %v", b.Stats().Drops)
	}
	b.reachable(map[uint8]net.HardwareAddr{5: b.end.MAC})
	if action, _ := b.fromEndpoint(answer); action != actPass {
		t.Errorf("an answer: action %d, drops %v", action, b.Stats().Drops)
	}
	answer.Protocol = layers.IPProtocolUDP
	if action, _ := b.fromEndpoint(answer); action != actDrop || b.drops("brought") != 1 {
		t.Errorf("a datagram: action %d, drops %v", action, b.Stats().Drops)
	}
	b.reachable(map[uint8]net.HardwareAddr{5: b.far.MAC})
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actDrop || b.drops("no_flow") != 1 {
		t.Errorf("a client's: action %d, drops %v", action, b.Stats().Drops)
	}
	b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}))
}

// What is known is not looked at for this, and what begins something is not brought.
func TestConnectionsThatAreKnownAreNotBrought(t *testing.T) {
	b := newBench(t, nil)
	b.sync(routedService(ModeFullNAT, Strays{Clients: 1 << 5, Answers: 1 << 6}))
	b.reachable(map[uint8]net.HardwareAddr{5: five, 6: six})
	snat, _ := b.talk(clientPort, vipPort)
	b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
	b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
	if n := b.Stats().Counters["brought"]; n != 0 {
		t.Errorf("%d frames were brought", n)
	}
}

// Two interfaces whose numbers differ by the size of the table do not take each other's place.
func TestInterfacesWithTheSameLowBitsKeepTheirPeers(t *testing.T) {
	b := newBench(t, nil)
	b.sync(routedService(ModeFullNAT, Strays{Clients: 1 << 5}))
	peers := func(index int, mac net.HardwareAddr) {
		t.Helper()
		p := Peers{}
		if mac != nil {
			p = Peers{Own: b.in.MAC, MACs: map[uint8]net.HardwareAddr{5: mac}}
		}
		if err := b.SetPeers(index, p); err != nil {
			t.Fatal(err)
		}
	}
	size := int(b.maps.Peers.MaxEntries())
	goesTo := func(want net.HardwareAddr) {
		t.Helper()
		action, frame := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
		if brought := action == actRedirect; brought != (want != nil) || brought && !bytes.Equal(frame[:6], want) {
			t.Errorf("action %d, to %x, want %x", action, frame[:6], want)
		}
	}
	peers(b.in.Index+size, six)
	goesTo(nil)
	peers(b.in.Index, five)
	peers(b.in.Index+2*size, six)
	goesTo(five)
	peers(b.in.Index+size, nil)
	goesTo(five)
	peers(b.in.Index+3*size, six) // takes the place that is free again
	peers(b.in.Index, six)
	goesTo(six)
	peers(b.in.Index, nil)
	goesTo(nil)
	peers(b.in.Index+4*size, five)
	peers(b.in.Index, five)
	goesTo(five)
}
