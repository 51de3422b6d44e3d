package bpf

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"testing"

	"pontoon/bpf/bpftest"
)

// twin is two benches of which one has XDP before TC: every packet goes through both, and nothing
// may tell them apart.
type twin struct {
	t       *testing.T
	tc, xdp *duo
	sent    int
}

// twinService is one row: a service, and how its packets look.
type twinService struct {
	name   string
	family family
	Service
	random bool // the outer header has a number drawn by chance
	plain  bool // XDP forwards by itself
	direct bool // the endpoint answers past us
}

// twinServices are services of every mode, family and protocol.
func twinServices() []twinService {
	var out []twinService
	add := func(f family, protocol uint8, mode Mode, tunnel Tunnel, e Endpoint) {
		s := Service{
			ID: uint32(len(out) + 1), VIP: netip.AddrPortFrom(f.vip, uint16(8000+len(out))), Protocol: protocol, Mode: mode, Tunnel: tunnel,
			Algorithm: AlgorithmRR,
		}
		e.Weight = 1
		crossed := e.Addr.Addr().Is4() != f.vip.Is4()
		if mode == ModeDSR {
			e.Addr = netip.AddrPortFrom(e.Addr.Addr(), s.VIP.Port())
		}
		s.Endpoints = []Endpoint{e}
		row := twinService{
			family: f, Service: s, direct: mode == ModeDSR, random: crossed || tunnel == TunnelIPIP,
			plain: protocol != protoSCTP && !crossed && tunnel != TunnelIPIP,
			name:  fmt.Sprintf("%s protocol %d %s", f.name, protocol, mode),
		}
		if crossed {
			row.name += " to the other family"
		}
		if tunnel == TunnelIPIP {
			row.name += " through a tunnel"
		}
		out = append(out, row)
	}
	for i, f := range families {
		other := families[1-i]
		outer := map[bool]netip.Addr{true: netip.MustParseAddr("10.8.0.1"), false: outerSix}[f.vip.Is4()]
		for _, protocol := range []uint8{protoTCP, protoUDP, protoSCTP} {
			add(f, protocol, ModeFullNAT, TunnelL2, Endpoint{Addr: f.endpoint1, Sources: []netip.Addr{f.vip}})
			add(f, protocol, ModeOneArm, TunnelL2, Endpoint{Addr: f.endpoint1, Sources: []netip.Addr{f.pool}})
			add(f, protocol, ModeDNAT, TunnelL2, Endpoint{Addr: f.endpoint2})
			add(f, protocol, ModeDSR, TunnelL2, Endpoint{Addr: f.endpoint1})
			add(f, protocol, ModeDSR, TunnelIPIP, Endpoint{Addr: f.endpoint1, Sources: []netip.Addr{outer}})
			add(f, protocol, ModeFullNAT, TunnelL2, Endpoint{Addr: other.endpoint1, Sources: []netip.Addr{other.vip}})
		}
	}
	return out
}

func newTwin(t *testing.T, rows []twinService) *twin {
	t.Helper()
	w := &twin{t: t, tc: newDuo(t, families[0], whole)}
	w.xdp = newDuo(t, families[0], func(o *Options) { o.Hook, o.without = HookXDP, nil })
	var services []Service
	for _, row := range rows {
		services = append(services, row.Service)
	}
	for _, d := range []*duo{w.tc, w.xdp} {
		d.configure(services...)
		d.FlushNextHops()
	}
	return w
}

// send has both benches look at a packet and compares what they do; the result is TC's.
func (w *twin) send(row twinService, what string, fromClient bool, f bpftest.Frame, change func([]byte) []byte) (uint32, []byte) {
	w.t.Helper()
	w.sent++
	resolved := true
	run := func(d *duo) (uint32, []byte) {
		in := f
		from := d.side(fromClient, &in)
		frame := in.Bytes()
		if change != nil {
			frame = change(frame)
		}
		action, out := d.run(from, frame)
		// The kernel will address the frame where the next hop is to be learned anew, which is so
		// every few seconds, not in both at the same packet.
		resolved = resolved && action == actRedirect && !bytes.Equal(out[:12], frame[:12])
		return action, bytes.Clone(out)
	}
	one, first := run(w.tc)
	two, second := run(w.xdp)
	a, b := first, second
	if row.random && one == actRedirect {
		a, b = withoutChance(first), withoutChance(second)
	}
	if one != two || one != actDrop && !bytes.Equal(a[12:], b[12:]) || resolved && w.tc.names(first) != w.xdp.names(second) {
		w.t.Fatalf("%s: %s (from client's side %t)\nTC  %d %s %x\nXDP %d %s %x", row.name, what, fromClient,
			one, w.tc.names(first), a, two, w.xdp.names(second), b)
	}
	return one, first
}

