package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// records returns everything that d holds.
func records(tb testing.TB, d *Dataplane) []byte {
	tb.Helper()
	var all []byte
	for part, err := range d.Records(context.Background()) {
		if err != nil {
			tb.Fatal(err)
		}
		if len(part) == 0 || len(part)%RecordSize != 0 || len(part) > dumpChunk*RecordSize {
			tb.Fatalf("chunk of %d bytes", len(part))
		}
		all = append(all, part...)
	}
	return all
}

func importAll(tb testing.TB, d *Dataplane, all []byte) ImportResult {
	tb.Helper()
	result, err := d.Import(context.Background(), all)
	if err != nil {
		tb.Fatal(err)
	}
	return result
}

// A transfer begins on one load balancer and goes on by another that only ever got the records.
func TestFlowMovesToAnotherNodeByteExact(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeDNAT} {
		t.Run(mode.String(), func(t *testing.T) {
			l := newLab(t, false, 2)
			l.serve()
			a, b := l.open(0, nil), l.open(1, nil)
			l.sync(a, mode, protoTCP)
			l.sync(b, mode, protoTCP)
			runDataplane(t, a)
			runDataplane(t, b)
			c := l.dial()
			moved := false
			err := transfer(c, bulk, func(got int) {
				if got < bulk/4 || moved {
					return
				}
				moved = true
				if r := importAll(t, b, records(t, a)); r.Written != 1 {
					t.Errorf("import: %+v", r)
				}
				l.hold(1)
				// What a gratuitous ARP would do.
				l.client.Lookup("eth1").ForgetNeighbour(vip.String())
				for _, e := range l.endpoints {
					e.Lookup("eth1").ForgetNeighbour("10.8.0.1")
				}
			})
			if err != nil {
				t.Fatalf("%v\na %+v\nb %+v", err, a.Stats(), b.Stats())
			}
			if n := b.Stats().Adopted; n != 1 {
				t.Errorf("adopted %d", n)
			}
		})
	}
}

func TestReplicaIsAdoptedByItsFirstPacketInEitherDirection(t *testing.T) {
	for _, byClient := range []bool{true, false} {
		a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
		a.sync(service(ModeFullNAT, endpoint1))
		master := service(ModeFullNAT, endpoint1)
		master.Epoch = 2
		b.sync(master)
		snat, _ := a.talk(clientPort, vipPort)
		importAll(t, b.Dataplane, records(t, a.Dataplane))
		if f := b.flows(); len(f) != 1 || f[0].Owner || f[0].OwnerSlot != 3 || f[0].SNAT != snat || f[0].State != StateEstablished {
			t.Fatalf("replica: %+v", f)
		}
		runDataplane(t, b.Dataplane)
		if byClient {
			b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
		} else {
			b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK})
		}
		if f := b.flows(); len(f) != 1 || !f[0].Owner || f[0].OwnerSlot != 5 {
			t.Fatalf("adopted: %+v", f)
		}
		if n := b.Stats().Adopted; n != 1 {
			t.Errorf("adopted %d", n)
		}
		batch := <-b.Events()
		r, err := parseRecord(batch[:RecordSize])
		if err != nil || r.Reason != uint8(pontoonRecordReasonRECORD_ADOPT) || r.OwnerSlot != 5 {
			t.Errorf("record %+v, %v", r, err)
		}
		// The record goes back and makes the first owner's entry a replica.
		if result := importAll(t, a.Dataplane, batch); result.Written != 1 {
			t.Errorf("import: %+v", result)
		}
		if f := a.flows(); len(f) != 1 || f[0].Owner || f[0].OwnerSlot != 5 {
			t.Errorf("at the first owner: %+v", f)
		}
	}
}

func TestEventsTellTheLifeOfAConnection(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	runDataplane(t, b.Dataplane)
	snat, _ := b.talk(clientPort, vipPort)
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	var got []pontoonFlowRecord
	for len(got) < 3 {
		batch := <-b.Events()
		for at := 0; at < len(batch); at += RecordSize {
			r, err := parseRecord(batch[at : at+RecordSize])
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, r)
		}
	}
	for i, want := range []struct {
		reason uint8
		state  FlowState
		flags  uint8
	}{
		{reasonNew, StateEstablished, 0},
		{uint8(pontoonRecordReasonRECORD_STATE), StateFin, uint8(pontoonFlowFlagFLOW_F_PEER_FIN)},
		{reasonClose, StateClosed, uint8(pontoonFlowFlagFLOW_F_PEER_FIN | pontoonFlowFlagFLOW_F_OWN_FIN)},
	} {
		r := got[i]
		if r.Reason != want.reason || FlowState(r.State) != want.state || r.Flags != want.flags || r.Op != opUpdate {
			t.Errorf("record %d: %+v", i, r)
		}
		if addrPort(r.Client, r.ClientPort) != clientPort || addrPort(r.Vip, r.VipPort) != vipPort ||
			addrPort(r.Snat, r.SnatPort) != snat || addrPort(r.Endpoint, r.EndpointPort) != endpoint1 || r.Service != 7 {
			t.Errorf("record %d names %+v", i, r)
		}
	}
	if r := got[2]; r.ForwardPackets != 2 || r.ReplyPackets != 2 { // the last one is not counted yet
		t.Errorf("packets %d and %d", r.ForwardPackets, r.ReplyPackets)
	}
}

