package bpf

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Addresses of the test bench.
var (
	vip       = netip.MustParseAddr("10.9.0.100")
	client    = netip.MustParseAddr("10.9.0.5")
	lbAddress = netip.MustParseAddr("10.9.0.1")
	endpoint1 = netip.MustParseAddrPort("10.8.0.21:8080")
	endpoint2 = netip.MustParseAddrPort("10.8.0.22:8080")
)

const (
	actPass     = ^uint32(0) // TC_ACT_UNSPEC
	actDrop     = 2          // TC_ACT_SHOT
	actRedirect = 7          // TC_ACT_REDIRECT
)

// bench is a data plane in a namespace with two interfaces, clients on one side and endpoints on
// the other, whose neighbours are all known. Packets go through it by test run.
type bench struct {
	*Dataplane
	tb       testing.TB
	ns       *bpftest.NS
	in, out  bpftest.Iface // of the load balancer
	far, end bpftest.Iface // their peers
}

func newBench(tb testing.TB, change func(*Options)) *bench {
	tb.Helper()
	bpftest.RequirePrivilege(tb)
	b := &bench{tb: tb, ns: bpftest.NewNS(tb)}
	peer := bpftest.NewNS(tb)
	b.in, b.far = bpftest.Veth(b.ns, "eth1", peer, "far")
	b.out, b.end = bpftest.Veth(b.ns, "eth2", peer, "end")
	b.in.Address(lbAddress.String() + "/24")
	b.in.Address(vip.String() + "/32")
	b.out.Address("10.8.0.1/24")
	b.in.Neighbour(client.String(), b.far.MAC)
	b.out.Neighbour(endpoint1.Addr().String(), b.end.MAC)
	b.out.Neighbour(endpoint2.Addr().String(), b.end.MAC)
	opts := Options{PinDir: bpftest.PinDir(tb), Interfaces: []string{"eth1", "eth2"}, MaxFlows: 1024, MaxHalfOpen: 4096, Slot: 3, without: translators(), nextHopLife: time.Hour}
	if change != nil {
		change(&opts)
	}
	if viaXDP(tb) {
		opts.Hook = HookXDP
	}
	if opts.Hook == HookXDP {
		for _, i := range []bpftest.Iface{b.in, b.out, b.far, b.end} {
			i.ForXDP()
		}
	}
	b.Dataplane = openTest(tb, b.ns, opts)
	return b
}

// openTest opens a data plane in ns, with what the stock has for it where nothing is pinned; it is taken
// apart with the test.
func openTest(tb testing.TB, ns *bpftest.NS, opts Options) *Dataplane {
	tb.Helper()
	opts.Logger = slog.New(slog.NewTextHandler(testWriter{tb}, nil))
	var lent *goods
	stocked := wares.suits(tb, opts)
	if stocked {
		if lent = wares.take(kindOf(opts)); lent != nil {
			opts.objects = lent.lend
		}
	}
	var d *Dataplane
	var err error
	ns.Do(func() { d, err = Open(opts) })
	if err != nil {
		tb.Fatal(err)
	}
	d.opts.objects = nil // whoever opens it again opens what is pinned
	if lent != nil && d.hooks.wantXDP() != lent.kind.xdp {
		tb.Fatal("the programs lent are not those that the interfaces want")
	}
	if stocked && lent == nil {
		if lent, err = goodsOf(d); err != nil {
			tb.Fatal(err)
		}
	}
	if lent != nil {
		wares.lent(opts.PinDir, lent)
	}
	tb.Cleanup(func() {
		_ = d.Close()
		wares.told(d)
		ns.Do(func() { err = Remove(opts.PinDir, opts.Interfaces) })
		if lent != nil {
			wares.lent(opts.PinDir, nil)
			err = errors.Join(err, wares.put(lent))
		}
		if err != nil {
			tb.Error(err)
		}
	})
	return d
}

