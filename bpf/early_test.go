package bpf

import (
	"context"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf/ringbuf"
	"github.com/gopacket/gopacket/layers"
)

// eager are two nodes, of slots 3 and 5, that hold a service whose half-open connections are told of.
// What both say can be heard.
func eager(t *testing.T, s Service) (a, b *bench) {
	t.Helper()
	a, b = newBench(t, nil), newBench(t, func(o *Options) { o.Slot = 5 })
	s.Replicate = ReplicateAll
	for _, n := range []*bench{a, b} {
		n.sync(s)
		n.SetOwnersAlive(map[uint8]bool{3: true, 5: true})
		runDataplane(t, n.Dataplane)
	}
	return a, b
}

// carry brings what one node has said since the last time to another.
func carry(t *testing.T, from, to *bench) ImportResult {
	t.Helper()
	return importAll(t, to.Dataplane, wire(from.heard()))
}

// must demands that the packet is sent on, and returns its tuple then.
func (b *bench) must(action uint32, out []byte) (src, dst netip.AddrPort) {
	b.tb.Helper()
	if action != actRedirect {
		b.tb.Fatalf("action %d, drops %v", action, b.Stats().Drops)
	}
	return tuple(out)
}

func (b *bench) syn() (snat netip.AddrPort) {
	b.tb.Helper()
	snat, _ = b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}))
	return snat
}

func (b *bench) synAck(snat netip.AddrPort) {
	b.tb.Helper()
	if _, to := b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})); to != clientPort {
		b.tb.Fatalf("the SYN-ACK goes to %s", to)
	}
}

func (b *bench) ack(snat netip.AddrPort) {
	b.tb.Helper()
	if from, _ := b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})); from != snat {
		b.tb.Fatalf("the ACK comes from %s, before it was %s", from, snat)
	}
}

// only returns the one connection that there is.
func (b *bench) only() Flow {
	b.tb.Helper()
	f := b.flows()
	if len(f) != 1 {
		b.tb.Fatalf("flows: %+v", f)
	}
	return f[0]
}

// A handshake that the first node did not live to see the end of goes on at the next one, whatever
// packet comes first there.
func TestHandshakeBegunElsewhereIsFinishedHere(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT} {
		for _, row := range []struct {
			name   string
			before func(a *bench, snat netip.AddrPort)
			after  func(b *bench, snat netip.AddrPort)
		}{
			{"the SYN-ACK comes", func(*bench, netip.AddrPort) {}, (*bench).synAck},
			{"the ACK comes", (*bench).synAck, func(*bench, netip.AddrPort) {}},
			{"the SYN comes again", func(*bench, netip.AddrPort) {}, func(b *bench, snat netip.AddrPort) {
				if again := b.syn(); again != snat {
					b.tb.Fatalf("the SYN comes from %s, before it was %s", again, snat)
				}
				b.synAck(snat)
			}},
			{"the SYN-ACK was lost with its node", func(*bench, netip.AddrPort) {}, func(b *bench, snat netip.AddrPort) {
				b.ack(snat)
				b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}))
			}},
		} {
			t.Run(mode.String()+"/"+row.name, func(t *testing.T) {
				a, b := eager(t, service(mode, endpoint1))
				snat := a.syn()
				row.before(a, snat)
				if r := carry(t, a, b); r.HalfOpen == 0 || r.Written+r.Kept+r.Invalid != 0 {
					t.Fatalf("import: %+v", r)
				}
				if f := b.only(); f.Owner || f.OwnerSlot != 3 || !f.HalfOpen || f.SNAT != snat {
					t.Fatalf("replica: %+v", f)
				}
				b.SetOwnersAlive(map[uint8]bool{3: false, 5: true})
				row.after(b, snat)
				b.ack(snat)
				if f := b.only(); !f.Owner || f.OwnerSlot != 5 || f.State != StateEstablished || f.SNAT != snat {
					t.Errorf("at last: %+v", f)
				}
				if s := b.Stats(); s.Adopted != 1 || s.Counters["created"] != 0 {
					t.Errorf("adopted %d, created %d", s.Adopted, s.Counters["created"])
				}
				said := b.heard()
				if n := len(said); n == 0 || said[n-1].Reason != reasonNew || said[n-1].OwnerSlot != 5 || said[n-1].halfOpen() {
					t.Errorf("said: %+v", said)
				}
				b.exact("established")
				if n := len(b.halfKeys()); n != 0 {
					t.Errorf("%d half-open entries are left", n)
				}
			})
		}
	}
}

