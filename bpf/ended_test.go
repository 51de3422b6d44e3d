package bpf

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

// The two endpoints of endedBench, and the client port whose flow each has.
const (
	stayingPort = 2000 // to endpoint1
	endedPort   = 2001 // to endpoint2
	halfPort    = 2003 // to endpoint2, half-open
)

// endedBench has a flow to either endpoint and half a one to the second.
func endedBench(t *testing.T, policy Policy, change func(*Options)) (*bench, Service) {
	t.Helper()
	b := newBench(t, change)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.OnRemove = policy
	b.sync(s)
	for _, port := range []uint16{stayingPort, endedPort} {
		b.talk(netip.AddrPortFrom(client, port), vipPort)
	}
	for _, port := range []uint16{halfPort - 1, halfPort} {
		b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, port), Dst: vipPort, Flags: bpftest.SYN})
	}
	return b, s
}

// halves returns what stands in the flow table for a client port, forward half first.
func (b *bench) halves(port uint16) []pontoonFlow {
	b.tb.Helper()
	for c, err := range connections(context.Background(), b.flowTable()) {
		if err != nil {
			b.tb.Fatal(err)
		}
		if c.key.Sport == swap16(port) {
			return []pontoonFlow{c.forward, c.reply}
		}
	}
	return nil
}

func (b *bench) halfOpenOf(port uint16) bool {
	for _, f := range b.flows() {
		if f.Client.Port() == port && f.HalfOpen {
			return true
		}
	}
	return false
}

// waysToEnd are all ways in which an endpoint loses its flows.
var waysToEnd = map[string]func(*Service){
	"taken off the list": func(s *Service) { s.Endpoints = s.Endpoints[:1] },
	"down":               func(s *Service) { s.Endpoints[1].State = EndpointDown },
	"drained": func(s *Service) {
		s.Endpoints[1].State, s.Endpoints[1].DrainUntil = EndpointDrain, time.Now().Add(-time.Second)
	},
}

func TestEndOfAnEndpointFollowsThePolicy(t *testing.T) {
	for way, end := range waysToEnd {
		for _, policy := range []Policy{PolicyKeep, PolicyDrop, PolicyReset} {
			t.Run(fmt.Sprintf("%s, policy %d", way, policy), func(t *testing.T) {
				b, s := endedBench(t, policy, nil)
				before := b.halves(stayingPort)
				s = numbered(s)[0]
				end(&s)
				b.sync(s)
				b.mustSweep()
				b.exact("swept")
				if after := b.halves(stayingPort); len(after) != 2 || after[0] != before[0] || after[1] != before[1] {
					t.Errorf("flow of another endpoint: %+v, was %+v", after, before)
				}
				if !b.halfOpenOf(halfPort - 1) {
					t.Error("half-open flow of another endpoint is gone")
				}
				if there := b.halfOpenOf(halfPort); there != (policy == PolicyKeep) {
					t.Errorf("half-open flow there: %t", there)
				}
				ended := b.halves(endedPort)
				if there := len(ended) == 2; there != (policy != PolicyDrop) {
					t.Fatalf("flow there: %t", there)
				}
				for _, half := range ended {
					if half.doomed() != (policy == PolicyReset) {
						t.Errorf("doomed: %t", half.doomed())
					}
				}
			})
		}
	}
}

func TestDrainAndWeightZeroKeepTheirFlows(t *testing.T) {
	for name, change := range map[string]func(*Endpoint){
		"weight 0":     func(e *Endpoint) { e.Weight = 0 },
		"draining":     func(e *Endpoint) { e.State = EndpointDrain },
		"still drains": func(e *Endpoint) { e.State, e.DrainUntil = EndpointDrain, time.Now().Add(time.Hour) },
	} {
		b, s := endedBench(t, PolicyDrop, nil)
		before := b.halves(endedPort)
		s = numbered(s)[0]
		change(&s.Endpoints[1])
		b.sync(s)
		b.mustSweep()
		if after := b.halves(endedPort); len(after) != 2 || after[0] != before[0] || !b.halfOpenOf(halfPort) {
			t.Errorf("%s: %+v, was %+v", name, after, before)
		}
		for i := range 4 {
			if _, endpoint := b.talk(netip.AddrPortFrom(client, uint16(3000+i)), vipPort); endpoint != endpoint1 {
				t.Errorf("%s: a new flow went to %s", name, endpoint)
			}
		}
	}
}

func TestFlowsOfADeletedServiceFollowItsPolicy(t *testing.T) {
	for _, policy := range []Policy{PolicyKeep, PolicyDrop, PolicyReset} {
		b, _ := endedBench(t, policy, nil)
		b.sync()
		b.mustSweep()
		ended := b.halves(endedPort)
		if len(ended) > 0 != (policy != PolicyDrop) || len(ended) > 0 && ended[0].doomed() != (policy == PolicyReset) {
			t.Errorf("policy %d: %+v", policy, ended)
		}
	}
}

