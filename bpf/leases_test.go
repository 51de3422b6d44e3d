package bpf

import (
	"encoding/binary"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"golang.org/x/sys/unix"
)

var (
	vip6      = netip.MustParseAddr("fd00:9::100")
	client6   = netip.MustParseAddr("fe80::5")
	everybody = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	solicited = net.HardwareAddr{0x33, 0x33, 0xff, 0, 0x01, 0x00}
)

const (
	arpRequest = 1
	arpReply   = 2
)

// question is a frame by which somebody asks who has an address.
type question struct {
	name  string
	frame []byte
}

func arpFrame(to, from net.HardwareAddr, op uint16, sender, target netip.Addr) []byte {
	out := append(append(slices.Clone(to), from...), 0x08, 0x06, 0, 1, 0x08, 0, 6, 4)
	out = binary.BigEndian.AppendUint16(out, op)
	out = append(append(out, from...), sender.AsSlice()...)
	out = append(out, make([]byte, 6)...)
	return append(append(out, target.AsSlice()...), make([]byte, 18)...) // padding
}

// neighbourFrame is a message of neighbour discovery about an address.
func neighbourFrame(kind uint8, to, from net.HardwareAddr, src, dst, about netip.Addr, extensions []byte) []byte {
	message := append([]byte{kind, 0, 0, 0, 0, 0, 0, 0}, about.AsSlice()...)
	if !src.IsUnspecified() {
		message = append(append(message, 1, 1), from...)
	}
	pseudo := binary.BigEndian.AppendUint32(append(src.AsSlice(), dst.AsSlice()...), uint32(len(message)))
	binary.BigEndian.PutUint16(message[2:], ^onesSum(append(append(pseudo, 0, 0, 0, bpftest.ProtoICMPv6), message...)))
	return bpftest.Frame{
		DstMAC: to, SrcMAC: from, Src: src, Dst: dst, Protocol: bpftest.ProtoICMPv6, TTL: 255, L4: message,
		Extensions: extensions, FirstHeader: 0,
	}.Bytes()
}

// onesSum is the checksum of RFC 1071, of an even number of bytes.
func onesSum(b []byte) uint16 {
	sum := uint32(0)
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// questions are all ways to ask for v4 and v6 that a host answers.
func (b *bench) questions(v4, v6 netip.Addr) []question {
	me, they := b.in.MAC, b.far.MAC
	group := netip.MustParseAddr("ff02::1:ff00:100")
	none := netip.IPv6Unspecified()
	router := slices.Clone(bpftest.Extension(bpftest.ProtoICMPv6, 8))
	all := []question{
		{"request", arpFrame(everybody, they, arpRequest, client, v4)},
		{"unicast request", arpFrame(me, they, arpRequest, client, v4)},
		{"probe", arpFrame(everybody, they, arpRequest, netip.IPv4Unspecified(), v4)},
		{"announcement", arpFrame(everybody, they, arpRequest, v4, v4)},
		{"solicitation", neighbourFrame(135, solicited, they, client6, group, v6, nil)},
		{"solicitation to the address itself", neighbourFrame(135, me, they, client6, v6, v6, nil)},
		{"solicitation to another address of the host", neighbourFrame(135, me, they, client6, netip.MustParseAddr("fd00:9::1"), v6, nil)},
		{"duplicate detection", neighbourFrame(135, solicited, they, none, group, v6, nil)},
		{"solicitation behind an extension header", neighbourFrame(135, solicited, they, client6, group, v6, router)},
	}
	for _, q := range slices.Clone(all) {
		all = append(all, question{q.name + " in a VLAN", tagged(q.frame)})
	}
	return all
}

// lease has b hold both VIPs by l, until what is left is over.
func (b *bench) lease(l Lease, left time.Duration) {
	b.tb.Helper()
	now, err := Boottime()
	if err == nil {
		err = b.RenewLease(now + left)
	}
	if err == nil {
		err = b.SyncLeases(map[netip.Addr]Lease{vip: l, vip6: l})
	}
	if err != nil {
		b.tb.Fatal(err)
	}
}

func TestHostAnswersForAVIPOnlyByItsLease(t *testing.T) {
	b := newBench(t, nil)
	b.ns.EnableSix()
	b.in.AddressSix("fd00:9::1/64")
	b.sync(service(ModeFullNAT, endpoint1))
	held, bound := Lease{Epoch: 4, Held: true}, Lease{Epoch: 4, Held: true, Bound: true}
	for _, row := range []struct {
		name   string
		lease  Lease
		left   time.Duration
		reason string // of the drop; "": the host answers
	}{
		{"not held", Lease{Bound: true}, time.Minute, "not_held"},
		{"not held, not bound", Lease{}, time.Minute, "not_held"},
		{"held, not bound, nothing renewed", held, -time.Minute, ""},
		{"held, not bound", held, time.Minute, ""},
		{"valid", bound, time.Minute, ""},
		{"run out", bound, -time.Millisecond, "no_lease"},
		{"long ago", bound, -time.Hour, "no_lease"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b.tb = t
			b.lease(row.lease, row.left)
			for _, q := range b.questions(vip, vip6) {
				b.ask(q, row.reason)
			}
			for _, q := range b.questions(netip.MustParseAddr("10.9.0.77"), netip.MustParseAddr("fd00:9::77")) {
				b.ask(question{q.name + " for another address", q.frame}, "")
			}
		})
	}
}