func TestDirectHandshakeBegunElsewhereIsFinishedHere(t *testing.T) {
	a, b := eager(t, service(ModeDSR, netip.AddrPortFrom(endpoint1.Addr(), 80)))
	a.syn()
	if r := carry(t, a, b); r.HalfOpen != 1 {
		t.Fatalf("import: %+v", r)
	}
	b.must(b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK}))
	if f := b.only(); !f.Owner || f.State != StateEstablished {
		t.Errorf("%+v", f)
	}
}

func TestAssociationBegunElsewhereIsFinishedHere(t *testing.T) {
	for _, accepted := range []bool{false, true} {
		s := service(ModeFullNAT, endpoint1)
		s.Protocol = protoSCTP
		a, b := eager(t, s)
		at := func(n *bench, snat netip.AddrPort) *pair {
			return &pair{bench: n, vip: vipPort, client: clientPort, endpoint: endpoint1, snat: snat, own: lbAddress}
		}
		first := at(a, netip.AddrPort{})
		_, action, out := first.say(true, 0, sctpInit)
		if action != actRedirect {
			t.Fatalf("INIT: action %d, drops %v", action, a.Stats().Drops)
		}
		first.snat, _ = ends(t, out)
		if accepted {
			first.say(false, 1, sctpInitAck)
		}
		carry(t, a, b)
		second := at(b, first.snat)
		if !accepted {
			if _, action, _ := second.say(false, 1, sctpInitAck); action != actRedirect {
				t.Fatalf("INIT ACK: action %d", action)
			}
		}
		if _, action, _ := second.say(true, 2, sctpCookieEcho); action != actRedirect {
			t.Fatalf("COOKIE ECHO: action %d, drops %v", action, b.Stats().Drops)
		}
		if f := b.only(); !f.Owner || f.State != StateEstablished || f.SNAT != first.snat {
			t.Errorf("%+v", f)
		}
	}
}

// A sender of datagrams that nobody answers keeps its endpoint and its source port, and its answer comes
// through wherever it comes.
func TestDatagramsWithoutAnAnswerGoOnElsewhere(t *testing.T) {
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Protocol = protoUDP
	a, b := eager(t, s)
	question := bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP, Payload: []byte("question")}
	b.must(b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, 999), Dst: vipPort, Protocol: layers.IPProtocolUDP})) // the turn of the other endpoint
	snat, endpoint := a.must(a.fromClient(question))
	a.must(a.fromClient(question))
	if said := a.heard(); len(said) == 0 || len(said) > 2 || importAll(t, b.Dataplane, wire(said)).HalfOpen != len(said) {
		t.Fatalf("said: %+v", said)
	}
	if from, to := b.must(b.fromClient(question)); from != snat || to != endpoint {
		t.Errorf("from %s to %s, before from %s to %s", from, to, snat, endpoint)
	}
	b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint, Dst: snat, Protocol: layers.IPProtocolUDP, Payload: []byte("answer")}))
	for _, f := range b.flows() {
		if f.Client == clientPort && (f.State != StateEstablished || !f.Owner) {
			t.Errorf("%+v", f)
		}
	}
}

// Who goes on without an answer is told of again, so that replicas do not outlive their time.
func TestSenderWithoutAnAnswerIsToldOfAgain(t *testing.T) {
	s := service(ModeFullNAT, endpoint1)
	s.Protocol = protoUDP
	a, b := eager(t, s)
	question := bpftest.Packet{Src: clientPort, Dst: vipPort, Protocol: layers.IPProtocolUDP, Payload: []byte("question")}
	a.must(a.fromClient(question))
	carry(t, a, b)
	for range 4 {
		a.age(20*time.Second, nil)
		b.age(20*time.Second, nil)
		a.must(a.fromClient(question))
		if said := a.heard(); len(said) != 1 || importAll(t, b.Dataplane, wire(said)).HalfOpen != 1 {
			t.Fatalf("said: %+v", said)
		}
		b.mustSweep()
	}
	if f := b.only(); f.Owner || f.Idle > time.Second {
		t.Errorf("after 80 s: %+v", f)
	}
}

func TestHalfOpenIsToldOfOnlyWhereItIsAskedFor(t *testing.T) {
	for _, row := range []struct {
		replicate Replicate
		age       time.Duration
		want      int
	}{{ReplicateEstablished, 0, 0}, {ReplicateEstablished, time.Minute, 0}, {ReplicateNone, 0, 0}, {ReplicateAll, 0, 2}} {
		b := newBench(t, nil)
		s := service(ModeFullNAT, endpoint1)
		s.Replicate, s.ReplicateMinAge = row.replicate, row.age
		b.sync(s)
		runDataplane(t, b.Dataplane)
		b.synAck(b.syn())
		if said := b.heard(); len(said) != row.want {
			t.Errorf("%s from %s on: said %+v", row.replicate, row.age, said)
		}
		if n := len(records(t, b.Dataplane)); n != 0 {
			t.Errorf("%s: %d bytes of a snapshot", row.replicate, n)
		}
	}
}