func TestRestartedNodeEndsWhatWasRemovedMeanwhile(t *testing.T) {
	b, s := endedBench(t, PolicyDrop, nil)
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.mustSweep()
	if len(b.halves(endedPort)) == 0 {
		t.Fatal("a flow ended before anybody said what there is to be")
	}
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	b.mustSweep()
	if len(b.halves(endedPort)) != 0 || len(b.halves(stayingPort)) != 2 {
		t.Error("wrong flows ended")
	}
	b.Dataplane = openTest(t, b.ns, b.opts)
	b.sync()
	b.mustSweep()
	if f := b.halves(stayingPort); len(f) != 2 || !f[0].doomed() {
		t.Errorf("flow of a service that nobody remembers: %+v", f)
	}
}

// Other nodes have its connections by now, and a straggling packet must not end them.
func TestRetiredNodeEndsNothing(t *testing.T) {
	b, s := endedBench(t, PolicyReset, nil)
	if err := b.Sync(context.Background(), Desired{Retired: true}); err != nil {
		t.Fatal(err)
	}
	b.mustSweep()
	for _, port := range []uint16{stayingPort, endedPort} {
		if f := b.halves(port); len(f) != 2 || f[0].doomed() {
			t.Errorf("flow: %+v", f)
		}
		if action, _ := b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, port), Dst: vipPort, Flags: bpftest.ACK}); action != actRedirect {
			t.Errorf("a straggler: action %d", action)
		}
	}
	b.sync(s)
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	b.mustSweep()
	if f := b.halves(endedPort); len(f) != 2 || !f[0].doomed() {
		t.Errorf("after it came back: %+v", f)
	}
}

// A peer may have heard of an endpoint earlier than we have.
func TestFlowsOfUnknownEndpointsAreLeftAlone(t *testing.T) {
	a, _ := endedBench(t, PolicyDrop, nil)
	b := newBench(t, func(o *Options) { o.Slot = 5 })
	s := service(ModeFullNAT, endpoint1)
	s.OnRemove = PolicyDrop
	b.sync(s)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	b.sync(s)
	b.mustSweep()
	if len(b.halves(endedPort)) != 2 {
		t.Error("the replica is gone")
	}
}

func TestEveryNodeEndsItsOwnCopy(t *testing.T) {
	a, s := endedBench(t, PolicyDrop, nil)
	b := newBench(t, func(o *Options) { o.Slot = 5 })
	b.sync(s)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	s.Endpoints = s.Endpoints[:1]
	for _, n := range []*bench{a, b} {
		n.sync(s)
		n.mustSweep()
		if len(n.halves(endedPort)) != 0 || len(n.halves(stayingPort)) != 2 {
			t.Error("wrong flows ended")
		}
		n.exact("ended")
	}
	// Only the owner tells, and the other has nothing left to do.
	batch := <-a.Events()
	if r, err := parseRecord(batch); err != nil || r.Op != opDelete || len(batch) != RecordSize {
		t.Errorf("record %+v, %v", r, err)
	}
	select {
	case <-b.Events():
		t.Error("a copy was reported")
	default:
	}
	if r := importAll(t, b.Dataplane, batch); r != (ImportResult{}) {
		t.Errorf("import: %+v", r)
	}
	b.exact("told")
}

func TestBothSidesOfADoomedFlowAreTold(t *testing.T) {
	b, s := endedBench(t, PolicyReset, nil)
	snat := b.snatOf(endedPort)
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	b.mustSweep()
	for _, f := range b.flows() {
		if f.Ended != (f.Client.Port() == endedPort) {
			t.Errorf("shown as %+v", f)
		}
	}
	c := netip.AddrPortFrom(client, endedPort)
	action, out := b.fromClient(bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK, Seq: 100, Ack: 777})
	if src, dst := tuple(out); action != actRedirect || src != vipPort || dst != c || out[47]&bpftest.RST == 0 {
		t.Fatalf("the client hears: action %d, %x", action, out)
	}
	b.mustSweep()
	if len(b.halves(endedPort)) != 2 {
		t.Fatal("gone before the endpoint was told")
	}
	action, out = b.fromEndpoint(bpftest.Packet{Src: endpoint2, Dst: snat, Flags: bpftest.ACK, Seq: 100, Ack: 777})
	if src, dst := tuple(out); action != actRedirect || src != snat || dst != endpoint2 || out[47]&bpftest.RST == 0 {
		t.Fatalf("the endpoint hears: action %d, %x", action, out)
	}
	b.mustSweep()
	if len(b.halves(endedPort)) != 0 {
		t.Error("still there after both sides were told")
	}
	b.exact("told")
}

