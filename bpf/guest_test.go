package bpf

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// peered are two nodes, of slots 3 and 5, of an instance without a master, each of which can reach the other. A frame
// that one is brought by the other can be run as it is.
func peered(t *testing.T, s Service) (a, b *bench) {
	t.Helper()
	a, b = newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(s)
		n.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
		runDataplane(t, n.Dataplane)
	}
	a.reaches(b, 5)
	b.reaches(a, 3)
	return a, b
}

func (b *bench) reaches(other *bench, slot uint8) {
	b.tb.Helper()
	for _, on := range [][2]bpftest.Iface{{b.in, other.in}, {b.out, other.out}} {
		if err := b.SetPeers(on[0].Index, Peers{Own: on[0].MAC, MACs: map[uint8]net.HardwareAddr{slot: on[1].MAC}}); err != nil {
			b.tb.Fatal(err)
		}
	}
}

// brought runs at the other node what this one brings it, and returns the tuple that leaves there.
func (b *bench) brought(other *bench, action uint32, frame []byte) (src, dst netip.AddrPort) {
	b.tb.Helper()
	if action != actRedirect {
		b.tb.Fatalf("action %d, drops %v", action, b.Stats().Drops)
	}
	on := other.in
	if bytes.Equal(frame[:6], other.out.MAC) {
		on = other.out
	} else if !bytes.Equal(frame[:6], on.MAC) {
		b.tb.Fatalf("brought to %x", frame[:6])
	}
	return other.must(other.run(on, frame))
}

// hearBoth has each node hear what the other has said.
func hearBoth(t *testing.T, a, b *bench) {
	t.Helper()
	fromA, fromB := wire(a.heard()), wire(b.heard())
	importAll(t, b.Dataplane, fromA)
	importAll(t, a.Dataplane, fromB)
}

// split opens a connection whose client's packets pass a, and its endpoint's b. Nothing of it is known at b
// until the handshake is over.
func split(t *testing.T, a, b *bench) (snat netip.AddrPort) {
	t.Helper()
	snat = a.syn()
	action, frame := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	if src, dst := b.brought(a, action, frame); src != vipPort || dst != clientPort {
		t.Fatalf("the SYN-ACK goes from %s to %s", src, dst)
	}
	a.ack(snat)
	return snat
}

func eachMode(t *testing.T, test func(t *testing.T, a, b *bench)) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			a, b := peered(t, shared(mode))
			test(t, a, b)
		})
	}
}

// The two directions of a connection pass two nodes from its first packet to its last: it is opened, lives
// with one owner, ends at both, and is gone from both soon after.
func TestConnectionOfWhichEachNodeSeesOneDirection(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		action, frame := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK})
		if _, dst := b.brought(a, action, frame); dst != clientPort {
			t.Fatalf("data before the record goes to %s", dst)
		}
		hearBoth(t, a, b)
		say := func(client bool, flags uint8) {
			t.Helper()
			if client {
				if from, _ := a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: flags})); from != snat {
					t.Fatalf("the client speaks from %s", from)
				}
			} else if _, to := b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: flags})); to != clientPort {
				t.Fatalf("the endpoint speaks to %s", to)
			}
		}
		for range 5 {
			say(true, bpftest.ACK|bpftest.PSH)
			say(false, bpftest.ACK|bpftest.PSH)
			hearBoth(t, a, b)
		}
		if f := a.only(); !f.Owner || f.OwnerSlot != 3 {
			t.Errorf("at its owner: %+v", f)
		}
		if f := b.only(); f.Owner || f.OwnerSlot != 3 || b.Stats().Adopted != 0 {
			t.Errorf("beside its owner: %+v", f)
		}
		if n := b.Stats().Counters["guest"]; n != 1 {
			t.Errorf("became a guest %d times: the plain way is for plain packets", n)
		}
		if said := len(a.heard()) + len(b.heard()); said != 0 {
			t.Errorf("%d records about a connection that only goes on", said)
		}
		say(true, bpftest.FIN|bpftest.ACK)
		hearBoth(t, a, b)
		say(false, bpftest.FIN|bpftest.ACK)
		say(true, bpftest.ACK)
		hearBoth(t, a, b)
		hearBoth(t, a, b)
		for i, n := range []*bench{a, b} {
			if f := n.only(); f.State != StateClosed {
				t.Errorf("node %d after both ends: %+v", i, f)
			}
			n.exact("closed")
		}
		for i, n := range []*bench{a, b} {
			n.age(6*time.Second, nil)
			n.mustSweep()
			hearBoth(t, a, b)
			if i == 1 && len(a.flows())+len(b.flows()) != 0 {
				t.Errorf("left: %+v %+v", a.flows(), b.flows())
			}
		}
		a.exact("gone")
		b.exact("gone")
	})
}

// Both sides close at once: what either node sees comes before the other's word.
func TestBothEndsAtOnceCloseAtBothNodes(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK}))
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK}))
		hearBoth(t, a, b)
		for i, n := range []*bench{a, b} {
			if f := n.only(); f.State != StateClosed {
				t.Errorf("node %d: %+v", i, f)
			}
		}
	})
}

// A reset that one node sees ends the connection at the other, which would hold it for an hour.
func TestResetAtOneNodeEndsItAtTheOther(t *testing.T) {
	for _, byClient := range []bool{true, false} {
		t.Run(fmt.Sprintf("client %v", byClient), func(t *testing.T) {
			eachMode(t, func(t *testing.T, a, b *bench) {
				snat := split(t, a, b)
				hearBoth(t, a, b)
				b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
				if byClient {
					a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST | bpftest.ACK}))
				} else {
					b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.RST | bpftest.ACK}))
				}
				hearBoth(t, a, b)
				for i, n := range []*bench{a, b} {
					if f := n.only(); f.State != StateClosed {
						t.Errorf("node %d: %+v", i, f)
					}
				}
			})
		})
	}
}