// A handshake is over in seconds, whether or not the node lives that began it.
func TestReplicaOfAHandshakeAgesThoughItsOwnerLives(t *testing.T) {
	a, b := eager(t, service(ModeFullNAT, endpoint1))
	a.synAck(a.syn())
	carry(t, a, b)
	b.age(9*time.Second, nil)
	b.mustSweep()
	if n := len(b.halfKeys()); n != 2 {
		t.Fatalf("%d halves after nine seconds", n)
	}
	b.age(2*time.Second, nil)
	b.mustSweep()
	if n := len(b.halfKeys()); n != 0 {
		t.Errorf("%d halves after eleven seconds", n)
	}
	if said := b.heard(); len(said) != 0 {
		t.Errorf("said: %+v", said)
	}
}

func TestEstablishedConnectionLeavesNoReplicaOfItsHandshake(t *testing.T) {
	for _, together := range []bool{true, false} {
		a, b := eager(t, service(ModeFullNAT, endpoint1))
		snat := a.syn()
		a.synAck(snat)
		if !together {
			if r := carry(t, a, b); r.HalfOpen != 2 || len(b.halfKeys()) != 2 {
				t.Fatalf("%+v", r)
			}
		}
		a.ack(snat)
		if r := carry(t, a, b); r.Written != 1 || r.Invalid != 0 {
			t.Fatalf("%+v", r)
		}
		if n := len(b.halfKeys()); n != 0 {
			t.Errorf("together %t: %d halves", together, n)
		}
		if f := b.only(); f.State != StateEstablished || f.Owner {
			t.Errorf("together %t: %+v", together, f)
		}
	}
}

// What this node knows by its own packets stands over what another says of a handshake.
func TestHandshakesElsewhereDoNotDisturbWhatIsHere(t *testing.T) {
	a, b := eager(t, service(ModeFullNAT, endpoint1))
	a.syn()
	news := wire(a.heard())
	own := b.syn()
	if r := importAll(t, b.Dataplane, news); r.Kept != 1 || r.HalfOpen != 0 {
		t.Errorf("over a handshake of our own: %+v", r)
	}
	b.synAck(own)
	b.ack(own)
	if r := importAll(t, b.Dataplane, news); r.Kept != 1 || r.HalfOpen != 0 {
		t.Errorf("over an established connection: %+v", r)
	}
	if f := b.only(); !f.Owner || f.SNAT != own || len(b.halfKeys()) != 0 {
		t.Errorf("%+v", f)
	}
	old := append([]byte(nil), news...)
	binary.LittleEndian.PutUint32(old[recordIdle:], 60_000)
	binary.LittleEndian.PutUint32(old[recordAge:], 60_000)
	old[recordPorts]++
	back := append([]byte(nil), news...)
	back[recordPorts]++
	back[recordOwner] = 5
	if r := importAll(t, b.Dataplane, append(old, back...)); r.Kept != 2 {
		t.Errorf("old news, and our own: %+v", r)
	}
	gone := append([]byte(nil), news...)
	gone[recordOp] = opDelete
	if r := importAll(t, b.Dataplane, gone); r.Invalid != 1 {
		t.Errorf("the end of a handshake: %+v", r)
	}
}

// Of a handshake whose packets pass two nodes each learns what it has not seen.
func TestHandshakeThroughTwoNodesIsFinished(t *testing.T) {
	a, b := eager(t, service(ModeFullNAT, endpoint1))
	snat := a.syn()
	carry(t, a, b)
	b.synAck(snat)
	if r := carry(t, b, a); r.HalfOpen == 0 {
		t.Fatalf("%+v", r)
	}
	a.ack(snat)
	if f := a.only(); !f.Owner || f.State != StateEstablished {
		t.Errorf("at the first: %+v", f)
	}
	carry(t, a, b)
	if f := b.only(); f.Owner || f.OwnerSlot != 3 || len(b.halfKeys()) != 0 {
		t.Errorf("at the second: %+v", f)
	}
}