type testWriter struct{ tb testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.tb.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// skBuff is struct __sk_buff, the context of a test run. Fields that may not be set stay zero.
type skBuff struct {
	Len, PktType, Mark, QueueMapping, Protocol, VlanPresent, VlanTCI, VlanProto uint32
	Priority, IngressIfindex, Ifindex, TCIndex                                  uint32
	CB                                                                          [5]uint32
	Hash, TCClassid, Data, DataEnd, NapiID, Family, RemoteIP4, LocalIP4         uint32
	RemoteIP6, LocalIP6                                                         [4]uint32
	RemotePort, LocalPort, DataMeta                                             uint32
	FlowKeys, Tstamp                                                            uint64
	WireLen, GSOSegs                                                            uint32
	SK                                                                          uint64
	GSOSize, TstampType                                                         uint32
	HWTstamp                                                                    uint64
}

// run sends one frame through the programs as if it had come in on the interface. Where XDP is
// attached it comes first, and TC gets what it leaves.
func (b *bench) run(from bpftest.Iface, frame []byte) (uint32, []byte) {
	b.tb.Helper()
	if b.programs.xdp != nil {
		if action, out := b.runXDP(from, frame); action != actPass {
			return action, out
		}
	}
	return b.runTC(from, frame)
}

func (b *bench) runTC(from bpftest.Iface, frame []byte) (uint32, []byte) {
	b.tb.Helper()
	out := make([]byte, len(frame)+256)
	options := &ebpf.RunOptions{Data: frame, DataOut: out, Context: skBuff{Ifindex: uint32(from.Index)}}
	if summed(b.tb) {
		options.Flags = unix.BPF_F_TEST_SKB_CHECKSUM_COMPLETE
	}
	var action uint32
	var err error
	b.ns.Do(func() { action, err = b.programs.entry.Run(options) })
	if options.Flags != 0 && errors.Is(err, unix.EINVAL) {
		b.tb.Skip("the kernel runs no tests with CHECKSUM_COMPLETE (before 6.13)")
	}
	if errors.Is(err, unix.EBADMSG) {
		b.tb.Fatalf("the sum over the whole packet is wrong after %x", frame)
	}
	if err != nil {
		b.tb.Fatalf("run program: %v", err)
	}
	return action, options.DataOut
}

// fromClient and fromEndpoint build a packet of one side.
func (b *bench) fromClient(p bpftest.Packet) (uint32, []byte) {
	b.tb.Helper()
	p.SrcMAC, p.DstMAC = b.far.MAC, b.in.MAC
	return b.run(b.in, p.Bytes(b.tb))
}

func (b *bench) fromEndpoint(p bpftest.Packet) (uint32, []byte) {
	b.tb.Helper()
	p.SrcMAC, p.DstMAC = b.end.MAC, b.out.MAC
	return b.run(b.out, p.Bytes(b.tb))
}

// numbered gives the endpoints of all services ids of their own.
func numbered(services ...Service) []Service {
	out := slices.Clone(services)
	for i := range out {
		out[i].Endpoints = slices.Clone(out[i].Endpoints)
		for j := range out[i].Endpoints {
			out[i].Endpoints[j].ID = out[i].ID<<8 + uint32(j) + 1
		}
	}
	return out
}

func (b *bench) sync(services ...Service) {
	b.tb.Helper()
	if err := b.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip}, Services: numbered(services...)}); err != nil {
		b.tb.Fatal(err)
	}
}

func (b *bench) flows() []Flow {
	b.tb.Helper()
	var all []Flow
	for f, err := range b.Flows(context.Background()) {
		if err != nil {
			b.tb.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

func (b *bench) drops(reason string) uint64 { return b.Stats().Drops[reason] }

// service is a TCP service on the VIP with the given endpoints, weight 1.
func service(mode Mode, endpoints ...netip.AddrPort) Service {
	s := Service{ID: 7, VIP: netip.AddrPortFrom(vip, 80), Protocol: protoTCP, Mode: mode, Algorithm: AlgorithmRR}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, Endpoint{Addr: e, Weight: 1, Sources: sourcesOf(mode)})
	}
	return s
}

func sourceOf(mode Mode) netip.Addr {
	switch mode {
	case ModeFullNAT:
		return vip
	case ModeOneArm:
		return lbAddress
	}
	return netip.Addr{}
}

// put writes over an entry of either table that is there, as programs do.
func (b *bench) put(table flowTable, key pontoonFlowKey, value pontoonFlow) {
	b.tb.Helper()
	if table == b.flowTable() {
		if err := b.maps.Flows.Put(key, value); err != nil {
			b.tb.Fatal(err)
		}
		return
	}
	if bucket, way, _ := b.half.place(&key); bucket != nil {
		bucket.Slot[way].F = value
		return
	}
	b.tb.Fatalf("%+v is not half-open", key)
}

// sourcesOf is sourceOf as an endpoint has it.
func sourcesOf(mode Mode) []netip.Addr {
	if a := sourceOf(mode); a.IsValid() {
		return []netip.Addr{a}
	}
	return nil
}

// translators are the programs between IP families, half of what the kernel has to look through.
func translators() []string { return []string{pontoonProgPontoonXlat, pontoonProgPontoonXlatIcmp} }

// whole is for tests that need the translators, too.
func whole(o *Options) { o.without = nil }
