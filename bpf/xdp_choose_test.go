package bpf

import (
	"bytes"
	"maps"
	"net/netip"
	"strings"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket/layers"
)

func TestHookIsChosenByWhatTheInterfaceIs(t *testing.T) {
	card := device{kind: "device", bus: "pci"}
	for _, row := range []struct {
		name, hook string
		device     device
		xdp        bool
		reason     string
	}{
		{"network card", HookAuto, card, true, "network card"},
		{"veth", HookAuto, device{kind: "veth"}, false, "virtual interface (veth)"},
		{"VLAN", HookAuto, device{kind: "vlan"}, false, "virtual interface (vlan)"},
		{"virtio", HookAuto, device{kind: "device", bus: "virtio"}, false, "virtual machine (virtio)"},
		{"VLANs whose tags are not seen", HookAuto, device{kind: "device", bus: "pci", stripsVLAN: true, hasVLANs: true}, false, "rx-vlan-offload"},
		{"tags taken out where there are none", HookAuto, device{kind: "device", bus: "pci", stripsVLAN: true}, true, "network card"},
		{"foreign program", HookAuto, device{kind: "device", bus: "pci", foreign: 7}, false, "another XDP program is attached: number 7"},
		{"tc asked for", HookTC, card, false, "asked for"},
		{"clsact asked for", HookClsact, card, false, "asked for"},
		{"xdp asked for on veth", HookXDP, device{kind: "veth"}, true, "asked for"},
		{"generic xdp asked for on veth", HookXDPGeneric, device{kind: "veth"}, true, "asked for"},
		{"generic xdp asked for, foreign program", HookXDPGeneric, device{kind: "veth", foreign: 7}, false, "another XDP program"},
		{"xdp asked for, foreign program", HookXDP, device{kind: "veth", foreign: 7}, false, "another XDP program"},
		{"xdp asked for, VLANs", HookXDP, device{kind: "veth", stripsVLAN: true, hasVLANs: true}, false, "rx-vlan-offload"},
	} {
		t.Run(row.name, func(t *testing.T) {
			got := choose(row.hook, row.device)
			if got.xdp != row.xdp || !strings.Contains(got.reason, row.reason) {
				t.Errorf("%+v, want XDP %t because of %q", got, row.xdp, row.reason)
			}
		})
	}
}

// Somebody else's XDP program stays; ours comes when that has gone.
func TestForeignXDPProgramIsLeftAlone(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook = HookXDP })
	_ = b.Close()
	b.ns.Do(func() {
		if err := Remove(b.opts.PinDir, b.opts.Interfaces); err != nil {
			t.Fatal(err)
		}
	})
	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	var theirs link.Link
	b.ns.Do(func() {
		theirs, err = link.AttachXDP(link.XDPOptions{Program: foreign, Interface: b.in.Index, Flags: link.XDPDriverMode})
	})
	if err != nil {
		t.Fatal(err)
	}
	b.Dataplane = openTest(t, b.ns, b.opts)
	got := b.Interfaces()
	if a := got["eth1"]; strings.HasPrefix(a.Hook, usedXDP) || !strings.Contains(a.Reason, "another XDP program") {
		t.Errorf("beside a foreign program: %+v", a)
	}
	if a := got["eth2"]; !strings.HasPrefix(a.Hook, usedXDP) {
		t.Errorf("the other interface: %+v", a)
	}
	if err := theirs.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "taking the place", func() error {
		b.ns.Do(func() { b.hooks.ensure() })
		return wantXDP(b.Interfaces()["eth1"])
	})
}

// The same packets through TC alone and through XDP with TC behind it: the same bytes, the same
// flows and the same counters.
func TestBothHooksDoTheSame(t *testing.T) {
	for _, mode := range []Mode{ModeFullNAT, ModeOneArm, ModeDNAT, ModeDSR} {
		for _, protocol := range []layers.IPProtocol{layers.IPProtocolTCP, layers.IPProtocolUDP} {
			t.Run(mode.String()+" "+protocol.String(), func(t *testing.T) {
				tc, xdp := newBench(t, nil), newBench(t, func(o *Options) { o.Hook = HookXDP })
				s := service(mode, endpoint1, endpoint2)
				if mode == ModeDSR {
					s = service(mode, netip.AddrPortFrom(endpoint1.Addr(), 80), netip.AddrPortFrom(endpoint2.Addr(), 80))
				}
				s.Protocol = uint8(protocol)
				tc.sync(s)
				xdp.sync(s)
				for i := range 12 {
					sameConversation(t, tc, xdp, mode, protocol, netip.AddrPortFrom(client, uint16(41000+i)))
				}
				a, b := tc.Stats(), xdp.Stats()
				forwarded := b.Counters["xdp_forward"]
				for _, c := range []string{"xdp_forward", "xdp_pass"} {
					delete(b.Counters, c)
					delete(a.Counters, c)
				}
				if !maps.Equal(a.Counters, b.Counters) || !maps.Equal(a.Drops, b.Drops) {
					t.Errorf("TC  %v %v\nXDP %v %v", a.Counters, a.Drops, b.Counters, b.Drops)
				}
				if forwarded < 40 {
					t.Errorf("XDP forwarded %d packets by itself", forwarded)
				}
				one, two := tc.flows(), xdp.flows()
				if len(one) != len(two) || len(one) == 0 {
					t.Fatalf("TC has %d flows, XDP %d", len(one), len(two))
				}
				byClient := map[netip.AddrPort]Flow{}
				for _, f := range one {
					byClient[f.Client] = f
				}
				for _, f := range two {
					w := byClient[f.Client]
					if f.State != w.State || f.Packets != w.Packets || f.Bytes != w.Bytes || f.Endpoint != w.Endpoint {
						t.Errorf("TC  %+v\nXDP %+v", w, f)
					}
				}
			})
		}
	}
}