// The tuple of a handshake that another node has taken over is not given to somebody else by the node
// that had begun it, when it comes back without a memory.
func TestTupleOfAHandshakeElsewhereIsNotGivenAway(t *testing.T) {
	a, b := eager(t, service(ModeFullNAT, endpoint1))
	first := b.syn() // where this client's search for a port begins, at slot 5
	b.heard()
	snat := a.syn()
	news := wire(a.heard())
	binary.BigEndian.PutUint16(news[recordPorts:], clientPort.Port()+1)
	binary.BigEndian.PutUint16(news[68:], first.Port()) // as the last holder of slot 5 would have handed out
	c := newBench(t, func(o *Options) { o.Slot = 5 })
	c.sync(service(ModeFullNAT, endpoint1))
	if r := importAll(t, c.Dataplane, news); r.HalfOpen != 1 {
		t.Fatalf("%+v", r)
	}
	if got := c.syn(); got == first || got == snat {
		t.Errorf("%s was given away twice", got)
	}
}

// When nobody reads the ring a flood of first packets does not take the room of what is established.
func TestFloodOfFirstPacketsLeavesRoomInTheRing(t *testing.T) {
	b := newBench(t, func(o *Options) { o.EventsBytes = 4096 })
	s := service(ModeFullNAT, endpoint1)
	s.Replicate = ReplicateAll
	b.sync(s)
	for i := range 60 {
		b.must(b.fromClient(bpftest.Packet{Src: netip.AddrPortFrom(client, uint16(2000+i)), Dst: vipPort, Flags: bpftest.SYN}))
	}
	for i := range 8 {
		b.talk(netip.AddrPortFrom(client, uint16(3000+i)), vipPort)
	}
	counters := b.Stats().Counters
	if counters["half_open_untold"] == 0 || counters["ring_lost"] != 0 {
		t.Errorf("%d half-open connections not told, %d records lost", counters["half_open_untold"], counters["ring_lost"])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	runDataplane(t, b.Dataplane)
	for established := 0; established < 8; {
		select {
		case batch := <-b.Events():
			for at := 0; at < len(batch); at += RecordSize {
				if r, err := parseRecord(batch[at : at+RecordSize]); err != nil || !r.halfOpen() {
					established++
				}
			}
		case <-ctx.Done():
			t.Fatalf("%d established connections were told of", established)
		}
	}
}

// Handshakes told of by another node arrive while the same clients come here, too: no half is there
// twice, and whoever repeats itself is served.
func TestHandshakesToldOfWhilePacketsComeAreThereOnce(t *testing.T) {
	const clients = 512
	a, b := eager(t, service(ModeFullNAT, endpoint1))
	frames := make([][]byte, clients)
	for i := range frames {
		from := netip.AddrPortFrom(client, uint16(30000+i))
		frames[i] = loopFrame(from, vipPort, bpftest.SYN)
		a.must(a.fromClient(bpftest.Packet{Src: from, Dst: vipPort, Flags: bpftest.SYN}))
	}
	news := wire(a.heard())
	sender := newReplayer(t, frames)
	taken := 0
	for range 20 {
		if err := b.half.drop(b.halfKeys()); err != nil {
			t.Fatal(err)
		}
		var wait sync.WaitGroup
		wait.Go(func() { sender.measure(t, b, b.programs.entry, clients, actRedirect) })
		r, err := b.Import(t.Context(), news)
		wait.Wait()
		if err != nil || r.Invalid != 0 {
			t.Fatal(r, err)
		}
		taken += r.HalfOpen
		seen := map[pontoonFlowKey]bool{}
		for _, key := range b.halfKeys() {
			if seen[key] {
				t.Fatalf("%+v is there twice", key)
			}
			seen[key] = true
		}
	}
	t.Logf("%d of %d records taken in", taken, 20*len(news)/RecordSize)
	served := 0
	for i := range clients {
		packet := bpftest.Packet{Src: netip.AddrPortFrom(client, uint16(30000+i)), Dst: vipPort, Flags: bpftest.SYN}
		action, out := b.fromClient(packet)
		if action != actRedirect { // two halves that do not belong together: the next SYN starts anew
			action, out = b.fromClient(packet)
		}
		snat, _ := b.must(action, out)
		b.must(b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK}))
		packet.Flags = bpftest.ACK
		b.must(b.fromClient(packet))
		served++
	}
	if n := len(b.flows()); n != served {
		t.Errorf("%d flows, %d served", n, served)
	}
	b.exact("established")
}

