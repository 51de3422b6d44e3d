package bpf

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// A packet for a VIP that contradicts itself is dropped and counted; the same for another address is
// passed on untouched, as it is none of our business.
func TestMalformedPacketsAreDroppedWhenForAVIP(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			d := newDuo(t, f, nil)
			tcp, udp := d.serve(ModeFullNAT, protoTCP), d.serve(ModeFullNAT, protoUDP)
			udp.ID = 8
			d.configure(tcp, udp)
			ip := func(frame []byte) []byte { return frame[14:] }
			l4 := func(frame []byte) []byte { return frame[14+f.header:] }
			rows := []struct {
				name, reason string
				protocol     uint8
				change       func(frame []byte) []byte
			}{
				{"total length beyond the frame", "malformed", protoTCP, func(b []byte) []byte {
					at := map[bool]int{true: 2, false: 4}[f.name == "IPv4"]
					binary.BigEndian.PutUint16(ip(b)[at:], 2000)
					return f.sum(b)
				}},
				{"cut within the TCP header", "malformed", protoTCP, func(b []byte) []byte { return f.cut(b, 12) }},
				{"cut within the UDP header", "malformed", protoUDP, func(b []byte) []byte { return f.cut(b, 5) }},
				{"TCP header shorter than it can be", "malformed", protoTCP, func(b []byte) []byte { l4(b)[12] = 4 << 4; return b }},
				{"TCP header longer than the packet", "malformed", protoTCP, func(b []byte) []byte { l4(b)[12] = 15 << 4; return f.cut(b, 40) }},
				{"UDP length beyond the packet", "malformed", protoUDP, func(b []byte) []byte { binary.BigEndian.PutUint16(l4(b)[4:], 999); return b }},
				{"UDP length below its header", "malformed", protoUDP, func(b []byte) []byte { binary.BigEndian.PutUint16(l4(b)[4:], 7); return b }},
				{"from itself", "land", protoTCP, func(b []byte) []byte {
					a, at := f.vip.AsSlice(), map[bool]int{true: 12, false: 8}[f.name == "IPv4"]
					copy(ip(b)[at:], a)
					return f.sum(b)
				}},
			}
			for _, row := range rows {
				for _, to := range []netip.Addr{d.vip, d.other} {
					asked := ports{d.clientPort(), netip.AddrPortFrom(to, 80)}
					in := asked.frame(row.protocol, bpftest.SYN, make([]byte, 40))
					d.side(true, &in)
					frame := row.change(in.Bytes())
					before := d.drops(row.reason)
					action, out := d.run(d.in, frame)
					if to == d.vip && (action != actDrop || d.drops(row.reason) != before+1) {
						t.Errorf("%s: action %d, drops %v", row.name, action, d.Stats().Drops)
					}
					if to != d.vip && (action != actPass || !bytes.Equal(out, frame)) {
						t.Errorf("%s, not for a VIP: action %d", row.name, action)
					}
				}
			}
			if n := len(d.flows()); n != 0 {
				t.Errorf("%d flows", n)
			}
		})
	}
}

// sum puts the right header checksum into an IPv4 frame.
func (f family) sum(frame []byte) []byte {
	if header := int(frame[14]&15) * 4; f.name == "IPv4" && header >= 20 && len(frame) >= 14+header {
		frame[24], frame[25] = 0, 0
		binary.BigEndian.PutUint16(frame[24:], headerSum(frame[14:14+header]))
	}
	return frame
}

// cut leaves n bytes behind the IP header, which says so.
func (f family) cut(frame []byte, n int) []byte {
	frame = frame[:14+f.header+n]
	if f.name == "IPv4" {
		binary.BigEndian.PutUint16(frame[16:], uint16(f.header+n))
	} else {
		binary.BigEndian.PutUint16(frame[18:], uint16(n))
	}
	return f.sum(frame)
}

func TestWrongHeaderChecksumIsMalformed(t *testing.T) {
	d := newDuo(t, families[0], nil)
	d.serve(ModeFullNAT, protoTCP)
	for i, options := range [][]byte{nil, {1, 1, 1, 1}, make([]byte, 40)} {
		in := ports{d.clientPort(), d.vipPort()}.frame(protoTCP, bpftest.SYN, nil)
		in.Options = options
		d.side(true, &in)
		frame := in.Bytes()
		frame[24] ^= 1
		action, _ := d.run(d.in, frame)
		if action != actDrop || d.drops("malformed") != uint64(i)+1 {
			t.Errorf("%d bytes of options: action %d, drops %v", len(options), action, d.Stats().Drops)
		}
	}
}

