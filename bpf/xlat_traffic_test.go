package bpf

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const crossBulk = 20 << 20

// host makes a namespace with both families.
func host(tb testing.TB) *bpftest.NS {
	ns := bpftest.NewNS(tb)
	ns.EnableSix()
	return ns
}

// echoOn echoes on TCP at an address of the namespace until the test ends.
func echoOn(tb testing.TB, ns *bpftest.NS, address netip.AddrPort) {
	tb.Helper()
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("tcp", address.String()) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// echoDatagrams does the same for UDP.
func echoDatagrams(tb testing.TB, ns *bpftest.NS, address netip.AddrPort) {
	tb.Helper()
	var server *net.UDPConn
	var err error
	ns.Do(func() { server, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(address)) })
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = server.Close() })
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()
}

// crossLab is a client of one family, a load balancer, and an endpoint of the other, all offloads
// as the kernel sets them.
type crossLab struct {
	tb             testing.TB
	client, server *bpftest.NS
	vip            netip.Addr
	*Dataplane
}

func newCrossLab(t *testing.T, six bool, hook string, clientMTU int) *crossLab {
	t.Helper()
	bpftest.RequirePrivilege(t)
	l := &crossLab{tb: t, client: host(t), server: host(t), vip: vip}
	lb := host(t)
	in, c := bpftest.Veth(lb, "eth1", l.client, "eth1")
	out, e := bpftest.Veth(lb, "eth2", l.server, "eth1")
	in.SetMTU(clientMTU)
	c.SetMTU(clientMTU)
	endpoint, source := endpointSix, outerSix
	if six {
		l.vip, endpoint, source = vipSix, endpoint1, netip.MustParseAddr("10.8.0.1")
		in.AddressSix("fd00:9::1/64")
		in.AddressSix(vipSix.String() + "/128")
		c.AddressSix(clientSix.String() + "/64")
		out.Address("10.8.0.1/24")
		e.Address(endpoint.Addr().String() + "/24")
	} else {
		in.Address(lbAddress.String() + "/24")
		in.Address(vip.String() + "/32")
		c.Address(client.String() + "/24")
		out.AddressSix(outerSix.String() + "/64")
		e.AddressSix(endpoint.Addr().String() + "/64")
	}
	l.Dataplane = openTest(t, lb, Options{
		PinDir: bpftest.PinDir(t), Interfaces: []string{"eth1", "eth2"}, MaxFlows: 1024, MaxHalfOpen: 1024, Hook: hook,
	})
	var services []Service
	for id, protocol := range map[uint32]uint8{7: protoTCP, 8: protoUDP} {
		services = append(services, Service{
			ID: id, VIP: netip.AddrPortFrom(l.vip, 80), Protocol: protocol, Mode: ModeFullNAT, Algorithm: AlgorithmRR,
			Endpoints: []Endpoint{{Addr: endpoint, Weight: 1, Sources: []netip.Addr{source}}},
		})
	}
	if err := l.Sync(context.Background(), Desired{VIPs: []netip.Addr{l.vip}, Services: numbered(services...)}); err != nil {
		t.Fatal(err)
	}
	runDataplane(t, l.Dataplane)
	echoOn(t, l.server, endpoint)
	echoDatagrams(t, l.server, endpoint)
	return l
}

func (l *crossLab) dial(network string) net.Conn {
	l.tb.Helper()
	c, err := l.client.Dial(&net.Dialer{Timeout: 10 * time.Second}, network, netip.AddrPortFrom(l.vip, 80).String())
	if err != nil {
		l.tb.Fatalf("%v, drops %v", err, l.Stats().Drops)
	}
	return c
}

func (l *crossLab) mustDropNothing() {
	l.tb.Helper()
	for reason, n := range l.Stats().Drops {
		if n > 0 && reason != "no_flow" {
			l.tb.Errorf("%d drops for %s", n, reason)
		}
	}
}

func TestRealTrafficArrivesWholeInTheOtherFamily(t *testing.T) {
	for i, row := range []struct {
		name string
		six  bool
		hook string
		mtu  int
	}{
		{"NAT64", true, HookAuto, 1500},
		{"NAT46", false, HookAuto, 1500},
		{"NAT64 clsact", true, HookClsact, 1500},
		{"NAT46 clsact", false, HookClsact, 1500},
		{"NAT64 narrow client", true, HookAuto, 1400},
		{"NAT46 wide client", false, HookAuto, 9000},
	} {
		if testing.Short() && i > 1 {
			break
		}
		t.Run(row.name, func(t *testing.T) {
			l := newCrossLab(t, row.six, row.hook, row.mtu)
			start := time.Now()
			if err := transfer(l.dial("tcp"), crossBulk, nil); err != nil {
				t.Fatalf("%v\n%+v", err, l.Stats())
			}
			t.Logf("%.2f Gbit/s each way", crossBulk*8/time.Since(start).Seconds()/1e9)
			l.mustDropNothing()
			if l.Stats().Counters["translated"] == 0 {
				t.Error("no packet was translated")
			}
		})
	}
}

