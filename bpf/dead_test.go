package bpf

import (
	"context"
	"fmt"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/gopacket/gopacket/layers"
)

// dies makes the second endpoint of a service one that was found dead.
func dies(s *Service, policy Policy) {
	s.OnDead, s.Endpoints[1].State = policy, EndpointDead
}

func TestADeadEndpointTakesNoNewFlows(t *testing.T) {
	for _, algorithm := range []Algorithm{AlgorithmRR, AlgorithmMaglev, AlgorithmLC} {
		b := newBench(t, nil)
		s := numbered(service(ModeFullNAT, endpoint1, endpoint2))[0]
		s.Algorithm = algorithm
		dies(&s, PolicyKeep)
		b.sync(s)
		for i := range 8 {
			if _, endpoint := b.talk(netip.AddrPortFrom(client, uint16(3000+i)), vipPort); endpoint != endpoint1 {
				t.Errorf("%s: a new flow went to %s", algorithm, endpoint)
			}
		}
		s.Endpoints[1].State = EndpointUp
		b.sync(s)
		back := false
		for i := range 32 {
			_, endpoint := b.talk(netip.AddrPortFrom(client, uint16(4000+i)), vipPort)
			back = back || endpoint == endpoint2
		}
		if !back {
			t.Errorf("%s: no flow goes to the endpoint that is back", algorithm)
		}
	}
}

func TestFlowsOfADeadEndpointFollowThePolicy(t *testing.T) {
	for _, policy := range []Policy{PolicyKeep, PolicyReset, PolicyMove} {
		t.Run(fmt.Sprintf("policy %d", policy), func(t *testing.T) {
			b, s := endedBench(t, PolicyDrop, nil)
			staying, before := b.halves(stayingPort), b.halves(endedPort)
			s = numbered(s)[0]
			dies(&s, policy)
			b.sync(s)
			b.mustSweep()
			b.exact("swept")
			if after := b.halves(stayingPort); len(after) != 2 || after[0] != staying[0] || after[1] != staying[1] {
				t.Errorf("flow of another endpoint: %+v, was %+v", after, staying)
			}
			if !b.halfOpenOf(halfPort-1) || b.halfOpenOf(halfPort) {
				t.Error("of the flows without an answer only that to the dead endpoint is to be forgotten")
			}
			ended := b.halves(endedPort)
			if len(ended) != 2 {
				t.Fatalf("the flow is gone: its sides hear of nothing")
			}
			for i, half := range ended {
				if half.doomed() != (policy != PolicyKeep) {
					t.Errorf("doomed: %t", half.doomed())
				}
				if policy == PolicyKeep && half != before[i] {
					t.Errorf("%+v, was %+v", half, before[i])
				}
			}
		})
	}
}

func TestASynThatADeadEndpointNeverAnsweredGoesElsewhere(t *testing.T) {
	b, s := endedBench(t, PolicyDrop, nil)
	s = numbered(s)[0]
	dies(&s, PolicyKeep)
	b.sync(s)
	b.mustSweep()
	if _, endpoint := b.talk(netip.AddrPortFrom(client, halfPort), vipPort); endpoint != endpoint1 {
		t.Errorf("the repeated SYN went to %s", endpoint)
	}
}

func TestDatagramsToADeadEndpointMove(t *testing.T) {
	for policy, moves := range map[Policy]bool{PolicyKeep: false, PolicyMove: true} {
		b := newBench(t, nil)
		s := numbered(service(ModeFullNAT, endpoint1, endpoint2))[0]
		s.Protocol = protoUDP
		s.Endpoints[0].State = EndpointDrain
		b.sync(s)
		question := bpftest.Packet{Protocol: layers.IPProtocolUDP, Src: clientPort, Dst: vipPort, Payload: []byte("question")}
		snat, endpoint := b.must(b.fromClient(question))
		b.must(b.fromEndpoint(bpftest.Packet{Protocol: layers.IPProtocolUDP, Src: endpoint, Dst: snat, Payload: []byte("answer")}))
		b.must(b.fromClient(question))
		if f := b.only(); endpoint != endpoint2 || f.State != StateEstablished {
			t.Fatalf("begun at %s: %+v", endpoint, f)
		}
		s.Endpoints[0].State = EndpointUp
		dies(&s, policy)
		b.sync(s)
		b.mustSweep()
		if _, endpoint = b.must(b.fromClient(question)); (endpoint == endpoint1) != moves {
			t.Errorf("policy %d: the next datagram went to %s", policy, endpoint)
		}
	}
}

func TestAFlowOfAnEndpointThatIsBackBeforeTheSweepGoesOn(t *testing.T) {
	b, s := endedBench(t, PolicyDrop, nil)
	s = numbered(s)[0]
	dies(&s, PolicyReset)
	b.sync(s)
	s.Endpoints[1].State = EndpointUp
	b.sync(s)
	b.mustSweep()
	for _, half := range b.halves(endedPort) {
		if half.doomed() {
			t.Error("the flow was ended")
		}
	}
}