func (b *bench) snatOf(port uint16) netip.AddrPort {
	for _, f := range b.flows() {
		if f.Client.Port() == port {
			return f.SNAT
		}
	}
	return netip.AddrPort{}
}

func TestResetOnADoomedFlowIsNotAnswered(t *testing.T) {
	b, s := endedBench(t, PolicyReset, nil)
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	b.mustSweep()
	action, _ := b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, endedPort), Dst: vipPort, Flags: bpftest.RST})
	if action != actDrop || b.drops("doomed") != 1 {
		t.Errorf("action %d, drops %v", action, b.Stats().Drops)
	}
}

func TestSynOnADoomedFlowBeginsAnew(t *testing.T) {
	b, s := endedBench(t, PolicyReset, nil)
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	b.mustSweep()
	if _, endpoint := b.talk(netip.AddrPortFrom(client, endedPort), vipPort); endpoint != endpoint1 {
		t.Errorf("it goes to %s", endpoint)
	}
	if f := b.halves(endedPort); len(f) != 2 || f[0].doomed() {
		t.Errorf("flow: %+v", f)
	}
	b.exact("begun anew")
}

func TestDoomedFlowsGoAfterAWhile(t *testing.T) {
	a, s := endedBench(t, PolicyReset, nil)
	b := newBench(t, func(o *Options) { o.Slot = 5 })
	b.sync(s)
	importAll(t, b.Dataplane, records(t, a.Dataplane))
	b.SetOwnersAlive(map[uint8]bool{3: true, 5: true}) // its owner's life does not keep a copy
	s.Endpoints = s.Endpoints[:1]
	for i, n := range []*bench{a, b} {
		n.sync(s)
		n.mustSweep()
		n.age(28*time.Second, nil)
		n.mustSweep()
		if len(n.halves(endedPort)) != 2 {
			t.Fatalf("node %d: gone two seconds early", i)
		}
		n.age(4*time.Second, nil)
		n.mustSweep()
		if len(n.halves(endedPort)) != 0 || len(n.halves(stayingPort)) != 2 {
			t.Errorf("node %d: wrong flows are there", i)
		}
		n.exact("gone")
	}
}

func TestIdleFlowIsDoomedWhenBothSidesAreToHear(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1)
	s.IdleReset, s.IdleTimeout = true, time.Minute
	udp := service(ModeFullNAT, endpoint1)
	udp.ID, udp.Protocol, udp.IdleReset = 8, protoUDP, true
	b.sync(s, udp)
	b.talk(clientPort, vipPort)
	_, out := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP})
	snat, endpoint := tuple(out)
	b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Protocol: layers.IPProtocolUDP})
	b.age(time.Hour, nil)
	b.mustSweep()
	if f := b.flows(); len(f) != 1 || f[0].Protocol != protoTCP || !b.halves(clientPort.Port())[0].doomed() {
		t.Fatalf("flows: %+v", f)
	}
	b.age(8*time.Second, nil)
	b.mustSweep()
	if len(b.flows()) != 1 {
		t.Fatal("gone two seconds early")
	}
	b.age(4*time.Second, nil)
	b.mustSweep()
	if n := len(b.flows()); n != 0 {
		t.Errorf("%d flows", n)
	}
	b.exact("gone")
}

func TestSweepFollowsTheEndOfAnEndpointAtOnce(t *testing.T) {
	b, s := endedBench(t, PolicyDrop, nil)
	runDataplane(t, b.Dataplane)
	start := time.Now()
	s.Endpoints = s.Endpoints[:1]
	b.sync(s)
	eventually(t, "the end of the flow", func() error {
		if n := len(b.halves(endedPort)); n != 0 {
			return fmt.Errorf("%d halves", n)
		}
		return nil
	})
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestPauseBetweenSweeps(t *testing.T) {
	d := &Dataplane{log: slog.New(slog.DiscardHandler)}
	now := time.Now()
	drain := func(in time.Duration) {
		d.endings.drains = map[uint16]time.Time{1: now.Add(in), 2: now.Add(time.Hour), 3: now.Add(-time.Hour)}
	}
	for _, row := range []struct {
		doomed      int
		took, drain time.Duration
		want        time.Duration
	}{
		{0, time.Millisecond, time.Hour, time.Second},
		{0, time.Second, time.Hour, 20 * time.Second},
		{5, time.Second, time.Hour, 4 * time.Second},
		{0, time.Second, 3 * time.Second, 3 * time.Second},
		{0, time.Second, time.Millisecond, time.Second},
	} {
		drain(row.drain)
		if got := d.pause(row.doomed, now, row.took); got != row.want {
			t.Errorf("%+v: %s", row, got)
		}
	}
}