// Datagrams of up to several fragments, with all lengths of the last one.
func TestRealDatagramsCrossFamilies(t *testing.T) {
	for _, six := range []bool{true, false} {
		l := newCrossLab(t, six, HookAuto, 1500)
		c := l.dial("udp")
		for _, size := range []int{1, 2, 3, 512, 1200, 1400, 1452, 3000, 8000, 20001} {
			message := bytes.Repeat([]byte{byte(size), 0x5a, 7}, size)[:size]
			eventually(t, fmt.Sprintf("echo of %d bytes", size), func() error {
				if err := ask(c, message); err != nil {
					return fmt.Errorf("%w, drops %v", err, l.Stats().Drops)
				}
				return nil
			})
		}
	}
}

// decapsulator takes IP in IP headers off what comes in, as an endpoint's ipip device does.
func decapsulator(tb testing.TB, i bpftest.Iface) {
	tb.Helper()
	header := func(label string, off int32, protocol int32, size int32, next string) asm.Instructions {
		return asm.Instructions{
			asm.Mov.Reg(asm.R1, asm.R6).WithSymbol(label),
			asm.Mov.Imm(asm.R2, off),
			asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, -8),
			asm.Mov.Imm(asm.R4, 1),
			asm.FnSkbLoadBytes.Call(),
			asm.JNE.Imm(asm.R0, 0, "pass"),
			asm.LoadMem(asm.R1, asm.RFP, -8, asm.Byte),
			asm.JNE.Imm(asm.R1, protocol, next),
			asm.Mov.Reg(asm.R1, asm.R6),
			asm.Mov.Imm(asm.R2, -size),
			asm.Mov.Imm(asm.R3, 1), // BPF_ADJ_ROOM_MAC
			asm.Mov.Imm(asm.R4, 1), // BPF_F_ADJ_ROOM_FIXED_GSO
			asm.FnSkbAdjustRoom.Call(),
			asm.Ja.Label("pass"),
		}
	}
	program := asm.Instructions{asm.Mov.Reg(asm.R6, asm.R1), asm.LoadMem(asm.R7, asm.R6, 16, asm.Word)}
	program = append(program, asm.JEq.Imm(asm.R7, 0x0008, "four"), asm.JEq.Imm(asm.R7, 0xdd86, "six"), asm.Ja.Label("pass"))
	program = append(program, header("four", 14+9, 4, 20, "pass")...)
	program = append(program, header("six", 14+6, 41, 40, "pass")...)
	program = append(program, asm.Mov.Imm(asm.R0, 0).WithSymbol("pass"), asm.Return())
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: program})
	if err != nil {
		tb.Fatalf("load decapsulator: %+v", err)
	}
	defer p.Close()
	i.NS.Do(func() {
		clsact := &netlink.GenericQdisc{QdiscType: "clsact", QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: i.Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
		}}
		filter := &netlink.BpfFilter{Fd: p.FD(), Name: "decap", DirectAction: true, FilterAttrs: netlink.FilterAttrs{
			LinkIndex: i.Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1,
		}}
		err = errors.Join(netlink.QdiscAdd(clsact), netlink.FilterAdd(filter))
	})
	if err != nil {
		tb.Fatalf("attach decapsulator: %v", err)
	}
}

