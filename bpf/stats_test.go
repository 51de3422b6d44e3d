package bpf

import (
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
)

func TestServiceSumsNeverGoBack(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.OnRemove = PolicyKeep
	b.sync(s)
	for i := range 4 {
		b.talk(netip.AddrPortFrom(client, uint16(2000+i)), vipPort)
	}
	expect := func(when string, forward, isNew, active uint64, endpoints int) {
		t.Helper()
		b.mustSweep()
		got := b.Stats().Services[7]
		if got.Forward.Packets != forward || got.New != isNew || got.Active != active || len(got.Endpoints) != endpoints {
			t.Errorf("%s: %+v", when, got)
		}
	}
	expect("at first", 8, 4, 4, 2)
	shorter := s
	shorter.Endpoints = s.Endpoints[:1]
	b.sync(shorter)
	expect("an endpoint is gone", 8, 4, 4, 1)
	// Its flows go on, and count.
	for i := range 4 {
		b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, uint16(2000+i)), Dst: vipPort, Flags: bpftest.ACK})
	}
	expect("flows of a gone endpoint", 12, 4, 4, 1)
	// Its id is another's now.
	other := s
	other.Endpoints = append([]Endpoint(nil), s.Endpoints...)
	other.Endpoints[1].Addr = netip.MustParseAddrPort("10.8.0.23:8080")
	b.sync(other)
	expect("id given to another", 12, 4, 4, 2)
	if e := b.Stats().Services[7].Endpoints[other.Endpoints[1].Addr]; e.Forward.Packets != 0 || e.New != 0 {
		t.Errorf("the new one begins with %+v", e)
	}
	b.sync(s)
	expect("given back", 12, 4, 4, 2)
}

func TestFiguresOfAGoneServiceAreForgotten(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.OnRemove = PolicyKeep
	b.sync(s)
	b.talk(clientPort, vipPort)
	b.sync()
	b.mustSweep()
	if got, ok := b.Stats().Services[7]; !ok || got.New != 1 || got.Flows != 1 {
		t.Errorf("while it has flows: %+v", got)
	}
	b.age(2*time.Hour, nil)
	b.mustSweep()
	b.mustSweep()
	if got, ok := b.Stats().Services[7]; ok {
		t.Errorf("afterwards: %+v", got)
	}
}

func TestFiguresSurviveARestart(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	before := b.Stats().Services[7]
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.sync(service(ModeFullNAT, endpoint1))
	if after := b.Stats().Services[7]; after.New != 1 || after.Forward != before.Forward || after.Active != 1 {
		t.Errorf("%+v, was %+v", after, before)
	}
}

func TestRepliesAreCountedByThemselves(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	snat, endpoint := b.talk(clientPort, vipPort)
	for range 5 {
		b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Flags: bpftest.ACK, Payload: make([]byte, 100)})
	}
	e := b.Stats().Services[7].Endpoints[endpoint1]
	if e.Forward.Packets != 2 || e.Reply.Packets != 6 || e.Reply.Bytes < 5*140 || e.Forward.Bytes >= e.Reply.Bytes {
		t.Errorf("%+v", e)
	}
	if c := b.Stats().Connections; c != 1 {
		t.Errorf("%d connections", c)
	}
}