// Options and extension headers are carried through, on both sides.
func TestOptionsAndExtensionHeadersAreCarriedThrough(t *testing.T) {
	for _, f := range families {
		d := newDuo(t, f, nil)
		d.serve(ModeFullNAT, protoTCP)
		seen := d.open(protoTCP, d.clientPort())
		asked := ports{d.clientPort(), d.vipPort()}
		rows := []bpftest.Frame{{Options: []byte{1, 1, 1, 0}}, {Options: bytes.Repeat([]byte{1}, 40)}}
		if f.name == "IPv6" {
			rows = []bpftest.Frame{
				{Extensions: bpftest.Extension(protoTCP, 8)},
				{Extensions: []byte{protoTCP, 1, 4, 0, 15: 0}, FirstHeader: 43}, // a routing header without stops left
				{Extensions: bpftest.Extension(protoTCP, 24), FirstHeader: 60},
				{Extensions: append(bpftest.Extension(60, 8), bpftest.Extension(protoTCP, 8)...)},
			}
		}
		for i, row := range rows {
			for fromClient, pair := range map[bool][2]ports{true: {asked, seen}, false: {seen.turned(), asked.turned()}} {
				in, want := pair[0].frame(protoTCP, bpftest.ACK, []byte("carried")), pair[1].frame(protoTCP, bpftest.ACK, []byte("carried"))
				for _, frame := range []*bpftest.Frame{&in, &want} {
					frame.Options, frame.Extensions, frame.FirstHeader = row.Options, row.Extensions, row.FirstHeader
				}
				want.TTL = 63
				action, out := d.send(fromClient, in)
				if action != actRedirect || !bytes.Equal(out[14:], want.IP()) {
					t.Errorf("%s row %d: action %d\n%x, want\n%x", f.name, i, action, out[14:], want.IP())
				}
			}
		}
	}
}

// fuzzed is a bench of both families that random packets are thrown at.
type fuzzed struct {
	*duo
	seeds [][]byte
	known map[netip.Addr]bool // addresses that a packet of ours may go between
}

// newFuzzed has services of every protocol and family, one established flow of each, and as seeds one
// valid packet of each kind.
func newFuzzed(tb testing.TB, hook string) *fuzzed {
	tb.Helper()
	z := &fuzzed{known: map[netip.Addr]bool{}}
	z.duo = newDuo(tb, families[0], func(o *Options) { o.MaxFlows, o.MaxHalfOpen, o.without, o.Hook = 64, 64, nil, hook })
	var services []Service
	views := []*duo{z.duo, {z.bench, families[1]}}
	for _, d := range views {
		for _, a := range []netip.Addr{d.vip, d.lb, d.client, d.other, d.endpoint1.Addr()} {
			z.known[a] = true
		}
		for _, protocol := range []uint8{protoTCP, protoUDP, protoSCTP} {
			s := d.serve(ModeFullNAT, protocol)
			s.ID = uint32(len(services) + 1)
			services = append(services, s)
		}
	}
	z.configure(services...)
	for _, d := range views {
		for _, protocol := range []uint8{protoTCP, protoUDP, protoSCTP} {
			z.seedsOf(d, protocol, d.open(protocol, d.clientPort()))
		}
	}
	return z
}

func (z *fuzzed) seedsOf(d *duo, protocol uint8, seen ports) {
	asked := ports{d.clientPort(), d.vipPort()}
	data := asked.frame(protocol, bpftest.ACK|bpftest.PSH, []byte("payload of a packet"))
	fresh := ports{netip.AddrPortFrom(d.other, 50000), d.vipPort()}.frame(protocol, bpftest.SYN, nil)
	optioned, last := data, data
	optioned.Options, optioned.Extensions, optioned.FirstHeader = make([]byte, 8), bpftest.Extension(protocol, 16), 60
	last.TTL = 1
	frames := append(pieces(data, 77, 24), data, fresh, optioned, last,
		d.about(routers[d.name][true], errorKinds[d.name]["too big"], asked.turned().frame(protocol, bpftest.ACK, nil), 0),
		d.about(routers[d.name][false], errorKinds[d.name]["port"], seen.frame(protocol, bpftest.ACK, nil), 0),
		seen.turned().frame(protocol, bpftest.ACK, []byte("answer")))
	for _, f := range frames {
		f.SrcMAC, f.DstMAC = d.far.MAC, d.in.MAC
		z.seeds = append(z.seeds, f.Bytes())
	}
}