// A connection in which only one side speaks, past a node that does not own it, is taken over there before
// its owner takes it for idle.
func TestGuestTakesOverWhatItsOwnerIsSilentAbout(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		speak := func() {
			t.Helper()
			b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		}
		speak()
		if f := b.only(); f.Owner {
			t.Fatalf("at once: %+v", f)
		}
		b.age(18*time.Second, nil)
		b.sweepMu.Lock()
		b.guestsSeen = time.Time{}
		b.sweepMu.Unlock()
		b.mustSweep()
		speak()
		if f := b.only(); !f.Owner || f.OwnerSlot != 5 {
			t.Fatalf("after eighteen silent seconds: %+v", f)
		}
		a.age(9*time.Second, nil)
		hearBoth(t, a, b)
		if f := a.only(); f.Owner || f.OwnerSlot != 5 {
			t.Errorf("at the former owner: %+v", f)
		}
		// Now the client's packets make a guest of the former owner.
		a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
		if f := a.only(); f.Owner {
			t.Errorf("the former owner took it back: %+v", f)
		}
	})
}

// A guest whose owner dies becomes the owner, with or without another packet.
func TestGuestInheritsFromADeadOwner(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		b.heard()
		if !b.SetOwnersAlive(map[uint8]bool{3: false, 5: true}) {
			t.Fatal("nobody died")
		}
		eventually(t, "the guest owns it", func() error {
			if all := b.flows(); len(all) != 1 || !all[0].Owner || all[0].OwnerSlot != 5 {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})
		if said := b.heard(); len(said) != 1 || said[0].Reason != reasonAdopt || said[0].OwnerSlot != 5 {
			t.Errorf("said: %+v", said)
		}
		if n := b.Stats().Adopted; n != 1 {
			t.Errorf("adopted: %d", n)
		}
		a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})) // what only it saw
		b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
	})
}

// Who gets both directions of a connection is no guest: nobody else could keep it alive.
func TestWhoGetsBothDirectionsTakesOver(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
		if f := b.only(); !f.Owner || f.OwnerSlot != 5 {
			t.Errorf("%+v", f)
		}
	})
}

// Where the directions pass two nodes their tables are the same to the digests, and nothing is repaired.
func TestDigestsAgreeBesideAGuest(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		for range 3 {
			a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
			b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		}
		a.age(6*time.Second, nil)
		b.age(6*time.Second, nil)
		for _, owner := range []uint8{3, 5} {
			if !slices.Equal(a.mustDigest(owner), b.mustDigest(owner)) {
				t.Errorf("the digests of slot %d differ", owner)
			}
		}
	})
}

// A snapshot of the owner that does not name what a guest forwards does not end it.
func TestSnapshotDoesNotEndWhatAGuestForwards(t *testing.T) {
	eachMode(t, func(t *testing.T, a, b *bench) {
		snat := split(t, a, b)
		hearBoth(t, a, b)
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
		b.BeginSnapshot(3)
		if _, err := b.EndSnapshot(t.Context(), 3); err != nil {
			t.Fatal(err)
		}
		b.only()
	})
}

// The tuple of a closed connection is another's by now: what is told of that stands.
func TestLaterConnectionOfATupleStandsOverAClosedOne(t *testing.T) {
	a, b := peered(t, shared(ModeDNAT))
	snat := split(t, a, b)
	hearBoth(t, a, b)
	a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK}))
	b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK}))
	hearBoth(t, a, b)
	a.age(4*time.Second, nil)
	b.age(4*time.Second, nil)
	b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK})) // late
	split2 := a.syn()
	action, frame := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: split2, Flags: bpftest.SYN | bpftest.ACK})
	if action != actRedirect {
		t.Fatalf("action %d", action)
	}
	if bytes.Equal(frame[:6], a.out.MAC) {
		b.brought(a, action, frame)
	} else { // by the closed flow, which is the same way
		a.synAck(split2)
	}
	a.ack(split2)
	hearBoth(t, a, b)
	for i, n := range []*bench{a, b} {
		if f := n.only(); f.State != StateEstablished {
			t.Errorf("node %d: %+v", i, f)
		}
	}
}

// What an association says after its INIT is brought as TCP's segments are.
func TestAssociationsElsewhereAreBroughtThere(t *testing.T) {
	b := newBench(t, nil)
	s := shared(ModeFullNAT)
	s.Protocol = protoSCTP
	b.sync(s)
	b.reachable(map[uint8]net.HardwareAddr{5: five})
	frame := func(tag uint32, chunk []byte) []byte {
		l4 := bpftest.SCTPBytes(clientPort, vipPort, tag, chunk)
		return bpftest.Frame{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: client, Dst: vip, Protocol: protoSCTP, L4: l4}.Bytes()
	}
	const data, cookieEcho, initiation = 0, 10, 1
	for i, chunk := range [][]byte{bpftest.Chunk(data, 3, make([]byte, 16)), bpftest.Chunk(cookieEcho, 0, make([]byte, 8))} {
		if action, out := b.run(b.in, frame(7, chunk)); action != actRedirect || !bytes.Equal(out[:6], five) {
			t.Errorf("chunk %d: action %d, drops %v", i, action, b.Stats().Drops)
		}
	}
	b.run(b.in, frame(0, bpftest.Chunk(initiation, 0, []byte{0, 0, 0, 9, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1})))
	if n, made := b.Stats().Counters["brought"], b.Stats().Counters["created"]; n != 2 || made != 1 {
		t.Errorf("%d brought, %d begun, drops %v", n, made, b.Stats().Drops)
	}
}