// names tells from which interface to which a frame is addressed.
func (b *bench) names(frame []byte) string {
	var out []string
	for _, mac := range [][]byte{frame[6:12], frame[:6]} {
		for name, i := range map[string]bpftest.Iface{"in": b.in, "out": b.out, "far": b.far, "end": b.end} {
			if bytes.Equal(mac, i.MAC) {
				out = append(out, name)
			}
		}
	}
	return strings.Join(out, " to ")
}

// sameConversation has a client talk to the service on both benches and compares every packet.
func sameConversation(t *testing.T, tc, xdp *bench, mode Mode, protocol layers.IPProtocol, c netip.AddrPort) {
	t.Helper()
	both := func(reply bool, p bpftest.Packet) []byte {
		t.Helper()
		p.Protocol = protocol
		send := (*bench).fromClient
		if reply {
			send = (*bench).fromEndpoint
		}
		one, first := send(tc, p)
		two, second := send(xdp, p)
		if one != two || !bytes.Equal(first[12:], second[12:]) {
			t.Fatalf("%+v\nTC  %d %x\nXDP %d %x", p, one, first, two, second)
		}
		if err := bpftest.VerifyChecksums(second); err != nil {
			t.Fatal(err)
		}
		if tc.names(first) != xdp.names(second) {
			t.Fatalf("TC sent %s, XDP %s", tc.names(first), xdp.names(second))
		}
		return second
	}
	snat, endpoint := tuple(both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.SYN, TCPOptions: true}))
	reply := func(flags uint8, payload int) {
		if mode != ModeDSR {
			both(true, bpftest.Packet{Src: endpoint, Dst: snat, Flags: flags, Payload: bytes.Repeat([]byte{7}, payload)})
		}
	}
	reply(bpftest.SYN|bpftest.ACK, 0)
	both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK})
	for i := range 4 {
		both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK | bpftest.PSH, Seq: uint32(i), Payload: bytes.Repeat([]byte{byte(i)}, 101*i)})
		both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK, IPOptions: true, NoUDPChecksum: true})
		both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.ACK, NoUDPChecksum: true, Payload: []byte("odd")})
		reply(bpftest.ACK, 211*i)
	}
	both(false, bpftest.Packet{Src: c, Dst: vipPort, Flags: bpftest.FIN | bpftest.ACK})
	reply(bpftest.FIN|bpftest.ACK, 0)
}

func TestLargePacketsAreLeftToTCWhereThereIsALimit(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook, o.XDPMax = HookXDP, 200 })
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	for _, row := range []struct {
		payload int
		forward uint64
	}{{160, 1}, {161, 0}} {
		before := b.Stats().Counters["xdp_forward"]
		action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: make([]byte, row.payload)})
		if n := b.Stats().Counters["xdp_forward"] - before; action != actRedirect || n != row.forward {
			t.Errorf("%d bytes: action %d, XDP forwarded %d, want %d", 40+row.payload, action, n, row.forward)
		}
	}
}

// What cannot be sent by XDP is not given to it: it would be lost after the program has ended.
func TestWayThatTakesNoXDPFramesIsLeftToTC(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook = HookXDP })
	b.sync(service(ModeFullNAT, endpoint1))
	b.talk(clientPort, vipPort)
	b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK})
	b.hooks.mu.Lock()
	station := b.hooks.told[uint32(b.out.Index)%b.maps.Stations.MaxEntries()]
	b.hooks.mu.Unlock()
	for name, change := range map[string]func(*pontoonStation){
		"does not send": func(s *pontoonStation) { s.Flags = 0 },
		"smaller":       func(s *pontoonStation) { s.Mtu = 100 },
		"not known":     func(s *pontoonStation) { s.Ifindex = 0 },
	} {
		changed := station
		change(&changed)
		if err := b.maps.Stations.Put(uint32(b.out.Index)%b.maps.Stations.MaxEntries(), changed); err != nil {
			t.Fatal(err)
		}
		before := b.Stats().Counters
		action, _ := b.fromClient(bpftest.Packet{Src: clientPort, Dst: vipPort, Flags: bpftest.ACK, Payload: make([]byte, 300)})
		after := b.Stats().Counters
		if action != actRedirect || after["xdp_forward"] != before["xdp_forward"] || after["xdp_pass"] != before["xdp_pass"]+1 {
			t.Errorf("%s: action %d, counters %v", name, action, after)
		}
	}
}