// check runs one frame and demands what holds for every frame whatever: a known action; what is passed
// on is untouched; what is sent has a right header, right checksums if it came with them, and goes
// between addresses that it came with or that are ours to put in.
func (z *fuzzed) check(tb testing.TB, frame []byte) {
	tb.Helper()
	action, out, ran := z.try(tb, frame)
	if !ran {
		return
	}
	switch action {
	case actPass:
		if !bytes.Equal(frame, out) {
			tb.Fatalf("passed on, yet changed: %x -> %x", frame, out)
		}
	case actDrop:
	case actRedirect:
		z.checkSent(tb, frame, out)
	default:
		tb.Fatalf("action %d for %x", action, frame)
	}
}

func (z *fuzzed) checkSent(tb testing.TB, in, out []byte) {
	tb.Helper()
	was, inErr := bpftest.VerifyFrame(in)
	now, outErr := bpftest.VerifyFrame(out)
	if inErr == nil && outErr != nil {
		tb.Fatalf("%v: %x -> %x", outErr, in, out)
	}
	if !now.Src.IsValid() || !now.Dst.IsValid() {
		tb.Fatalf("sent without a right IP header: %x -> %x", in, out)
	}
	if !now.Fragment && contradictory(now.Protocol, now.L4, now.More) {
		tb.Fatalf("sent a packet that contradicts itself: %x -> %x", in, out)
	}
	for _, a := range []netip.Addr{now.Src, now.Dst} {
		if !z.known[a] && a != was.Src && a != was.Dst {
			tb.Fatalf("sent %s -> %s: %x -> %x", now.Src, now.Dst, in, out)
		}
	}
}

// contradictory judges a transport header by itself, as an endpoint would: TCP and UDP that give a
// length which is not there. first: the rest is in other fragments.
func contradictory(protocol uint8, l4 []byte, first bool) bool {
	switch protocol {
	case protoTCP:
		return len(l4) < 20 || l4[12]>>4 < 5 || int(l4[12]>>4)*4 > len(l4)
	case protoUDP:
		if len(l4) < 8 {
			return true
		}
		length := int(binary.BigEndian.Uint16(l4[4:]))
		return length != 0 && length < 8 || !first && length > len(l4)
	}
	return false
}

// mutate changes a few bytes behind the MAC addresses, or the length; mostly the IPv4 header's checksum
// is put right again, so that what is behind it is looked at.
func (z *fuzzed) mutate(random *rand.Rand) []byte {
	frame := mutated(random, z.seeds)
	if random.IntN(4) != 0 && len(frame) > 34 && frame[14]>>4 == 4 {
		frame = families[0].sum(frame)
	}
	return frame
}

func (z *fuzzed) bounded(tb testing.TB) {
	tb.Helper()
	most := []int{int(z.maps.Flows.MaxEntries()), halfWays * int(z.maps.HalfOpen.MaxEntries())}
	for i, m := range z.flowTables() {
		n := 0
		for part, err := range m.dump(tb.Context()) {
			if err != nil {
				tb.Fatal(err)
			}
			n += len(part.keys)
		}
		if n > most[i] {
			tb.Errorf("%d entries in %T, of %d", n, m, most[i])
		}
	}
}

func FuzzPackets(f *testing.F)    { fuzzPackets(f, HookTC) }
func FuzzPacketsXDP(f *testing.F) { fuzzPackets(f, HookXDP) }

func fuzzPackets(f *testing.F, hook string) {
	z := newFuzzed(f, hook)
	for _, seed := range z.seeds {
		f.Add(seed[12:]) // MAC addresses differ from run to run
	}
	f.Fuzz(func(t *testing.T, rest []byte) {
		z.check(t, append(append(bytes.Clone([]byte(z.in.MAC)), z.far.MAC...), rest...))
	})
}

// A bounded run of what fuzzing does, in every test run.
func TestRandomPacketsOfEveryKindHarmNothing(t *testing.T) {
	for _, hook := range []string{HookTC, HookXDP} {
		t.Run(hook, func(t *testing.T) { randomPackets(t, hook) })
	}
}

func randomPackets(t *testing.T, hook string) {
	z := newFuzzed(t, hook)
	for _, seed := range z.seeds {
		z.check(t, seed)
	}
	rounds := 30_000
	if testing.Short() {
		rounds = 5_000
	}
	const seed = 20261123
	random := rand.New(rand.NewPCG(seed, seed))
	for range rounds {
		z.check(t, z.mutate(random))
	}
	z.bounded(t)
	stats := z.Stats()
	t.Logf("drops %v, counters %v", stats.Drops, stats.Counters)
}
