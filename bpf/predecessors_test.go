package bpf

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// setPredecessor lets packets from an interface be brought back from now on for so long.
func (b *bench) setPredecessor(on bpftest.Iface, mac net.HardwareAddr, d time.Duration) {
	b.tb.Helper()
	now, err := Boottime()
	if err != nil {
		b.tb.Fatal(err)
	}
	if err := b.SetPredecessor(on.Index, Predecessor{MAC: mac, Own: on.MAC, Until: now + d}); err != nil {
		b.tb.Fatal(err)
	}
}

func TestPacketsOfUnknownConnectionsAreBroughtToThePredecessor(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	former := net.HardwareAddr{2, 0, 0, 9, 9, 9}
	fromEndpoint := bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(vip, 40000)} // to a port that another node gave out
	strange := netip.MustParseAddrPort("10.77.0.9:5555")                                // where no route leads
	for _, tc := range []struct {
		name     string
		endpoint bool
		p        bpftest.Packet
		flags    uint8
		brought  bool
		was      uint32 // what becomes of it without a predecessor
	}{
		{"data of a connection to a service", false, bpftest.Packet{Src: clientPort, Dst: vipPort}, bpftest.ACK, true, actDrop},
		{"its end", false, bpftest.Packet{Src: clientPort, Dst: vipPort}, bpftest.ACK | bpftest.FIN, true, actDrop},
		{"its reset", false, bpftest.Packet{Src: clientPort, Dst: vipPort}, bpftest.RST, false, actDrop},
		{"the answer to a SYN, to the VIP", true, fromEndpoint, bpftest.SYN | bpftest.ACK, true, actRedirect},
		{"data from the endpoint", true, fromEndpoint, bpftest.ACK, true, actDrop},
		{"the answer to a SYN, to a client", true, bpftest.Packet{Src: endpoint1, Dst: clientPort}, bpftest.SYN | bpftest.ACK, true, actPass},
		{"data to a client", true, bpftest.Packet{Src: endpoint1, Dst: clientPort}, bpftest.ACK, true, actPass},
		{"a SYN to a client, which begins something", true, bpftest.Packet{Src: endpoint1, Dst: clientPort}, bpftest.SYN, false, actPass},
		{"the answer to a SYN of this host", true, bpftest.Packet{Src: endpoint1, Dst: netip.AddrPortFrom(lbAddress, 4444)}, bpftest.SYN | bpftest.ACK, false, actPass},
		{"one that no route leads on", true, bpftest.Packet{Src: endpoint1, Dst: strange}, bpftest.SYN | bpftest.ACK, false, actPass},
		{"one that has come too far", false, bpftest.Packet{Src: clientPort, Dst: vipPort, TTL: 1}, bpftest.ACK, false, actDrop},
	} {
		t.Run(tc.name, func(t *testing.T) {
			send := b.fromClient
			if tc.endpoint {
				send = b.fromEndpoint
			}
			tc.p.Flags = tc.flags
			for _, on := range []bpftest.Iface{b.in, b.out} {
				if err := b.SetPredecessor(on.Index, Predecessor{}); err != nil {
					t.Fatal(err)
				}
			}
			if action, _ := send(tc.p); action != tc.was {
				t.Fatalf("without a predecessor: action %d, want %d", action, tc.was)
			}
			b.setPredecessor(b.in, former, -time.Second) // its time is over
			b.setPredecessor(b.out, former, -time.Second)
			if action, _ := send(tc.p); action != tc.was {
				t.Fatalf("after its time: action %d, want %d", action, tc.was)
			}
			b.setPredecessor(b.in, former, time.Minute)
			b.setPredecessor(b.out, former, time.Minute)
			before := b.Stats().Counters["brought_back"]
			action, frame := send(tc.p)
			if brought := b.Stats().Counters["brought_back"] - before; brought != 0 != tc.brought {
				t.Fatalf("action %d, %d brought back", action, brought)
			}
			if !tc.brought {
				if action != tc.was {
					t.Errorf("action %d, want %d", action, tc.was)
				}
				return
			}
			on := b.in
			want := tc.p
			want.SrcMAC, want.DstMAC = b.far.MAC, b.in.MAC
			if tc.endpoint {
				on, want.SrcMAC, want.DstMAC = b.out, b.end.MAC, b.out.MAC
			}
			same := want.Bytes(t)
			if !bytes.Equal(frame[:6], former) || !bytes.Equal(frame[6:12], on.MAC) {
				t.Errorf("to %x from %x, want to %x from %x", frame[:6], frame[6:12], former, on.MAC)
			}
			if ttl, was := frame[22], same[22]; ttl != was-1 || onesSum(slices.Clone(frame[14:34])) != 0xffff {
				t.Errorf("TTL %d after %d, header sums up to %x", ttl, was, onesSum(slices.Clone(frame[14:34])))
			}
			if !bytes.Equal(frame[26:], same[26:]) {
				t.Errorf("more than the hop was changed:\n%x\n%x", same, frame)
			}
		})
	}
	// What is begun here is begun here, and what is known here goes its way.
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}); action != actRedirect {
		t.Errorf("a SYN: action %d", action)
	}
	before := b.Stats().Counters["brought_back"]
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if n := b.Stats().Counters["brought_back"] - before; n != 0 {
		t.Error("a packet of a connection that is known was brought back")
	}
}

// Two nodes that take each other for the predecessor do not throw a packet to and fro: what the other
// does not know either is unknown.
func TestWhatThePredecessorSendsIsNotBroughtBackToIt(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.setPredecessor(b.in, b.far.MAC, time.Minute)
	b.setPredecessor(b.out, b.end.MAC, time.Minute)
	if action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}); action != actDrop {
		t.Errorf("to a service: action %d", action)
	}
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: clientPort, Flags: bpftest.ACK}); action != actPass {
		t.Errorf("to a client: action %d", action)
	}
	if n := b.Stats().Counters["brought_back"]; n != 0 {
		t.Errorf("%d were brought back", n)
	}
}
