package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

// heard returns what has been said since the last call, by the ring and by user space.
func (b *bench) heard() []pontoonFlowRecord {
	b.tb.Helper()
	var all []pontoonFlowRecord
	idle := time.NewTimer(200 * time.Millisecond)
	defer idle.Stop()
	for {
		select {
		case batch := <-b.Events():
			for at := 0; at < len(batch); at += RecordSize {
				r, err := parseRecord(batch[at : at+RecordSize])
				if err != nil {
					b.tb.Fatal(err)
				}
				all = append(all, r)
			}
			idle.Reset(200 * time.Millisecond)
		case <-idle.C:
			return all
		}
	}
}

func TestServiceThatIsNotReplicatedSaysNothing(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.Replicate = ReplicateNone
	b.sync(s)
	runDataplane(t, b.Dataplane)
	b.talk(clientPort, vipPort)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST})
	b.age(time.Hour, nil)
	if all := records(t, b.Dataplane); len(all) != 0 {
		t.Errorf("%d bytes of a snapshot", len(all))
	}
	b.mustSweep()
	if said := b.heard(); len(said) != 0 || len(b.flows()) != 0 {
		t.Errorf("said %+v, flows %+v", said, b.flows())
	}
	// Once the service is replicated, what goes on is told.
	b.talk(clientPort, vipPort)
	s.Replicate = ReplicateEstablished
	b.sync(s)
	b.mustSweep()
	if said := b.heard(); len(said) != 1 || said[0].Reason != reasonNew || said[0].ForwardPackets != 2 || said[0].ReplyPackets != 1 {
		t.Errorf("said %+v", said)
	}
}

// What the others have heard of ends for them, too: replicas of an owner that lives do not age.
func TestEndIsToldThoughTheServiceIsNoLongerReplicated(t *testing.T) {
	a, b := twoNodes(t)
	runDataplane(t, a.Dataplane)
	a.heard()
	s := service(ModeFullNAT, endpoint1)
	s.Replicate = ReplicateNone
	a.sync(s)
	b.sync(s)
	a.age(2*time.Hour, nil)
	a.mustSweep()
	said := a.heard()
	if len(a.flows()) != 0 || len(said) != 1 || said[0].Op != opDelete {
		t.Fatalf("said %+v of the end, flows %+v", said, a.flows())
	}
	if r := importAll(t, b.Dataplane, said[0].append(nil)); r.Deleted != 1 || len(b.flows()) != 0 {
		t.Errorf("%+v, the other node has %+v", r, b.flows())
	}
}

func TestFlowIsToldOfFromItsMinimumAgeOn(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.ReplicateMinAge, s.Epoch = time.Minute, 77
	b.sync(s)
	runDataplane(t, b.Dataplane)
	snat, _ := b.talk(clientPort, vipPort)
	b.talk(netip.AddrPortFrom(client, 40001), vipPort)
	b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 40001), Dst: vipPort, Flags: bpftest.RST})
	b.age(30*time.Second, nil)
	b.mustSweep()
	if said := b.heard(); len(said) != 0 || len(records(t, b.Dataplane)) != 0 {
		t.Fatalf("said %+v before the minimum age", said)
	}
	b.age(31*time.Second, nil)
	b.mustSweep()
	said := b.heard()
	if len(said) != 1 || said[0].Reason != reasonNew || said[0].Epoch != 77 || said[0].Op != opUpdate || said[0].AgeMs < 60_000 {
		t.Fatalf("said %+v at the minimum age", said)
	}
	if n := len(records(t, b.Dataplane)); n != RecordSize {
		t.Errorf("%d bytes of a snapshot", n)
	}
	b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.FIN | bpftest.ACK})
	if said := b.heard(); len(said) != 1 || FlowState(said[0].State) != StateFin || said[0].Epoch != 77 {
		t.Errorf("said %+v of its closing", said)
	}
}

// The counters of a flow that lives long travel every few seconds, and make neither a connection nor
// an end undone.
func TestCountersOfLongFlowsAreTold(t *testing.T) {
	a, b := twoNodes(t)
	a.age(time.Minute, nil)
	a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: make([]byte, 500)})
	runDataplane(t, a.Dataplane)
	a.heard()
	a.turns.last = instant{}
	a.accounts.add(0, -2) // a drift, before it is mended, is not a table of 2^64
	a.mustSweep()
	var batch []byte
	select {
	case batch = <-a.Events():
	case <-time.After(5 * time.Second):
		t.Fatal("nothing is said of a flow that goes on")
	}
	if batch[recordReason] != reasonCounters {
		t.Fatalf("reason %d", batch[recordReason])
	}
	if r := importAll(t, b.Dataplane, batch); r.Written != 1 {
		t.Errorf("%+v", r)
	}
	if f := b.flows(); f[0].Packets != a.flows()[0].Packets || f[0].Bytes != a.flows()[0].Bytes {
		t.Errorf("%+v at the replica, %+v at the owner", f, a.flows())
	}
	a.mustSweep()
	if said := a.heard(); len(said) != 0 {
		t.Errorf("said again at once: %+v", said)
	}
	gone := append([]byte(nil), batch...)
	gone[recordOp], gone[recordReason] = opDelete, reasonExpire
	importAll(t, b.Dataplane, gone)
	if r := importAll(t, b.Dataplane, batch); r.Kept != 1 || len(b.flows()) != 0 {
		t.Errorf("counters make a connection that has ended: %+v", r)
	}
}
