package bpf

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// reopen ends the data plane of the bench and opens it again.
func (b *bench) reopen(change func(*Options)) error {
	b.tb.Helper()
	_ = b.Close()
	opts := b.opts
	change(&opts)
	var d *Dataplane
	var err error
	b.ns.Do(func() { d, err = Open(opts) })
	if err != nil {
		return err
	}
	b.tb.Cleanup(func() { _ = d.Close() })
	b.Dataplane = d
	return nil
}

// fill writes n replicas of another node's flows.
func fill(tb testing.TB, d *Dataplane, n int) {
	tb.Helper()
	var all []byte
	for i := range n {
		r := pontoonFlowRecord{
			Client: toAddr(netip.AddrFrom4([4]byte{172, 16, byte(i >> 8), byte(i)})), ClientPort: swap16(uint16(5000 + i>>16)),
			Vip: toAddr(vip), VipPort: swap16(80), Snat: toAddr(vip), SnatPort: swap16(uint16(1024 + i%8064)),
			Endpoint: toAddr(netip.AddrFrom4([4]byte{10, 8, 1, byte(i / 8064)})), EndpointPort: swap16(8080),
			Service: 7, EndpointId: 1, Proto: protoTCP, Mode: uint8(ModeFullNAT), State: uint8(StateEstablished), OwnerSlot: 5,
			Op: opUpdate, Reason: reasonSnapshot,
		}
		all = r.append(all)
	}
	if got := importAll(tb, d, all); got.Written != n {
		tb.Fatalf("%+v", got)
	}
}

// allFlows is what the flow table holds, comparable.
func (b *bench) allFlows() []Flow {
	all := b.flows()
	for i := range all {
		all[i].Age, all[i].Idle = 0, 0
	}
	slices.SortFunc(all, func(x, y Flow) int { return x.Client.Compare(y.Client) })
	return all
}

func pinsOf(tb testing.TB, d *Dataplane) string {
	tb.Helper()
	entries, err := os.ReadDir(d.mapDir())
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestFlowTableGetsAnotherSizeWithItsConnections(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	fill(t, b.Dataplane, 900)
	snat, endpoint := b.talk(clientPort, vipPort)
	want := b.allFlows()
	for _, size := range []uint32{5000, 1100} {
		if err := b.reopen(func(o *Options) { o.MaxFlows = size }); err != nil {
			t.Fatal(err)
		}
		stats := b.Stats()
		if stats.Max != uint64(size) || stats.Connections != 901 || !b.Adopted() {
			t.Errorf("max %d, connections %d, adopted %t", stats.Max, stats.Connections, b.Adopted())
		}
		if got := b.allFlows(); !slices.Equal(got, want) {
			t.Errorf("%d flows became %d, or others", len(want), len(got))
		}
		if pins := pinsOf(t, b.Dataplane); strings.Contains(pins, formerPin) {
			t.Errorf("left pinned: %s", pins)
		}
		in := bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("x")}
		if action, out := b.fromClient(in); action != actRedirect {
			t.Errorf("action %d", action)
		} else if src, dst := tuple(out); src != snat || dst != endpoint {
			t.Errorf("went from %s to %s, not %s to %s", src, dst, snat, endpoint)
		}
		want = b.allFlows()
	}
}

func TestFlowTableKeepsASizeThatItsConnectionsNeed(t *testing.T) {
	b := newBench(t, nil)
	fill(t, b.Dataplane, 900)
	if err := b.reopen(func(o *Options) { o.MaxFlows = 950 }); err != nil {
		t.Fatal(err)
	}
	if stats := b.Stats(); stats.Max != 1024 || stats.Connections != 900 {
		t.Errorf("max %d, connections %d", stats.Max, stats.Connections)
	}
}

// While both tables are in use a packet finds its connection in either, and nobody is given a
// source port that a connection of the former table has.
func TestPacketsFindTheirConnectionInEitherTable(t *testing.T) {
	for _, hook := range []string{HookAuto, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Hook, o.MaxFlows = hook, 10000 })
			b.sync(service(ModeFullNAT, endpoint1))
			b.occupy(StateEstablished)
			looked := false
			err := b.reopen(func(o *Options) {
				o.MaxFlows = 20000
				o.betweenTables = func(d *Dataplane) error {
					looked = true
					b.Dataplane = d
					d.programs = d.between
					d.endings.found(nil, nil)
					defer func() { d.programs = programs{} }()
					b.lookBetween(t)
					return nil
				}
			})
			if err != nil || !looked {
				t.Fatal(err, looked)
			}
			if n := entriesOf(t, b.Dataplane); n != 2*8064+8 {
				t.Errorf("%d halves, want %d", n, 2*8064+8)
			}
		})
	}
}