func TestAClosedServiceRefuses(t *testing.T) {
	for _, f := range families {
		for _, proto := range []uint8{protoTCP, protoUDP} {
			t.Run(fmt.Sprintf("%s, protocol %d", f.name, proto), func(t *testing.T) {
				d := newDuo(t, f, nil)
				s := d.serve(ModeFullNAT, proto)
				s.Endpoints[0].State = EndpointDead
				d.configure(s)
				in := ports{d.clientPort(), d.vipPort()}.frame(proto, bpftest.SYN, nil)
				d.side(true, &in)
				if action, _ := d.send(true, in); action == actRedirect || d.drops("no_endpoint") != 1 {
					t.Errorf("open: action %d, drops %v", action, d.Stats().Drops)
				}
				s.Closed = true
				d.configure(s)
				action, out := d.send(true, in)
				if proto == protoUDP {
					d.expectError(t, in, action, out, portUnreachable[f.name][0], portUnreachable[f.name][1])
				} else if l := d.expectAnswer(t, in, action, out); l.L4[13]&bpftest.RST == 0 {
					t.Errorf("answered with TCP flags %x", l.L4[13])
				}
				s.Endpoints[0].State = EndpointUp
				d.configure(s)
				d.open(proto, d.clientPort())
			})
		}
	}
}

func TestChoicesAreComputedOnceForWhatStaysTheSame(t *testing.T) {
	var c choices
	s := numbered(service(ModeFullNAT, endpoint1, endpoint2))[0]
	s.Algorithm = AlgorithmMaglev
	key := serviceKey(s)
	first := c.table(key, &s)
	if again := c.table(key, &s); &again[0] != &first[0] {
		t.Error("computed again")
	}
	s.Endpoints[1].DrainUntil = s.Endpoints[1].DrainUntil.Add(1)
	if again := c.table(key, &s); &again[0] != &first[0] {
		t.Error("computed again for what does not matter")
	}
	for name, change := range map[string]func(*Service){
		"dead":      func(s *Service) { s.Endpoints[1].State = EndpointDead },
		"weight":    func(s *Service) { s.Endpoints[1].Weight = 7 },
		"address":   func(s *Service) { s.Endpoints[1].Addr = netip.AddrPortFrom(endpoint2.Addr(), 9) },
		"id":        func(s *Service) { s.Endpoints[1].ID = 999 },
		"gone":      func(s *Service) { s.Endpoints = s.Endpoints[:1] },
		"seed":      func(s *Service) { s.Seed++ },
		"algorithm": func(s *Service) { s.Algorithm = AlgorithmRR },
	} {
		other := numbered(s)[0]
		change(&other)
		var fresh choices
		got, want := c.table(key, &other), fresh.table(key, &other)
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: the old table", name)
		}
		c.table(key, &s)
	}
	c.forget(key)
	if len(c) != 0 {
		t.Error("not forgotten")
	}
}

// BenchmarkSyncVerdicts is what verdicts cost in a data plane with 10 000 endpoints: those of one endpoint, and of
// a tenth of all at once.
func BenchmarkSyncVerdicts(bench *testing.B) {
	for _, algorithm := range []Algorithm{AlgorithmRR, AlgorithmMaglev} {
		for name, at := range map[string]struct{ services, endpoints, dead int }{
			"40 services, 1 endpoint":      {40, 250, 1},
			"40 services, 1000 endpoints":  {40, 250, 1000},
			"1000 services, 1 endpoint":    {1000, 10, 1},
			"1000 services, 1000 endpoint": {1000, 10, 1000},
		} {
			bench.Run(algorithm.String()+"/"+name, func(bench *testing.B) {
				b := newBench(bench, nil)
				want := Desired{VIPs: []netip.Addr{vip}}
				for i := range at.services {
					s := service(ModeFullNAT, endpoint1)
					s.ID, s.VIP, s.Algorithm, s.Endpoints = uint32(i+1), netip.AddrPortFrom(vip, uint16(1000+i)), algorithm, nil
					for j := range at.endpoints {
						s.Endpoints = append(s.Endpoints, Endpoint{
							ID: uint32(i*at.endpoints + j + 1), Addr: netip.AddrPortFrom(endpoint1.Addr(), uint16(1000+j)), Weight: 1, Sources: []netip.Addr{vip},
						})
					}
					want.Services = append(want.Services, s)
				}
				all := at.services * at.endpoints
				for dead := false; bench.Loop(); dead = !dead {
					for i := 0; i < all; i += all / at.dead {
						e := &want.Services[i/at.endpoints].Endpoints[i%at.endpoints]
						if e.State = EndpointUp; dead {
							e.State = EndpointDead
						}
					}
					if err := b.Sync(context.Background(), want); err != nil {
						bench.Fatal(err)
					}
				}
			})
		}
	}
}