func TestImportKeepsWhatIsOwnedHereAndNewer(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(service(ModeFullNAT, endpoint1))
	a.talk(clientPort, vipPort)
	all := records(t, a.Dataplane)
	older := append([]byte(nil), all...)
	binary.LittleEndian.PutUint32(older[84:], 60_000)
	binary.LittleEndian.PutUint32(older[88:], 70_000)
	if r := importAll(t, a.Dataplane, older); r.Kept != 1 || r.Written != 0 {
		t.Errorf("older record over an owned flow: %+v", r)
	}
	deletion := append([]byte(nil), all...)
	deletion[recordOp] = opDelete
	if r := importAll(t, a.Dataplane, deletion); r.Kept != 1 || len(a.flows()) != 1 {
		t.Errorf("delete of an owned flow: %+v", r)
	}
	if r := importAll(t, b.Dataplane, older); r.Written != 1 {
		t.Errorf("older record where nothing was: %+v", r)
	}
	if f := b.flows()[0]; f.Idle < 59*time.Second || f.Idle > 61*time.Second || f.Age < 69*time.Second || f.Age > 71*time.Second {
		t.Errorf("idle %s, age %s", f.Idle, f.Age)
	}
	if r := importAll(t, b.Dataplane, all); r.Written != 1 || b.flows()[0].Idle > 2*time.Second {
		t.Errorf("newer record over a replica: %+v", r)
	}
	if r := importAll(t, b.Dataplane, deletion); r.Deleted != 1 || len(b.flows()) != 0 {
		t.Errorf("delete of a replica: %+v", r)
	}
	if entries := entriesOf(t, b.Dataplane); entries != 0 {
		t.Errorf("%d halves are left", entries)
	}
}

// entriesOf counts the halves in the flow table.
func entriesOf(tb testing.TB, d *Dataplane) int {
	tb.Helper()
	n := 0
	for part, err := range dump(context.Background(), d.maps.Flows) {
		if err != nil {
			tb.Fatal(err)
		}
		n += len(part.keys)
	}
	return n
}

func TestImportOfANewTupleRemovesTheOldReplyHalf(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(service(ModeFullNAT, endpoint1))
	a.talk(clientPort, vipPort)
	all := records(t, a.Dataplane)
	importAll(t, b.Dataplane, all)
	binary.BigEndian.PutUint16(all[68:], 30000) // another SNAT port
	if r := importAll(t, b.Dataplane, all); r.Written != 1 {
		t.Errorf("%+v", r)
	}
	if n := entriesOf(t, b.Dataplane); n != 2 {
		t.Errorf("%d halves, want 2", n)
	}
	// Another client on the same SNAT tuple: the one that came last is right.
	binary.BigEndian.PutUint16(all[64:], 40001)
	if r := importAll(t, b.Dataplane, all); r.Written != 1 {
		t.Errorf("%+v", r)
	}
	if f := b.flows(); len(f) != 1 || f[0].Client.Port() != 40001 {
		t.Errorf("flows: %+v", f)
	}
	if n := entriesOf(t, b.Dataplane); n != 2 {
		t.Errorf("%d halves, want 2", n)
	}
}

func TestImportRejectsWhatNoDataplaneWrites(t *testing.T) {
	a := newBench(t, nil)
	a.sync(service(ModeFullNAT, endpoint1))
	a.talk(clientPort, vipPort)
	good := records(t, a.Dataplane)
	for offset, value := range map[int]byte{recordOp: 9, 76: 99, 77: 0, 78: 1, 80: 9, 82: 255} {
		bad := append([]byte(nil), good...)
		bad[offset] = value
		if r := importAll(t, a.Dataplane, bad); r.Invalid != 1 {
			t.Errorf("byte %d = %d: %+v", offset, value, r)
		}
	}
	if _, err := a.Import(context.Background(), good[:100]); err == nil {
		t.Error("part of a record is taken")
	}
}

func TestSnapshotRemovesWhatItDoesNotName(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	a.sync(service(ModeFullNAT, endpoint1))
	b.sync(service(ModeFullNAT, endpoint1))
	for i := range 10 {
		a.talk(netip.AddrPortFrom(client, uint16(40000+i)), vipPort)
	}
	all := records(t, a.Dataplane)
	importAll(t, b.Dataplane, all)
	own := netip.AddrPortFrom(client, 50000)
	b.talk(own, vipPort)
	b.BeginSnapshot(3)
	importAll(t, b.Dataplane, all[:4*RecordSize])
	// One that the snapshot does not name is adopted meanwhile.
	adopted, err := parseRecord(all[5*RecordSize : 6*RecordSize])
	if err != nil {
		t.Fatal(err)
	}
	b.fromClient(bpftest.Packet{Src: addrPort(adopted.Client, adopted.ClientPort), Dst: vipPort, Flags: bpftest.ACK})
	removed, err := b.EndSnapshot(context.Background(), 3)
	if err != nil || removed != 5 {
		t.Errorf("removed %d, %v", removed, err)
	}
	if n := len(b.flows()); n != 4+1+1 {
		t.Errorf("%d flows are left", n)
	}
	if _, err := b.EndSnapshot(context.Background(), 3); err == nil {
		t.Error("ended twice")
	}
}