// withoutChance blanks what IPv4 header was made anew: its identification, and the sum over it.
func withoutChance(frame []byte) []byte {
	out := bytes.Clone(frame)
	at := 14
	if out[12] == 0x81 {
		at += 4
	}
	if out[at]>>4 == 4 {
		clear(out[at+4 : at+6])
		clear(out[at+10 : at+12])
	}
	return out
}

// converse has one client of the service do everything that packets can do.
func (w *twin) converse(row twinService, number int) {
	w.t.Helper()
	asked := ports{netip.AddrPortFrom(row.family.client, uint16(41000+number)), row.VIP}
	_, out := w.send(row, "first packet", true, asked.frame(row.Protocol, bpftest.SYN, nil), nil)
	back := ports{row.Endpoints[0].Addr, netip.AddrPort{}}
	if !row.direct {
		l, err := bpftest.VerifyFrame(out)
		if err != nil || !l.SrcP.IsValid() {
			w.t.Fatalf("%s: first packet: %v, %x; drops %v", row.name, err, out, w.tc.Stats().Drops)
		}
		back = ports{l.DstP, l.SrcP}
	}
	w.both(row, "handshake", false, back, bpftest.SYN|bpftest.ACK, nil)
	w.both(row, "handshake", true, asked, bpftest.ACK, nil)
	for size := range 4 {
		payload := bytes.Repeat([]byte{byte(size), 0xa5}, 173*size+size%2)
		w.both(row, "data", true, asked, bpftest.ACK|bpftest.PSH, payload)
		w.both(row, "data", false, back, bpftest.ACK|bpftest.PSH, payload)
	}
	for _, from := range []bool{true, false} {
		way := asked
		if !from {
			if row.direct {
				break
			}
			way = back
		}
		w.oddities(row, from, way)
	}
	w.both(row, "end", true, asked, bpftest.FIN|bpftest.ACK, []byte("end"))
	w.both(row, "end", false, back, bpftest.FIN|bpftest.ACK, []byte("end"))
	w.both(row, "after the end", true, asked, bpftest.ACK, []byte("late"))
	w.both(row, "reset", false, back, bpftest.RST, nil)
	w.both(row, "after the reset", true, asked, bpftest.ACK, []byte("later"))
}

// both sends a packet of one side; direct services have no answers.
func (w *twin) both(row twinService, what string, fromClient bool, way ports, flags uint8, payload []byte) {
	w.t.Helper()
	if fromClient || !row.direct {
		w.send(row, what, fromClient, way.frame(row.Protocol, flags, payload), nil)
	}
}

// oddities sends what is not plain, or not right.
func (w *twin) oddities(row twinService, fromClient bool, way ports) {
	w.t.Helper()
	data := way.frame(row.Protocol, bpftest.ACK|bpftest.PSH, []byte("something out of the ordinary"))
	four := data.Src.Is4()
	kinds, icmp := errorKinds["IPv6"], uint8(bpftest.ProtoICMPv6)
	if four {
		kinds, icmp = errorKinds["IPv4"], bpftest.ProtoICMP
	}
	w.send(row, "in a VLAN", fromClient, data, tagged)
	w.send(row, "in two VLANs", fromClient, data, func(b []byte) []byte { return tagged(tagged(b)) })
	w.send(row, "trailing bytes", fromClient, data, func(b []byte) []byte { return append(b, 1, 2, 3) })
	w.send(row, "wrong checksum", fromClient, data, func(b []byte) []byte { b[len(b)-1] ^= 0x55; return b })
	w.send(row, "cut off", fromClient, data, func(b []byte) []byte { return b[:len(b)-7] })
	w.send(row, "cut in the header", fromClient, data, func(b []byte) []byte { return b[:14+map[bool]int{true: 20, false: 40}[four]+6] })
	last := data
	last.TTL = 1
	w.send(row, "last hop", fromClient, last, nil)
	if row.Protocol == protoUDP {
		w.send(row, "no checksum", fromClient, data, func(b []byte) []byte {
			at := 14 + map[bool]int{true: 20, false: 40}[four] + 6
			b[at], b[at+1] = 0, 0
			return b
		})
	}
	long := way.frame(row.Protocol, bpftest.ACK|bpftest.PSH, bytes.Repeat([]byte("fragments "), 100))
	for i, piece := range pieces(long, uint32(way.src.Port()), 400) {
		w.send(row, fmt.Sprintf("fragment %d", i), fromClient, piece, nil)
	}
	optioned := data
	optioned.Options, optioned.Extensions, optioned.FirstHeader = []byte{1, 1, 1, 0}, bpftest.Extension(row.Protocol, 8), 60
	w.send(row, "options", fromClient, optioned, nil)
	router := routers["IPv6"][fromClient]
	if four {
		router = routers["IPv4"][fromClient]
	}
	for name, kind := range kinds {
		quoted := way.turned().frame(row.Protocol, bpftest.ACK|bpftest.PSH, []byte("quoted in an error"))
		w.send(row, "error: "+name, fromClient, bpftest.Frame{
			Src: router, Dst: quoted.Src, Protocol: icmp,
			L4: bpftest.Error(router, quoted.Src, uint8(kind[0]), uint8(kind[1]), kind[2], quoted.IP()),
		}, nil)
	}
	echo := uint8(8)
	if !four {
		echo = 128
	}
	w.send(row, "echo", fromClient, bpftest.Frame{
		Src: way.src.Addr(), Dst: way.dst.Addr(), Protocol: icmp, L4: bpftest.Error(way.src.Addr(), way.dst.Addr(), echo, 0, 1, []byte("echo")),
	}, nil)
	stranger := ports{netip.AddrPortFrom(way.src.Addr(), way.src.Port()+1000), way.dst}
	w.send(row, "nobody's", fromClient, stranger.frame(row.Protocol, bpftest.ACK, nil), nil)
}

