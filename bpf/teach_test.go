package bpf

import (
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

const (
	ownFin  = uint8(pontoonFlowFlagFLOW_F_OWN_FIN)
	peerFin = uint8(pontoonFlowFlagFLOW_F_PEER_FIN)
	peerRst = uint8(pontoonFlowFlagFLOW_F_PEER_RST)
)

// An owner whose claim stands learns all the same what another node has seen of the connection's end.
func TestOwnerLearnsOfTheEndThatAnotherNodeSees(t *testing.T) {
	for _, tc := range []struct {
		name   string
		here   uint8 // what the client has said here
		reason uint8
		state  FlowState
		flags  uint8 // what another node says
		age    time.Duration
		want   FlowState
	}{
		{"the endpoint's FIN", 0, reasonState, StateFin, peerFin, 0, StateFin},
		{"the endpoint's FIN with the other node's first word", 0, reasonAdopt, StateFin, peerFin, 0, StateFin},
		{"the second FIN", bpftest.FIN | bpftest.ACK, reasonState, StateFin, peerFin, 0, StateClosed},
		{"a reset", 0, reasonClose, StateClosed, peerRst, 0, StateClosed},
		{"a reset that was none", bpftest.RST, reasonState, StateEstablished, 0, 0, StateEstablished},
		{"a word that says nothing of a reset", bpftest.RST, reasonAdopt, StateEstablished, 0, 0, StateClosed},
		{"the end of an earlier connection", 0, reasonClose, StateClosed, ownFin | peerFin, time.Minute, StateEstablished},
		{"what somebody has heard", 0, reasonHearsay, StateFin, peerFin, 0, StateEstablished},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, nil)
			b.sync(service(ModeFullNAT, endpoint1))
			b.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
			b.talk(clientPort, vipPort)
			if tc.here != 0 {
				b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: tc.here}))
			}
			r, err := parseRecord(records(t, b.Dataplane))
			if err != nil {
				t.Fatal(err)
			}
			r.OwnerSlot, r.Reason, r.State, r.Flags = 5, tc.reason, uint8(tc.state), tc.flags
			r.IdleMs, r.AgeMs = 50, r.AgeMs+uint32(tc.age.Milliseconds()) // in doubt the lower slot stands
			b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: addrPort(r.Snat, r.SnatPort), Flags: bpftest.ACK}))
			if got := importAll(t, b.Dataplane, wire([]pontoonFlowRecord{r})); got.Kept != 1 {
				t.Fatalf("%+v", got)
			}
			if f := b.only(); f.State != tc.want || !f.Owner {
				t.Errorf("%+v, want %s", f, tc.want)
			}
			b.exact(tc.name)
		})
	}
}

// A closed connection of which another node speaks does not stand over a later one of the same tuple, however young
// its last packet, nor does its end take that one out.
func TestEarlierConnectionOfATupleDoesNotEndALaterOne(t *testing.T) {
	a, b := newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	for _, n := range []*bench{a, b} {
		n.sync(service(ModeDNAT, endpoint1))
		n.SetOwnersAlive(map[uint8]bool{2: true, 3: true, 5: true})
	}
	a.talk(clientPort, vipPort)
	r, err := parseRecord(records(t, a.Dataplane))
	if err != nil {
		t.Fatal(err)
	}
	importAll(t, b.Dataplane, wire([]pontoonFlowRecord{r}))
	earlier := r
	earlier.OwnerSlot, earlier.Reason, earlier.State, earlier.Flags = 2, reasonAdopt, uint8(StateClosed), ownFin|peerFin
	earlier.IdleMs, earlier.AgeMs = 0, 60_000
	for i, n := range []*bench{a, b} {
		n.age(time.Second, func(f *pontoonFlow) bool { return true })
		if got := importAll(t, n.Dataplane, wire([]pontoonFlowRecord{earlier})); got.Kept != 1 {
			t.Errorf("node %d: %+v", i, got)
		}
		if f := n.only(); f.State != StateEstablished {
			t.Errorf("node %d: %+v", i, f)
		}
	}
	end := earlier
	end.Op, end.Reason = opDelete, reasonClose
	if importAll(t, b.Dataplane, wire([]pontoonFlowRecord{end})); len(b.flows()) != 1 {
		t.Error("the end of the earlier one took the later one out")
	}
	// The other way round the later one stands over what is closed here.
	a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST}))
	a.age(time.Minute, nil)
	a.must(a.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.RST}))
	later := r
	later.OwnerSlot, later.Reason, later.IdleMs, later.AgeMs = 5, reasonNew, 0, 0
	if got := importAll(t, a.Dataplane, wire([]pontoonFlowRecord{later})); got.Written != 1 || a.only().State != StateEstablished {
		t.Errorf("%+v, %+v", got, a.only())
	}
}
