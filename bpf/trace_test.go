package bpf

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// tracer is a running session and what it has told.
type tracer struct {
	*bench
	events  chan TraceEvent
	end     func() TraceSummary
	program *ebpf.Program // the traced entry program
}

var testNames = TraceNames{
	Service: func(id uint32) string { return map[uint32]string{7: "web"}[id] },
	Node:    func(slot uint8) string { return "node" + string('0'+rune(slot)) },
}

func (b *bench) trace(f TraceFilter) *tracer {
	b.tb.Helper()
	t := &tracer{bench: b, events: make(chan TraceEvent, 1000)}
	ctx, cancel := context.WithCancel(context.Background())
	started, done := make(chan struct{}), make(chan error, 1)
	var summary TraceSummary
	go func() {
		var err error
		summary, err = b.Trace(ctx, f, testNames, func() { close(started) }, func(e TraceEvent) error {
			t.events <- e
			return nil
		})
		done <- err
	}()
	ended := false
	t.end = func() TraceSummary {
		if !ended {
			ended = true
			cancel()
			if err := <-done; err != nil {
				b.tb.Error(err)
			}
		}
		return summary
	}
	b.tb.Cleanup(func() { t.end() })
	select {
	case <-started:
	case err := <-done:
		b.tb.Fatal(err)
	}
	t.program = b.attached()
	return t
}

// send runs one frame through the traced programs and returns what was told about it.
func (t *tracer) send(from bpftest.Iface, frame []byte) (TraceEvent, uint32, []byte) {
	t.tb.Helper()
	action, out := t.silent(from, frame)
	return t.next(), action, out
}

// next is the next packet told of.
func (t *tracer) next() TraceEvent {
	t.tb.Helper()
	select {
	case e := <-t.events:
		return e
	case <-time.After(5 * time.Second):
		t.tb.Fatal("nothing was told about the packet")
	}
	return TraceEvent{}
}

func (t *tracer) silent(from bpftest.Iface, frame []byte) (uint32, []byte) {
	t.tb.Helper()
	options := &ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: skBuff{Ifindex: uint32(from.Index)}}
	var action uint32
	var err error
	t.ns.Do(func() { action, err = t.program.Run(options) })
	if err != nil {
		t.tb.Fatal(err)
	}
	return action, options.DataOut
}

// client and endpoint send a packet of one side.
func (t *tracer) client(p bpftest.Packet) (TraceEvent, []byte) {
	t.tb.Helper()
	p.SrcMAC, p.DstMAC = t.far.MAC, t.in.MAC
	e, _, out := t.send(t.in, p.Bytes(t.tb))
	return e, out
}

func (t *tracer) endpoint(p bpftest.Packet) (TraceEvent, []byte) {
	t.tb.Helper()
	p.SrcMAC, p.DstMAC = t.bench.end.MAC, t.out.MAC
	e, _, out := t.send(t.out, p.Bytes(t.tb))
	return e, out
}

func stepNames(e TraceEvent) []string {
	var names []string
	for _, s := range e.Steps {
		names = append(names, s.Name)
	}
	return names
}

func text(e TraceEvent, name string) string {
	var all []string
	for _, s := range e.Steps {
		if s.Name == name {
			all = append(all, s.Text)
		}
	}
	return strings.Join(all, "; ")
}

func expectSteps(t *testing.T, e TraceEvent, want ...string) {
	t.Helper()
	if got := stepNames(e); !slices.Equal(got, want) {
		t.Errorf("steps %v, want %v: %+v", got, want, e.Steps)
	}
}

var anyOfClient = TraceFilter{Client: netip.PrefixFrom(client, 32)}