// BenchmarkImportHalfOpen tells what a record of a half-open connection costs its receiver, the first
// time and when the connection is there already.
func BenchmarkImportHalfOpen(b *testing.B) {
	const flows = 1 << 15
	bench := newBench(b, func(o *Options) { o.Slot, o.MaxHalfOpen = 5, 4*flows })
	all := told(b, flows, reasonNew)
	for at := 0; at < len(all); at += RecordSize {
		all[at+recordOp-1] = uint8(StateSyn)
	}
	bench.sync(service(ModeFullNAT, endpoint1))     // from now on it is known that no client stays with its endpoint
	importAll(b, bench.Dataplane, all[:RecordSize]) // loads the program
	var first, again time.Duration
	rounds := 0
	for b.Loop() {
		if err := bench.half.drop(bench.halfKeys()); err != nil {
			b.Fatal(err)
		}
		start := cpuTime(b)
		if r := importAll(b, bench.Dataplane, all); r.HalfOpen != flows {
			b.Fatalf("%+v", r)
		}
		first += cpuTime(b) - start
		start = cpuTime(b)
		importAll(b, bench.Dataplane, all)
		again += cpuTime(b) - start
		rounds++
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(float64(first)/float64(rounds*flows), "ns/new")
	b.ReportMetric(float64(again)/float64(rounds*flows), "ns/known")
}

// The word that the endpoint has accepted was lost with its node, and the client says its COOKIE ECHO
// once only: the endpoint's answer to that makes the association established.
func TestAssociationWhoseAcceptanceNobodyToldOfIsFinishedHere(t *testing.T) {
	s := service(ModeFullNAT, endpoint1)
	s.Protocol = protoSCTP
	a, b := eager(t, s)
	first := &pair{bench: a, vip: vipPort, client: clientPort, endpoint: endpoint1, own: lbAddress}
	_, action, out := first.say(true, 0, sctpInit)
	if action != actRedirect {
		t.Fatalf("INIT: action %d, drops %v", action, a.Stats().Drops)
	}
	first.snat, _ = ends(t, out)
	carry(t, a, b)
	first.say(false, 1, sctpInitAck)
	second := *first
	second.bench = b
	if _, action, _ := second.say(true, 2, sctpCookieEcho); action != actRedirect {
		t.Fatalf("COOKIE ECHO: action %d, drops %v", action, b.Stats().Drops)
	}
	if n := b.Stats().Established; n != 0 {
		t.Errorf("%d established before the endpoint knows its cookie", n)
	}
	if _, action, _ := second.say(false, 1, sctpCookieAck); action != actRedirect {
		t.Fatalf("COOKIE ACK: action %d, drops %v", action, b.Stats().Drops)
	}
	if f := b.only(); !f.Owner || f.State != StateEstablished || f.SNAT != first.snat || f.Client != clientPort {
		t.Errorf("%+v", f)
	}
	b.exact("established by the COOKIE ACK")
	b.whole()
}

// BenchmarkTellingSYN is what it costs a SYN that the other nodes are told of it: the same SYNs, of a service
// that replicates all and of one that replicates what is established, in turns. The cost is the median of the pairs'
// differences.
func BenchmarkTellingSYN(b *testing.B) {
	const flows, pairs = 8192, 40
	bench := benchDataplane(b, 1<<17)
	reader, err := ringbuf.NewReader(bench.maps.Events)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = reader.Close() }()
	syns := make([][]byte, flows)
	for i := range syns {
		syns[i] = loopFrame(benchClient(i), vipPort, bpftest.SYN)
	}
	syn := newReplayer(b, syns)
	var told, untold, more []time.Duration
	for b.Loop() {
		for pair := range pairs {
			took := map[Replicate]time.Duration{}
			order := []Replicate{ReplicateAll, ReplicateEstablished}
			if pair%2 == 1 { // nobody always runs behind the other
				slices.Reverse(order)
			}
			for _, how := range order {
				s := service(ModeFullNAT, endpoint1, endpoint2)
				s.Replicate = how
				bench.sync(s)
				took[how] = syn.measure(b, bench, bench.programs.entry, flows, actRedirect)
				drainRing(b, reader)
				if err := bench.half.drop(bench.halfKeys()); err != nil {
					b.Fatal(err)
				}
			}
			told, untold = append(told, took[ReplicateAll]), append(untold, took[ReplicateEstablished])
			more = append(more, took[ReplicateAll]-took[ReplicateEstablished])
		}
	}
	if n := bench.Stats().Counters["half_open_untold"]; n != 0 {
		b.Fatalf("%d SYNs were not told of", n)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(told), "told-ns")
	b.ReportMetric(median(untold), "untold-ns")
	b.ReportMetric(median(more), "telling-ns")
}