// ask sends a question and expects that it gets through, or is dropped for the reason.
func (b *bench) ask(q question, reason string) {
	b.tb.Helper()
	before := b.Stats().Drops
	action, out := b.run(b.in, q.frame)
	after := b.Stats().Drops
	if reason == "" {
		if action != actPass || !maps.Equal(before, after) {
			b.tb.Errorf("%s: action %d, drops %v", q.name, action, after)
		}
		if !slices.Equal(out, q.frame) {
			b.tb.Errorf("%s: passed on as\n%x, was\n%x", q.name, out, q.frame)
		}
		return
	}
	if action != actDrop || after[reason] != before[reason]+1 {
		b.tb.Errorf("%s: action %d, %s %d and before %d", q.name, action, reason, after[reason], before[reason])
	}
}

func TestOnlyQuestionsAreGated(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.lease(Lease{Held: true, Bound: true}, -time.Second)
	they := b.far.MAC
	request := arpFrame(everybody, they, arpRequest, client, vip)
	changed := func(at int, to byte) []byte {
		out := slices.Clone(request)
		out[at] = to
		return out
	}
	nodes := netip.MustParseAddr("ff02::1")
	for name, frame := range map[string][]byte{
		"reply to the VIP":              arpFrame(everybody, they, arpReply, client, vip),
		"the VIP's holder announces":    arpFrame(everybody, they, arpReply, vip, vip),
		"the VIP asks for another":      arpFrame(everybody, they, arpRequest, vip, client),
		"no IPv4":                       changed(16, 0x86),
		"other hardware length":         changed(18, 8),
		"other protocol length":         changed(19, 16),
		"cut short":                     request[:40],
		"nothing but a tag":             tagged(request)[:18],
		"advertisement by the holder":   neighbourFrame(136, solicited, they, vip6, nodes, vip6, nil),
		"solicitation from the VIP":     neighbourFrame(135, solicited, they, vip6, nodes, netip.MustParseAddr("fe80::9"), nil),
		"router solicitation":           neighbourFrame(133, solicited, they, client6, nodes, vip6, nil),
		"cut solicitation":              neighbourFrame(135, solicited, they, client6, nodes, vip6, nil)[:60],
		"another protocol, to everyone": append(slices.Clone(request[:12]), 0x88, 0xcc, 2, 7, 4, 0, 0, 0, 0, 0),
	} {
		b.tb = t
		b.ask(question{name, frame}, "")
	}
}

// A lease is about who is asked for, never about packets.
func TestForwardingNeedsNoLease(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	for _, l := range []Lease{{}, {Bound: true}, {Held: true, Bound: true}} {
		b.lease(l, -time.Second)
		b.talk(netip.AddrPortFrom(client, clientPort.Port()+uint16(len(b.flows()))), vipPort)
	}
}