func TestImportIntoAFullTableIsCounted(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.MaxFlows = 64 })
	a.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 500 {
		a.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	r := importAll(t, b.Dataplane, records(t, a.Dataplane))
	if r.Failed == 0 || r.Written+r.Failed != 500 || r.Written < 64 {
		t.Errorf("%+v", r)
	}
	if n := len(b.flows()); n != r.Written {
		t.Errorf("%d connections, %d written", n, r.Written)
	}
	if n := entriesOf(t, b.Dataplane); n != 2*r.Written {
		t.Errorf("%d halves for %d connections", n, r.Written)
	}
}

// In a quick handover the old owner's last packet is hardly older than the new owner's first.
func TestQuickHandoverLeavesOneOwner(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for i, n := range []*bench{a, b} {
		s := service(ModeFullNAT, endpoint1)
		s.Epoch = uint32(10 + i)
		n.sync(s)
	}
	a.talk(clientPort, vipPort)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	runDataplane(t, b.Dataplane)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	batch := <-b.Events()
	binary.LittleEndian.PutUint32(batch[recordIdle:], 8) // it lay in the ring for some ticks
	a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if r := importAll(t, a.Dataplane, batch); r.Written != 1 || a.flows()[0].Owner {
		t.Errorf("%+v: two owners", r)
	}
}

// What a full table holds already can still be brought up to date.
func TestImportIntoAFullTableGoesOnAfterARefusal(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.MaxFlows, o.Slot = 64, 5 })
	a.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 500 {
		a.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	all := records(t, a.Dataplane)
	before := importAll(t, b.Dataplane, all)
	for at := 0; at < len(all); at += RecordSize {
		all[at+recordOp-1] = uint8(StateClosed)
	}
	last := len(all) - RecordSize // refused the first time, and now the first
	after := importAll(t, b.Dataplane, append(append([]byte(nil), all[last:]...), all[:last]...))
	closed := 0
	for _, f := range b.flows() {
		if f.State == StateClosed {
			closed++
		}
	}
	if after.Written < before.Written || closed < before.Written || after.Written+after.Failed != 500 {
		t.Errorf("first %+v, then %+v, %d brought up to date", before, after, closed)
	}
}

func TestSlowConsumerIsToldWhatItMissed(t *testing.T) {
	b := newBench(t, nil)
	record := make([]byte, RecordSize)
	for i := range eventBatches + 3 {
		if i == eventBatches {
			select {
			case <-b.Lost():
				t.Fatal("lost before the channel was full")
			default:
			}
		}
		b.send(record)
	}
	<-b.Lost()
	select {
	case <-b.Lost():
		t.Error("not coalesced")
	default:
	}
	if n := b.Stats().LostRecords; n != 3 {
		t.Errorf("%d records lost, want 3", n)
	}
}

func TestFullRingIsCountedAndSignalled(t *testing.T) {
	b := newBench(t, func(o *Options) { o.EventsBytes = 4096 })
	b.sync(service(ModeFullNAT, endpoint1))
	for i := range 60 { // nobody reads
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	lost := b.Stats().Counters["ring_lost"]
	if lost == 0 {
		t.Fatal("nothing lost in a ring of 4 KiB")
	}
	if len(b.flows()) != 60 {
		t.Error("a lost record cost a flow")
	}
	runDataplane(t, b.Dataplane)
	<-b.Lost()
	// All that is older than the loss is there by now, so that nothing old follows a snapshot.
	for len(b.Events()) > 0 {
		<-b.Events()
	}
	b.talk(clientPort, vipPort)
	batch := <-b.Events()
	if r, err := parseRecord(batch[:RecordSize]); err != nil || addrPort(r.Client, r.ClientPort) != clientPort {
		t.Errorf("%+v, %v: something older than the loss came after its signal", r, err)
	}
}

// A daemon that was stopped for a while finds records in the ring that are old news by then.
func TestRecordsAgeInTheRing(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeFullNAT, endpoint1))
	}
	a.talk(clientPort, vipPort)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	wait := time.NewTimer(200 * time.Millisecond)
	<-wait.C
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	runDataplane(t, a.Dataplane)
	batch := <-a.Events()
	r, err := parseRecord(batch)
	if err != nil || r.IdleMs < 190 || r.IdleMs > 5000 || r.AgeMs < r.IdleMs {
		t.Errorf("idle %d ms, age %d ms, %v", r.IdleMs, r.AgeMs, err)
	}
	if result := importAll(t, b.Dataplane, batch); result.Kept != 1 || !b.flows()[0].Owner {
		t.Errorf("old news took the flow from its new owner: %+v", result)
	}
}