// The same packets of every kind through TC alone and through XDP with TC behind it: the same bytes,
// the same flows and the same counters, so nothing is counted by both.
func TestBothHooksDoTheSameWithEveryPacket(t *testing.T) {
	rows := twinServices()
	w := newTwin(t, rows)
	for i, row := range rows {
		before := w.xdp.Stats().Counters
		w.converse(row, i)
		after := w.xdp.Stats().Counters
		if n := after["xdp_forward"] - before["xdp_forward"]; (n > 0) != row.plain {
			t.Errorf("%s: XDP forwarded %d packets", row.name, n)
		}
		if after["xdp_pass"] == before["xdp_pass"] {
			t.Errorf("%s: XDP left nothing to TC", row.name)
		}
	}
	a, b := w.tc.Stats(), w.xdp.Stats()
	t.Logf("%d packets, XDP forwarded %d and left %d", w.sent, b.Counters["xdp_forward"], b.Counters["xdp_pass"])
	for _, c := range []string{"xdp_forward", "xdp_pass", "next_hop_miss", "neighbour_miss"} { // the latter go by the clock
		delete(a.Counters, c)
		delete(b.Counters, c)
	}
	if !maps.Equal(a.Counters, b.Counters) || !maps.Equal(a.Drops, b.Drops) {
		t.Errorf("TC  %v %v\nXDP %v %v", a.Counters, a.Drops, b.Counters, b.Drops)
	}
	w.sameFlows()
}

// What XDP refuses it leaves to TC to refuse, and to count.
func TestRefusalsAreCountedOnceBehindXDP(t *testing.T) {
	var rows []twinService
	for _, row := range twinServices() {
		if row.plain && row.Mode == ModeFullNAT {
			rows = append(rows, row)
		}
	}
	w := newTwin(t, rows)
	for i, row := range rows {
		asked := ports{netip.AddrPortFrom(row.family.client, uint16(43000+i)), row.VIP}
		_, out := w.send(row, "first packet", true, asked.frame(row.Protocol, bpftest.SYN, nil), nil)
		l, err := bpftest.VerifyFrame(out)
		if err != nil {
			t.Fatal(err)
		}
		back := ports{l.DstP, l.SrcP}
		w.both(row, "handshake", false, back, bpftest.SYN|bpftest.ACK, nil)
		w.both(row, "handshake", true, asked, bpftest.ACK, nil)
		w.tc.doom()
		w.xdp.doom()
		w.both(row, "to a doomed flow", true, asked, bpftest.ACK, []byte("late"))
		w.both(row, "to a doomed flow", false, back, bpftest.ACK, []byte("late"))
		w.both(row, "reset to a doomed flow", false, back, bpftest.RST, nil)
		unknown := ports{asked.src, netip.AddrPortFrom(asked.dst.Addr(), 9)}
		w.both(row, "to no service", true, unknown, bpftest.SYN, nil)
		w.both(row, "to no service", true, unknown, bpftest.ACK, nil)
		land := ports{netip.AddrPortFrom(asked.dst.Addr(), 7), asked.dst}
		w.both(row, "from itself", true, land, bpftest.SYN, nil)
	}
	a, b := w.tc.Stats(), w.xdp.Stats()
	if !maps.Equal(a.Drops, b.Drops) || a.Counters["refused"] != b.Counters["refused"] {
		t.Errorf("TC  refused %d %v\nXDP refused %d %v", a.Counters["refused"], a.Drops, b.Counters["refused"], b.Drops)
	}
	if a.Drops["doomed"] == 0 || a.Drops["no_service"] == 0 || a.Drops["land"] == 0 {
		t.Errorf("too little was refused: %v", a.Drops)
	}
}