// The gate before a real kernel, with XDP in front of it and without: what counts is who answers.
func TestKernelFallsSilentWithItsLease(t *testing.T) {
	for _, hook := range []string{HookTC, HookClsact, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Hook = hook })
			b.ns.EnableSix()
			b.in.AddressSix("fd00:9::1/64")
			b.in.AddressSix(vip6.String() + "/128")
			b.sync(service(ModeFullNAT, endpoint1))
			var fd int
			b.far.NS.Do(func() { fd = packetSocket(t, b.far) })
			all := b.questions(vip, vip6)
			all = all[:len(all)/2] // the interface has no VLANs
			for _, row := range []struct {
				lease  Lease
				left   time.Duration
				answer bool
			}{
				{Lease{Held: true, Bound: true}, time.Minute, true},
				{Lease{Held: true, Bound: true}, -time.Millisecond, false},
				{Lease{Held: true}, -time.Millisecond, true},
				{Lease{Bound: true}, time.Minute, false},
			} {
				b.lease(row.lease, row.left)
				for _, q := range all {
					if q.name == "announcement" || q.name == "probe" {
						continue // whether it is answered is the kernel's own affair
					}
					if got := answered(t, fd, q.frame, b.in.MAC); got != row.answer {
						t.Errorf("%+v, %s left: %s answered is %v", row.lease, row.left, q.name, got)
					}
				}
			}
		})
	}
}

// answered sends a question and waits for an answer from the hardware address for the VIP.
func answered(t *testing.T, fd int, frame []byte, from net.HardwareAddr) bool {
	t.Helper()
	for { // what is there has nothing to do with this question
		if n, _, err := unix.Recvfrom(fd, make([]byte, 2048), unix.MSG_DONTWAIT); n <= 0 || err != nil {
			break
		}
	}
	if _, err := unix.Write(fd, frame); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(150 * time.Millisecond)
	for time.Now().Before(deadline) {
		got, _, err := receiveTagged(fd)
		if err != nil || len(got) < 42 || !slices.Equal(got[6:12], from) {
			continue
		}
		isARP := got[12] == 0x08 && got[13] == 0x06 && got[21] == arpReply && slices.Equal(got[28:32], vip.AsSlice())
		isNDP := len(got) >= 78 && got[12] == 0x86 && got[54] == 136 && slices.Equal(got[62:78], vip6.AsSlice())
		if isARP || isNDP {
			return true
		}
	}
	return false
}

func TestLeasesAreWhatWasAskedForLast(t *testing.T) {
	b := newBench(t, nil)
	other := netip.MustParseAddr("10.9.0.101")
	for _, want := range []map[netip.Addr]Lease{
		{vip: {Epoch: 1, Held: true, Bound: true}, vip6: {Epoch: 1}},
		{vip: {Epoch: 2, Bound: true}, vip6: {Epoch: 2, Held: true}, other: {Held: true}},
		{other: {Held: true}},
		{},
	} {
		for range 2 { // the second time nothing changes
			if err := b.SyncLeases(want); err != nil {
				t.Fatal(err)
			}
			have, err := readMap[pontoonAddr, pontoonLease](b.maps.Leases)
			if err != nil {
				t.Fatal(err)
			}
			if len(have) != len(want) {
				t.Errorf("%d leases, want %d", len(have), len(want))
			}
			for a, l := range want {
				if have[vipKey(a)] != l.entry() {
					t.Errorf("%s: %+v, want %+v", a, have[vipKey(a)], l)
				}
			}
		}
	}
}