func TestTraceTellsTheStepsOfAConnectionInOrder(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	tr := b.trace(anyOfClient)
	e, out := tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	expectSteps(t, e, "parse", "vip", "service", "select", "port", "flow", "rewrite", "route")
	snat, _ := tuple(out)
	for name, want := range map[string]string{
		"parse": "IPv4, TCP, flags SYN, TTL 64", "service": "service web: fullnat, rr", "select": endpoint1.String(),
		"flow": "new half-open", "rewrite": "fullnat: from " + snat.String() + " to " + endpoint1.String(), "route": "eth2",
	} {
		if got := text(e, name); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if e.Verdict != TraceForwarded || e.Service != 7 || e.Reply || e.Interface != "eth1" || e.Out != "eth2" ||
		e.Src != clientPort || e.Dst != vipPort || e.Client != clientPort || e.Endpoint != endpoint1 || time.Since(e.Time).Abs() > time.Minute {
		t.Errorf("%+v", e)
	}
	e, _ = tr.endpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.SYN | bpftest.ACK})
	expectSteps(t, e, "parse", "flow", "state", "rewrite", "route")
	if !e.Reply || e.Client != clientPort || e.Endpoint != endpoint1 || text(e, "state") != "synack, was syn" {
		t.Errorf("%+v", e)
	}
	e, _ = tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	expectSteps(t, e, "parse", "flow", "note", "state", "rewrite", "route")
	if text(e, "state") != "established, was synack" || !strings.Contains(text(e, "route"), "cached") {
		t.Errorf("%+v", e.Steps)
	}
	e, _ = tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("x")})
	expectSteps(t, e, "parse", "flow", "rewrite", "route")
	if s := tr.end(); s.Packets != 4 || s.Lost != 0 {
		t.Errorf("%+v", s)
	}
}

func TestTraceHoldsThePacketBeforeAndAfter(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	tr := b.trace(anyOfClient)
	for _, size := range []int{0, 10, 138, 139, 1000} {
		p := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: bytes.Repeat([]byte{7}, size)}
		in := p.Bytes(t)
		e, action, out := tr.send(b.in, in)
		if action != actRedirect || int(e.Length) != len(in) {
			t.Fatalf("action %d, %+v", action, e)
		}
		if want := in[:min(len(in), 192)]; !bytes.Equal(e.Before, want) {
			t.Errorf("%d bytes before\n%x\nwant\n%x", size, e.Before, want)
		}
		if want := out[:min(len(out), 192)]; !bytes.Equal(e.After, want) {
			t.Errorf("%d bytes after\n%x\nwant\n%x", size, e.After, want)
		}
	}
}

func TestTraceGivesTheReasonOfADrop(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	tr := b.trace(anyOfClient)
	e, _ := tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if e.Verdict != TraceDropped || e.Reason != "no_flow" || !strings.Contains(text(e, "drop"), "nobody knows") || len(e.After) != 0 {
		t.Errorf("%+v", e)
	}
	bad := bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}.Bytes(t)
	bad[14+10] ^= 1
	e, _, _ = tr.send(b.in, bad)
	if e.Reason != "malformed" || !strings.Contains(text(e, "parse"), "checksum is wrong") {
		t.Errorf("%+v", e)
	}
	e, _ = tr.client(bpftest.Packet{Src: clientPort, Dst: netip.AddrPortFrom(vip, 81), Flags: bpftest.SYN})
	if e.Verdict != TraceAnswered || !strings.Contains(text(e, "answer"), "nobody is there") || len(e.After) == 0 {
		t.Errorf("%+v", e)
	}
	e, _ = tr.client(bpftest.Packet{Src: clientPort, Dst: netip.MustParseAddrPort("192.0.2.1:80"), Flags: bpftest.SYN})
	if e.Verdict != TracePassed || !strings.Contains(text(e, "vip"), "no VIP") {
		t.Errorf("%+v", e)
	}
}

func TestTraceTellsOfMatchingPacketsOnly(t *testing.T) {
	b := newBench(t, nil)
	other := service(ModeFullNAT, endpoint2)
	other.ID, other.VIP = 8, netip.AddrPortFrom(vip, 90)
	b.sync(service(ModeFullNAT, endpoint1), other)
	snat, _ := b.talk(clientPort, vipPort)
	stranger := netip.MustParseAddrPort("10.9.0.77:1000")
	b.in.Neighbour(stranger.Addr().String(), b.far.MAC)
	to := func(src, dst netip.AddrPort, flags uint8) []byte {
		return bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: src, Dst: dst, Flags: flags}.Bytes(t)
	}
	reply := bpftest.Packet{SrcMAC: b.end.MAC, DstMAC: b.out.MAC, Src: endpoint1, Dst: snat, Flags: bpftest.ACK}.Bytes(t)
	frames := []struct {
		from  bpftest.Iface
		frame []byte
	}{
		{b.in, to(clientPort, vipPort, bpftest.ACK)},
		{b.in, to(clientPort, netip.AddrPortFrom(vip, 90), bpftest.SYN)},
		{b.in, to(stranger, vipPort, bpftest.SYN)},
		{b.in, to(netip.AddrPortFrom(client, 40001), vipPort, bpftest.SYN)},
		{b.out, reply},
	}
	prefix := netip.MustParsePrefix("10.9.0.4/30")
	for name, row := range map[string]struct {
		filter TraceFilter
		want   []int // of the frames below
	}{
		"client":             {anyOfClient, []int{0, 1, 3, 4}},
		"client's prefix":    {TraceFilter{Client: prefix}, []int{0, 1, 3, 4}},
		"client and port":    {TraceFilter{Client: prefix, ClientPort: 40000}, []int{0, 1, 4}},
		"service":            {TraceFilter{Service: 7}, []int{0, 2, 3, 4}},
		"client and service": {TraceFilter{Client: prefix, Service: 8}, []int{1}},
	} {
		t.Run(name, func(t *testing.T) {
			tr := b.trace(row.filter)
			for _, f := range frames {
				if action, _ := tr.silent(f.from, f.frame); action != actRedirect {
					t.Errorf("action %d", action)
				}
			}
			last := frames[row.want[len(row.want)-1]] // once more, so that what comes late is seen
			tr.silent(last.from, last.frame)
			for _, i := range append(row.want, row.want[len(row.want)-1]) {
				if e := tr.next(); !bytes.Equal(e.Before, frames[i].frame) {
					t.Errorf("told of %s -> %s, want frame %d", e.Src, e.Dst, i)
				}
			}
			if s := tr.end(); int(s.Packets) != len(row.want)+1 {
				t.Errorf("%d packets told, want %d", s.Packets, len(row.want)+1)
			}
		})
	}
}