func (w *twin) sameFlows() {
	w.t.Helper()
	one, two := map[string]Flow{}, map[string]Flow{}
	for d, into := range map[*duo]map[string]Flow{w.tc: one, w.xdp: two} {
		for _, f := range d.flows() {
			into[fmt.Sprint(f.Protocol, f.Client, f.VIP)] = f
		}
	}
	if len(one) != len(two) || len(one) == 0 {
		w.t.Fatalf("TC has %d flows, XDP %d", len(one), len(two))
	}
	for key, f := range two {
		if was := one[key]; f.State != was.State || f.Packets != was.Packets || f.Bytes != was.Bytes || f.Endpoint != was.Endpoint || f.SNAT != was.SNAT {
			w.t.Errorf("TC  %+v\nXDP %+v", was, f)
		}
	}
}

// What XDP cannot do goes to TC as it came, and is counted. What is not for us goes there, too, and is not.
func TestWhatXDPLeavesIsUntouchedAndCounted(t *testing.T) {
	rows := twinServices()
	d := newDuo(t, families[0], func(o *Options) { o.Hook, o.without = HookXDP, nil })
	var services []Service
	for _, row := range rows {
		services = append(services, row.Service)
	}
	d.configure(services...)
	left := func(what string, n uint64, f bpftest.Frame) {
		t.Helper()
		from := d.side(true, &f)
		before := d.Stats().Counters
		action, _ := d.runXDP(from, f.Bytes()) // says itself when the frame has changed
		after := d.Stats().Counters
		if action != actPass || after["xdp_pass"]-before["xdp_pass"] != n || after["xdp_forward"] != before["xdp_forward"] {
			t.Errorf("%s: action %d, %d counted, want %d", what, action, after["xdp_pass"]-before["xdp_pass"], n)
		}
	}
	for i, row := range rows {
		asked := ports{netip.AddrPortFrom(row.family.client, uint16(44000+i)), row.VIP}
		data := asked.frame(row.Protocol, bpftest.SYN, nil)
		if !row.plain {
			left(row.name+": first packet", 1, data)
			left(row.name+": once more", 1, data)
			continue
		}
		left(row.name+": no next hop", 1, data)
		last, optioned := data, data
		last.TTL = 1
		optioned.Options, optioned.Extensions, optioned.FirstHeader = []byte{1, 1, 1, 0}, bpftest.Extension(row.Protocol, 8), 60
		left(row.name+": last hop", 1, last)
		left(row.name+": options", 1, optioned)
		left(row.name+": fragment", 1, pieces(asked.frame(row.Protocol, bpftest.ACK, make([]byte, 900)), 9, 400)[0])
		if row.Protocol == protoTCP {
			unknown := ports{asked.src, netip.AddrPortFrom(asked.dst.Addr(), 9)}
			left(row.name+": to be refused", 1, unknown.frame(row.Protocol, bpftest.SYN, nil))
		}
		stranger := ports{asked.src, netip.AddrPortFrom(row.family.other, 80)}
		left(row.name+": for another", 0, stranger.frame(row.Protocol, bpftest.SYN, nil))
	}
	for _, f := range families {
		e := &duo{d.bench, f}
		quoted := ports{e.vipPort(), e.clientPort()}.frame(protoTCP, bpftest.ACK, nil)
		left(f.name+": error", 1, e.about(routers[f.name][true], errorKinds[f.name]["port"], quoted, 0))
		echo := bpftest.Frame{Src: f.client, Dst: f.vip, Protocol: f.icmp, L4: bpftest.Error(f.client, f.vip, 8, 0, 1, nil)}
		left(f.name+": echo", 1, echo)
		echo.Dst = f.lb
		left(f.name+": echo to the host", 0, echo)
	}
}