func (b *bench) lookBetween(t *testing.T) {
	t.Helper()
	if n := entriesOf(t, b.Dataplane); n != 0 {
		t.Errorf("%d halves were moved already", n)
	}
	// One of the former table goes on, in either direction first.
	for i, reply := range []bool{false, true} {
		other := netip.AddrPortFrom(netip.AddrFrom4([4]byte{172, 16, 0, byte(i)}), 5000)
		snat := netip.AddrPortFrom(vip, uint16(1024+3*8064+i))
		packet := bpftest.Packet{Src: other, Dst: vipPort, Flags: bpftest.ACK, Payload: []byte("x")}
		send, wantSrc, wantDst := b.fromClient, snat, endpoint1
		if reply {
			packet.Src, packet.Dst = endpoint1, snat
			send, wantSrc, wantDst = b.fromEndpoint, vipPort, other
		}
		action, out := send(packet)
		if src, dst := tuple(out); !reply && action == actDrop || src != wantSrc || dst != wantDst {
			t.Errorf("reply %t: action %d, from %s to %s, want from %s to %s", reply, action, src, dst, wantSrc, wantDst)
		}
		if n := entriesOf(t, b.Dataplane); n != 2*(i+1) {
			t.Errorf("%d halves in the new table, want %d", n, 2*(i+1))
		}
	}
	// No source port is free, although the new table hardly holds a connection.
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.SYN})
	if n := b.drops("snat_exhausted"); n != 1 {
		t.Errorf("a new connection was given the source port of another: %v", b.Stats().Drops)
	}
	// A new connection is in both tables, since elsewhere the earlier programs still look into the former.
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	for i := range 4 {
		b.talk(netip.AddrPortFrom(client, uint16(41000+i)), vipPort)
	}
	if n := countEntries(t, b.resize.former); n != 2*8064+8 {
		t.Errorf("%d halves in the former table, want %d", n, 2*8064+8)
	}
}

func TestInterruptedChangeOfSizeGoesOn(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1, endpoint2))
	fill(t, b.Dataplane, 500)
	b.talk(clientPort, vipPort)
	want := b.allFlows()
	killed := errors.New("killed")
	err := b.reopen(func(o *Options) {
		o.MaxFlows = 3000
		o.betweenTables = func(d *Dataplane) error {
			// Some had been moved.
			for part, err := range dump(context.Background(), d.resize.former) {
				if err != nil {
					return err
				}
				return errors.Join(killed, insertMissing(d.maps.Flows, part.keys[:100], part.values[:100]))
			}
			return nil
		}
	})
	if !errors.Is(err, killed) {
		t.Fatal(err)
	}
	if err := b.reopen(func(o *Options) { o.MaxFlows = 7000 }); err != nil {
		t.Fatal(err)
	}
	if got := b.allFlows(); !slices.Equal(got, want) {
		t.Errorf("%d flows became %d, or others", len(want), len(got))
	}
	if stats := b.Stats(); stats.Max != 3000 || stats.Connections != 501 {
		t.Errorf("max %d, connections %d", stats.Max, stats.Connections)
	}
}

// A transfer runs and connections are opened all the time while the table is replaced, twice.
func TestChangeOfTableSizeDoesNotDisturbTraffic(t *testing.T) {
	for _, hook := range []string{HookAuto, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			l := newLab(t, false, 1)
			if hook == HookXDP {
				l.forXDP()
			}
			l.serve()
			pins := bpftest.PinDir(t)
			open := func(size uint32) *Dataplane {
				return l.open(0, func(o *Options) { o.PinDir, o.Hook, o.MaxFlows = pins, hook, size })
			}
			d := open(20000)
			stop := runDataplane(t, d)
			l.sync(d, ModeFullNAT, protoTCP)
			fill(t, d, 10000)
			c := l.dial()
			result, more := make(chan error, 1), make(chan error, 1)
			done := make(chan struct{})
			go func() { result <- transfer(c, 40<<20, nil) }()
			go func() { more <- l.dialAll(done) }()
			for _, size := range []uint32{50000, 40000} {
				stop()
				_ = d.Close()
				d = open(size)
				stop = runDataplane(t, d)
				l.sync(d, ModeFullNAT, protoTCP)
				if m := d.Stats().Max; m != uint64(size) {
					t.Errorf("max %d, want %d", m, size)
				}
			}
			close(done)
			if err := errors.Join(<-result, <-more); err != nil {
				t.Errorf("%v\n%+v", err, d.Stats())
			}
			for reason, n := range d.Stats().Drops {
				if n > 0 {
					t.Errorf("%d packets dropped: %s", n, reason)
				}
			}
		})
	}
}

// dialAll opens a connection after the other, says something on it and closes it, until done. It
// takes its time: whoever opens more than closed connections make room for meets the end of the
// table or of the source ports, which is not what is tested here.
func (l *lab) dialAll(done <-chan struct{}) error {
	next := time.NewTicker(4 * time.Millisecond)
	defer next.Stop()
	for {
		select {
		case <-done:
			return nil
		case <-next.C:
		}
		began := time.Now()
		c, err := l.client.Dial(&net.Dialer{Timeout: 5 * time.Second}, "tcp4", vipPort.String())
		if err != nil {
			return err
		}
		if err := errors.Join(transfer(c, 1000, nil), c.Close()); err != nil {
			return err
		}
		if took := time.Since(began); took > 900*time.Millisecond { // a second is when a SYN is repeated
			return errors.New("a new connection took " + took.String())
		}
	}
}