func TestTraceTellsOfAnAdoptedReplica(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	var key pontoonFlowKey
	var f pontoonFlow
	copies := map[pontoonFlowKey]pontoonFlow{}
	for entries := b.maps.Flows.Iterate(); entries.Next(&key, &f); {
		f.Flags, f.OwnerSlot = f.Flags|flagReplica, 1
		copies[key] = f
	}
	for key, f := range copies {
		if err := b.maps.Flows.Put(key, f); err != nil {
			t.Fatal(err)
		}
	}
	tr := b.trace(TraceFilter{Service: 7})
	e, _ := tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	if !strings.Contains(text(e, "flow"), "a copy of a connection of node1") || !strings.Contains(text(e, "note"), "adopted") {
		t.Errorf("%+v", e.Steps)
	}
}

func TestOnlyOneTraceAtATime(t *testing.T) {
	b := newBench(t, nil)
	tr := b.trace(anyOfClient)
	if _, err := b.Trace(t.Context(), anyOfClient, TraceNames{}, nil, nil); !errors.Is(err, ErrTraceBusy) {
		t.Errorf("second session: %v", err)
	}
	tr.end()
	b.trace(anyOfClient)
	if _, err := b.Trace(t.Context(), TraceFilter{}, TraceNames{}, nil, nil); err == nil {
		t.Error("a filter of nothing is taken")
	}
}

func TestTraceEndsWithItsConsumersError(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	full := errors.New("full")
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := b.Trace(context.Background(), anyOfClient, TraceNames{}, func() { close(started) }, func(TraceEvent) error { return full })
		done <- err
	}()
	<-started
	tr := &tracer{bench: b, program: b.attached()}
	tr.silent(b.in, bpftest.Packet{SrcMAC: b.far.MAC, DstMAC: b.in.MAC, Src: clientPort, Dst: vipPort, Flags: bpftest.SYN}.Bytes(t))
	select {
	case err := <-done:
		if !errors.Is(err, full) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the session goes on")
	}
	if b.attached() != b.programs.entry {
		t.Error("the tracing programs stay")
	}
}

// attached is the program that the interfaces carry.
func (b *bench) attached() *ebpf.Program {
	b.hooks.mu.Lock()
	defer b.hooks.mu.Unlock()
	return b.hooks.programs.entry
}

func TestTraceFollowsAPacketIntoItsTunnel(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeDSR, endpoint1)
	s.Tunnel, s.Endpoints[0].Sources = TunnelIPIP, []netip.Addr{netip.MustParseAddr("10.8.0.1")}
	s.Endpoints[0].Addr = netip.AddrPortFrom(endpoint1.Addr(), 80)
	b.sync(s)
	tr := b.trace(TraceFilter{Service: 7})
	e, out := tr.client(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if e.Verdict != TraceForwarded || !strings.Contains(text(e, "note"), "encapsulated") || !bytes.Equal(e.After, out) {
		t.Errorf("%+v", e)
	}
	if e.SentLength != e.Length+20 || !strings.Contains(text(e, "rewrite"), "addresses and ports stay") {
		t.Errorf("%d bytes became %d, %v", e.Length, e.SentLength, e.Steps)
	}
}