// A map that takes no more is no reason not to give up what is lost.
func TestLostLeaseIsWrittenAlthoughTheMapIsFull(t *testing.T) {
	b := newBench(t, nil)
	want := map[netip.Addr]Lease{}
	many := netip.MustParseAddr("10.0.0.1")
	for range b.maps.Leases.MaxEntries() {
		want[many] = Lease{Held: true}
		many = many.Next()
	}
	if err := b.SyncLeases(want); err != nil {
		t.Fatal(err)
	}
	first := netip.MustParseAddr("10.0.0.1")
	want[first], want[many] = Lease{}, Lease{Held: true}
	if err := b.SyncLeases(want); err == nil {
		t.Error("more leases than there is room for")
	}
	var got pontoonLease
	if err := b.maps.Leases.Lookup(vipKey(first), &got); err != nil || got != (Lease{}).entry() {
		t.Errorf("what was lost is %+v, %v", got, err)
	}
	delete(want, first)
	if err := b.SyncLeases(want); err != nil {
		t.Errorf("there is room again: %v", err)
	}
}

func TestReopenedDataplaneKeepsItsLeases(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	b.lease(Lease{Epoch: 9, Held: true, Bound: true}, time.Minute)
	before, err := b.LeaseUntil()
	if err != nil {
		t.Fatal(err)
	}
	again := openTest(t, b.ns, b.opts)
	if after, err := again.LeaseUntil(); err != nil || after != before {
		t.Errorf("until %s, %v; was %s", after, err, before)
	}
	if len(again.leases.have) != 2 || again.leases.have[vipKey(vip)].Epoch != 9 {
		t.Errorf("leases are %+v", again.leases.have)
	}
}

// What an earlier version serves goes on being answered for, and not without end.
func TestDataplaneOfBeforeLeasesIsTakenOver(t *testing.T) {
	b := newBench(t, nil)
	b.sync(service(ModeFullNAT, endpoint1))
	_ = b.Close()
	for _, name := range []string{pontoonMapLeases, pontoonMapTerms} {
		if err := os.Remove(filepath.Join(b.opts.PinDir, mapFolder, name)); err != nil {
			t.Fatal(err)
		}
	}
	before, err := Boottime()
	if err != nil {
		t.Fatal(err)
	}
	b.Dataplane = openTest(t, b.ns, b.opts)
	now, err := Boottime()
	if err != nil {
		t.Fatal(err)
	}
	until, err := b.LeaseUntil()
	if err != nil || until <= before+firstLease || until > now+firstLease {
		t.Errorf("it was opened from %s to %s, the lease is until %s, %v", before, now, until, err)
	}
	if err := b.RenewLease(now + firstLease); err != nil { // to open it may have taken longer than that
		t.Fatal(err)
	}
	asked := question{"request", arpFrame(everybody, b.far.MAC, arpRequest, client, vip)}
	b.ask(asked, "")
	if err := b.RenewLease(now); err != nil {
		t.Fatal(err)
	}
	b.ask(asked, "no_lease")
}

// BenchmarkLeases is what a failover and a renewal cost.
func BenchmarkLeases(b *testing.B) {
	d := newBench(b, nil)
	held, lost := map[netip.Addr]Lease{}, map[netip.Addr]Lease{}
	a := netip.MustParseAddr("10.0.0.1")
	for range 100 {
		held[a], lost[a] = Lease{Epoch: 1, Held: true, Bound: true}, Lease{Epoch: 2, Bound: true}
		a = a.Next()
	}
	b.Run("100 VIPs taken up", func(b *testing.B) {
		for i := range b.N {
			if err := d.SyncLeases([]map[netip.Addr]Lease{held, lost}[i%2]); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("renewed", func(b *testing.B) {
		for b.Loop() {
			if err := d.RenewLease(time.Hour); err != nil {
				b.Fatal(err)
			}
		}
	})
	for name, frame := range map[string][]byte{
		"request for a VIP": arpFrame(everybody, d.far.MAC, arpRequest, client, netip.MustParseAddr("10.0.0.1")),
		"request for none":  arpFrame(everybody, d.far.MAC, arpRequest, client, client),
	} {
		b.Run(name, func(b *testing.B) {
			var took time.Duration
			for range b.N {
				var err error
				d.ns.Do(func() { _, took, err = d.programs.entry.Benchmark(frame, 10000, nil) })
				if err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(took.Nanoseconds()), "ns/frame")
		})
	}
}