// directLab is one segment: a client, a load balancer and an endpoint that has the VIPs on its
// loopback and answers the client past the load balancer.
func newDirectLab(t *testing.T, tunnel Tunnel, hook string, mtu int) (*bpftest.NS, *Dataplane) {
	t.Helper()
	bpftest.RequirePrivilege(t)
	client, lb, server, sw := host(t), host(t), host(t), host(t)
	segment := &segment{lab: &lab{}, ns: sw, name: "port"}
	plug := func(ns *bpftest.NS, four, six string, mtu int) bpftest.Iface {
		i := segment.plug(ns, "eth1", four+"/24")
		i.AddressSix(six + "/64")
		i.SetMTU(mtu)
		segment.ports[len(segment.ports)-1].SetMTU(mtu)
		return i
	}
	plug(client, "10.9.0.5", clientSix.String(), 1500)
	in := plug(lb, "10.9.0.1", "fd00:9::1", mtu)
	end := plug(server, "10.9.0.21", "fd00:9::21", mtu)
	sw.Bridge("br", segment.ports...)
	in.Address(vip.String() + "/32")
	in.AddressSix(vipSix.String() + "/128")
	server.Do(func() {
		server.Sysctl("net/ipv4/conf/all/arp_ignore", "1") // the VIP is the load balancer's to answer for
		server.Sysctl("net/ipv4/conf/all/arp_announce", "2")
		server.Sysctl("net/ipv4/conf/all/rp_filter", "0")
		server.Sysctl("net/ipv6/conf/eth1/mtu", "1500") // the room above is for tunnels
	})
	end.Route("10.9.0.5/32", "", 1500) // likewise
	lo := server.Lookup("lo")
	lo.Address(vip.String() + "/32")
	lo.AddressSix(vipSix.String() + "/128")
	if tunnel == TunnelIPIP {
		decapsulator(t, end)
	}
	d := openTest(t, lb, Options{PinDir: bpftest.PinDir(t), Interfaces: []string{"eth1"}, MaxFlows: 1024, MaxHalfOpen: 1024, Hook: hook})
	var services []Service
	add := func(address netip.Addr, protocol uint8, endpoint, source string) {
		e := Endpoint{Addr: netip.AddrPortFrom(netip.MustParseAddr(endpoint), 80), Weight: 1}
		if tunnel == TunnelIPIP {
			e.Sources = []netip.Addr{netip.MustParseAddr(source)}
		}
		at := netip.AddrPortFrom(address, 80)
		services = append(services, Service{
			ID: uint32(len(services) + 1), VIP: at, Protocol: protocol, Mode: ModeDSR, Tunnel: tunnel, Algorithm: AlgorithmRR, Endpoints: []Endpoint{e},
		})
		if protocol == protoTCP {
			echoOn(t, server, at)
		} else {
			echoDatagrams(t, server, at)
		}
	}
	for _, protocol := range []uint8{protoTCP, protoUDP} {
		add(vip, protocol, "10.9.0.21", "10.9.0.1")
		add(vipSix, protocol, "fd00:9::21", "fd00:9::1")
	}
	if err := d.Sync(context.Background(), Desired{VIPs: []netip.Addr{vip, vipSix}, Services: numbered(services...)}); err != nil {
		t.Fatal(err)
	}
	runDataplane(t, d)
	return client, d
}

func TestRealTrafficArrivesWholeByDirectReturn(t *testing.T) {
	for i, row := range []struct {
		name   string
		tunnel Tunnel
		hook   string
	}{
		{"MAC address", TunnelL2, HookAuto},
		{"tunnel", TunnelIPIP, HookAuto},
		{"tunnel clsact", TunnelIPIP, HookClsact},
	} {
		if testing.Short() && i > 1 {
			break
		}
		t.Run(row.name, func(t *testing.T) {
			client, d := newDirectLab(t, row.tunnel, row.hook, 1600)
			for _, address := range []netip.Addr{vip, vipSix} {
				c, err := client.Dial(&net.Dialer{Timeout: 10 * time.Second}, "tcp", netip.AddrPortFrom(address, 80).String())
				if err != nil {
					t.Fatalf("%v, drops %v", err, d.Stats().Drops)
				}
				start := time.Now()
				if err := transfer(c, crossBulk, nil); err != nil {
					t.Fatalf("%s: %v\n%+v", address, err, d.Stats())
				}
				t.Logf("%s: %.2f Gbit/s each way", address, crossBulk*8/time.Since(start).Seconds()/1e9)
				u, err := client.Dial(&net.Dialer{}, "udp", netip.AddrPortFrom(address, 80).String())
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "datagram", func() error {
					if err := ask(u, bytes.Repeat([]byte("pontoon"), 500)); err != nil {
						return fmt.Errorf("%w\n%+v", err, d.Stats())
					}
					return nil
				})
			}
			for reason, n := range d.Stats().Drops {
				if n > 0 {
					t.Errorf("%d drops for %s", n, reason)
				}
			}
			if n := d.Stats().Counters["encapsulated"]; (n > 0) != (row.tunnel == TunnelIPIP) {
				t.Errorf("%d packets encapsulated", n)
			}
		})
	}
}

// ask sends a message and demands it back.
func ask(c net.Conn, message []byte) error {
	if _, err := c.Write(message); err != nil {
		return err
	}
	_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	answer := make([]byte, 1<<16)
	n, err := c.Read(answer)
	if err == nil && !bytes.Equal(answer[:n], message) {
		err = fmt.Errorf("answer of %d bytes differs", n)
	}
	return err
}
