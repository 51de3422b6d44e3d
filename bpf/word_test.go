package bpf

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// What user space has read of a flow is old when it ends it.
func TestEndingAFlowLosesNothingOfIt(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, _ := b.talk(clientPort, vipPort)
	read := b.halves(clientPort.Port())[0]
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	key := pontoonFlowKey{Saddr: toAddr(client), Daddr: toAddr(vip), Sport: swap16(clientPort.Port()), Dport: swap16(80), Proto: protoTCP}
	if err := b.doomer.mark(key, &read, 4711); err != nil {
		t.Fatal(err)
	}
	for i, f := range b.halves(clientPort.Port()) {
		if !f.doomed() || f.Flags&flagFins != flagFins || FlowState(f.State) != StateClosed || f.LastSeen != 4711 || f.packets() != uint64(3-i) {
			t.Errorf("half %d: %+v", i, f)
		}
	}
	b.exact("ended")
}

func TestEndOfAnEarlierConnectionDoesNotTouchALaterOne(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	before := b.halves(clientPort.Port())
	key := pontoonFlowKey{Saddr: toAddr(client), Daddr: toAddr(vip), Sport: swap16(clientPort.Port()), Dport: swap16(80), Proto: protoTCP}
	earlier, elsewhere := before[0], before[0]
	earlier.Created--
	elsewhere.Endpoint++
	reply := otherKey(&key, &before[0])
	for _, row := range []struct {
		key pontoonFlowKey
		f   *pontoonFlow
	}{{key, &earlier}, {key, &elsewhere}, {reply, &before[1]}, {pontoonFlowKey{Proto: 1}, &before[0]}} {
		if err := b.doomer.mark(row.key, row.f, 4711); err != nil {
			t.Fatal(err)
		}
	}
	if after := b.halves(clientPort.Port()); after[0] != before[0] || after[1] != before[1] {
		t.Errorf("%+v became %+v", before, after)
	}
}

// Both halves of copies see their first packet at the same time, one of them a FIN: each CPU writes
// both halves, and neither undoes what the other has written.
func TestNothingIsLostWhenBothHalvesChangeAtOnce(t *testing.T) {
	const flows = 8064
	a := newBench(t, func(o *Options) { o.MaxFlows = flows + 100 })
	a.sync(service(ModeFullNAT, endpoint1))
	a.occupy(StateEstablished)
	b := newBench(t, func(o *Options) { o.Slot, o.MaxFlows = 5, 2*flows })
	b.sync(service(ModeFullNAT, endpoint1))
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	var forward, reply [][]byte
	for _, f := range b.flows() {
		forward = append(forward, bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: f.Client, Dst: f.VIP, Flags: bpftest.FIN | bpftest.ACK}.Bytes(t))
		reply = append(reply, bpftest.Packet{SrcMAC: b.end.MAC, DstMAC: b.out.MAC, Src: f.Endpoint, Dst: f.SNAT, Flags: bpftest.ACK}.Bytes(t))
	}
	var wait sync.WaitGroup
	for iface, frames := range map[int][][]byte{b.in.Index: forward, b.out.Index: reply} {
		wait.Go(func() {
			out := make([]byte, 512)
			b.ns.Do(func() {
				for _, frame := range frames {
					if _, err := b.programs.entry.Run(&ebpf.RunOptions{Data: frame, DataOut: out, Context: skBuff{Ifindex: uint32(iface)}}); err != nil {
						t.Error(err)
						return
					}
				}
			})
		})
	}
	wait.Wait()
	n := 0
	for c, err := range connections(t.Context(), b.flowTable()) {
		if err != nil {
			t.Fatal(err)
		}
		n++
		for _, f := range []pontoonFlow{c.forward, c.reply} {
			if FlowState(f.State) != StateFin || f.replica() || f.OwnerSlot != 5 {
				t.Fatalf("%+v", c)
			}
		}
	}
	if n != flows {
		t.Errorf("%d connections", n)
	}
	b.exact("adopted and closing")
}

// A reset that nobody believed does not end the connection, whichever side is heard next.
func TestConnectionLivesOnAfterAForgedReset(t *testing.T) {
	for name, fromClient := range map[string]bool{"as if by the client": true, "as if by the endpoint": false} {
		for _, same := range []bool{true, false} {
			b := newBench(t, nil)
			b.sync(service(ModeFullNAT, endpoint1))
			snat, _ := b.talk(clientPort, vipPort)
			say := func(client bool, flags uint8) {
				if client {
					b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: flags})
				} else {
					b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: flags})
				}
			}
			expect := func(what string, want FlowState) {
				t.Helper()
				for _, f := range b.halves(clientPort.Port()) {
					if FlowState(f.State) != want {
						t.Fatalf("%s, same side %t, %s: %s", name, same, what, FlowState(f.State))
					}
				}
				b.exact(what)
			}
			b.age(time.Minute, nil)
			say(fromClient, bpftest.RST)
			expect("reset", StateClosed)
			say(!fromClient, bpftest.ACK)
			expect("what was under way", StateClosed)
			b.age(2*time.Second, nil)
			say(!fromClient, bpftest.ACK)
			expect("two seconds later", StateClosed)
			b.age(25*time.Second, nil)
			b.mustSweep()
			expect("swept", StateClosed)
			say(fromClient == same, bpftest.ACK)
			expect("heard again", StateEstablished)
			if n := b.Stats().Counters["revived"]; n != 1 {
				t.Errorf("revived %d", n)
			}
			say(true, bpftest.FIN)
			expect("closing as ever", StateFin)
		}
	}
}

func TestResetOfAYoungOrClosingConnectionIsBelievedSooner(t *testing.T) {
	for _, row := range []struct {
		name  string
		lived time.Duration
		fin   bool
		limit time.Duration
	}{
		{"old", time.Minute, false, 30 * time.Second},
		{"young", 10 * time.Second, false, 5 * time.Second},
		{"closing", time.Minute, true, 5 * time.Second},
	} {
		b := newBench(t, nil)
		b.sync(service(ModeFullNAT, endpoint1))
		b.talk(clientPort, vipPort)
		b.age(row.lived, nil)
		if row.fin {
			b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
		}
		b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST})
		b.age(row.limit-2*time.Second, nil)
		b.mustSweep()
		if len(b.flows()) != 1 {
			t.Errorf("%s: gone two seconds early", row.name)
		}
		b.age(4*time.Second, nil)
		b.mustSweep()
		if len(b.flows()) != 0 {
			t.Errorf("%s: still there", row.name)
		}
	}
}

// A closed flow's tuple may be given away even if only a reset has closed it: else who closes by
// resets would run out of ports.
func TestPortOfAResetFlowIsTakenOverWhenThereIsNoOther(t *testing.T) {
	b := newBench(t, func(o *Options) { o.MaxFlows = 10000 })
	b.sync(service(ModeFullNAT, endpoint1))
	b.occupy(StateEstablished)
	held := b.flows()[0]
	b.fromClient(bpftest.Packet{Src: held.Client, Dst: held.VIP, Flags: bpftest.RST})
	for i := range 2000 { // 32 ports are tried by a hash of the client's
		c := netip.AddrPortFrom(client, uint16(2000+i))
		if action, _ := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN}); action == actRedirect {
			if n := b.Stats().Counters["taken_over"]; n != 1 {
				t.Errorf("taken over %d", n)
			}
			return
		}
	}
	t.Error("the port was not given away")
}