func TestMapsOfAnotherLayoutAreRefusedOrGivenUp(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	if err := writeLayout(b.mapDir()); err != nil {
		t.Fatal(err)
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(b.mapDir(), layoutMap), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := m.Put(uint32(0), layoutVersion+1); err != nil {
		t.Fatal(err)
	}
	before := pinsOf(t, b.Dataplane)
	flows := entriesOf(t, b.Dataplane)
	err = b.reopen(func(o *Options) { o.MaxFlows = 5000 })
	if !errors.Is(err, ErrLayout) || !strings.Contains(err.Error(), "version 2, this program reads 1") || !strings.Contains(err.Error(), "--discard-flows") {
		t.Errorf("error is %v", err)
	}
	if after := pinsOf(t, b.Dataplane); after != before {
		t.Errorf("pins %s became %s", before, after)
	}
	still, err := ebpf.LoadPinnedMap(filepath.Join(b.mapDir(), pontoonMapFlows), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer still.Close()
	if n := countEntries(t, still); n != flows {
		t.Errorf("%d halves became %d", flows, n)
	}
	if err := b.reopen(func(o *Options) { o.Discard = true }); err != nil {
		t.Fatal(err)
	}
	if b.Adopted() || len(b.flows()) != 0 || b.Interfaces()["eth1"].Hook == "" {
		t.Errorf("adopted %t, %d flows, %v", b.Adopted(), len(b.flows()), b.Interfaces())
	}
}

func countEntries(tb testing.TB, m *ebpf.Map) int {
	tb.Helper()
	n := 0
	for part, err := range dump(context.Background(), m) {
		if err != nil {
			tb.Fatal(err)
		}
		n += len(part.keys)
	}
	return n
}

// A kernel that does not take the programs for both tables leaves the table as it is.
func TestFlowTableKeepsItsSizeWithoutProgramsForTheChange(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	fill(t, b.Dataplane, 100)
	b.talk(clientPort, vipPort)
	err := b.reopen(func(o *Options) {
		o.MaxFlows = 5000
		o.objects = func(d *Dataplane) error { return errors.Join(d.openObjects(), d.keepFormer(d.spec)) }
	})
	if err != nil {
		t.Fatal(err)
	}
	if stats := b.Stats(); stats.Max != 1024 || stats.Connections != 101 {
		t.Errorf("max %d, connections %d", stats.Max, stats.Connections)
	}
	b.sync(service(ModeFullNAT)) // endpoint1's flows are ended, by the program for that
	if err := b.sweep(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, f := range b.flows() {
		if f.Client == clientPort && !f.Ended {
			t.Error("a flow of an endpoint that is gone was not ended")
		}
	}
}

// An interface that goes on with programs of the former table would open connections that the new one
// lacks: then the table keeps its size, with everything in it, until a start at which all take part.
func TestFlowTableKeepsItsSizeWhileAnInterfaceLagsBehind(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	fill(t, b.Dataplane, 100)
	pin, kept := filepath.Join(b.opts.PinDir, linkFolder, "eth2"), filepath.Join(b.opts.PinDir, "kept")
	if err := os.Rename(pin, kept); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(pin, 0o700); err != nil { // no link can be opened or pinned here
		t.Fatal(err)
	}
	want := b.allFlows()
	if err := b.reopen(func(o *Options) { o.MaxFlows = 5000 }); err != nil {
		t.Fatal(err)
	}
	if stats := b.Stats(); stats.Max != 1024 || !slices.Equal(b.allFlows(), want) {
		t.Errorf("max %d, %d flows of %d", stats.Max, len(b.flows()), len(want))
	}
	if pins := pinsOf(t, b.Dataplane); strings.Contains(pins, formerPin) || !strings.Contains(pins, pontoonMapFlows) {
		t.Errorf("pinned: %s", pins)
	}
	snat, _ := b.talk(clientPort, vipPort)
	if err := errors.Join(os.Remove(pin), os.Rename(kept, pin)); err != nil {
		t.Fatal(err)
	}
	if err := b.reopen(func(o *Options) { o.MaxFlows = 5000 }); err != nil {
		t.Fatal(err)
	}
	if stats := b.Stats(); stats.Max != 5000 || len(b.flows()) != 101 {
		t.Errorf("max %d, %d flows", stats.Max, len(b.flows()))
	}
	if action, _ := b.fromEndpoint(bpftest.Packet{Src: endpoint1, Dst: snat, Flags: bpftest.ACK}); action != actRedirect {
		t.Errorf("action %d", action)
	}
}
