package host

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// oldKeys are what kernels before 6.17 have.
var oldKeys = []string{keyForwarding, keyAcceptRA, keyNotify}

// writesFor lists the plan as "LINK.KEY=VALUE".
func writesFor(current conf, links ...string) []string {
	var out []string
	for _, s := range planSettings6(current, links) {
		out = append(out, fmt.Sprintf("%s.%s=%d", s.link, s.key, s.want))
	}
	return out
}

// conf6 makes the settings of interfaces; each has the values of base but for more.
func conf6(base map[string]int, more map[string]map[string]int) conf {
	c := conf{}
	for _, l := range []string{"all", "default", "lo", "eth0", "eth9"} {
		c[l] = with(base, more[l])
	}
	return c
}

func TestPlanForIPv6(t *testing.T) {
	old := map[string]int{keyForwarding: 0, keyAcceptRA: 1, keyNotify: 0}
	single := with(old, map[string]int{keyForceForwarding: 0})
	// Every interface that may have learned routes keeps them.
	away := []string{"eth0.accept_ra=2", "eth9.accept_ra=2"}
	back := []string{"eth9.accept_ra=1"}
	for _, tc := range []struct {
		name  string
		have  conf
		links []string
		want  [][]string
	}{
		{
			"forwards from one interface", conf6(single, nil),
			[]string{"eth0"},
			[][]string{away, {"eth0.forwarding=1", "eth0.force_forwarding=1"}, back},
		},
		{
			"forwards or not", conf6(old, nil),
			[]string{"eth0"},
			[][]string{away, {"all.forwarding=1", "default.forwarding=0", "eth9.forwarding=0", "lo.forwarding=0"}, back},
		},
		{
			"a router already", conf6(with(old, map[string]int{keyForwarding: 1}), nil),
			[]string{"eth0"},
			nil,
		},
		{
			"listens to no advertisements", conf6(with(single, map[string]int{keyAcceptRA: 0}), nil),
			[]string{"eth0"},
			[][]string{{"eth0.forwarding=1", "eth0.force_forwarding=1"}},
		},
		{
			"another interface forwards", conf6(with(old, map[string]int{keyAcceptRA: 2}), map[string]map[string]int{"eth9": {keyForwarding: 1}}),
			[]string{"eth0"},
			[][]string{{"all.forwarding=1", "default.forwarding=0", "lo.forwarding=0"}},
		},
		{
			"announces by itself", conf6(map[string]int{keyForwarding: 1, keyAcceptRA: 1, keyNotify: 0}, map[string]map[string]int{"all": {keyNotify: 1}}),
			[]string{"eth0"},
			[][]string{{"default.ndisc_notify=1", "eth9.ndisc_notify=1", "lo.ndisc_notify=1", "all.ndisc_notify=0"}},
		},
		{"no interface with IPv6", conf6(old, nil), nil, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := writesFor(tc.have, tc.links...)
			if diff := cmp.Diff(slices.Concat(tc.want...), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			after := applied(tc.have, planSettings6(tc.have, tc.links))
			if again := writesFor(after, tc.links...); len(again) > 0 {
				t.Errorf("a second time: %v", again)
			}
		})
	}
}

// applied is what the kernel has after the writes.
func applied(before conf, plan []setting) conf {
	p := planner6{now: conf{}}
	for l, v := range before {
		p.now[l] = with(v, nil)
	}
	for _, s := range plan {
		p.want(s.link, s.key, s.want)
	}
	return p.now
}

func TestMachineWithoutIPv6IsPrepared(t *testing.T) {
	h := fakeConf(t, []string{"all", "default", "eth0"}, nil)
	must(t, h.PrepareIPv6([]string{"eth0"}))
	// IPv6 runs, but not on this interface.
	for _, l := range []string{"all", "default"} {
		must(t, os.MkdirAll(filepath.Join(h.confDir(ipv6), l), 0o755))
		for _, k := range oldKeys {
			must(t, os.WriteFile(filepath.Join(h.confDir(ipv6), l, k), []byte("0\n"), 0o644))
		}
	}
	must(t, h.PrepareIPv6([]string{"eth0"}))
	if v, err := h.readSetting(ipv6, "all", keyForwarding); err != nil || v != 0 {
		t.Errorf("forwarding %d, %v: nothing needs it", v, err)
	}
	for _, bad := range []string{"all", "default", "", "../conf/eth0"} {
		if err := h.PrepareIPv6([]string{bad}); err == nil {
			t.Errorf("%q accepted", bad)
		}
	}
}

// The model of the kernel that the plan is made with must be right, for kernels
// with and without force_forwarding.
func TestPlanForIPv6HoldsInTheKernel(t *testing.T) {
	for name, keys := range map[string][]string{"with": append([]string{keyForceForwarding}, oldKeys...), "without": oldKeys} {
		t.Run(name+" force_forwarding", func(t *testing.T) {
			roottest.Namespace(t)
			addVeth(t, "ptv0", "ptv1")
			addVeth(t, "ptv2", "ptv3")
			h := newHost(t)
			if _, err := h.readSetting(ipv6, "all", keyForceForwarding); err != nil && name == "with" {
				t.Skip("this kernel has no force_forwarding")
			}
			must(t, h.writeSetting(ipv6, "ptv3", keyForwarding, 1))
			must(t, h.writeSetting(ipv6, "all", keyNotify, 1))
			before, err := h.readConf(ipv6, keys)
			must(t, err)
			plan := planSettings6(before, []string{"ptv0"})
			for _, s := range plan {
				must(t, h.set(s))
			}
			after, err := h.readConf(ipv6, keys)
			must(t, err)
			if diff := cmp.Diff(applied(before, plan), after); diff != "" {
				t.Errorf("(-model +kernel):\n%s", diff)
			}
			if after["ptv0"][keyForwarding] != 1 || after["ptv2"][keyForwarding] != 0 || after["ptv3"][keyForwarding] != 1 {
				t.Errorf("got %v", after)
			}
		})
	}
}

// advertise has a router with the link-local address fe80::LAST send an
// advertisement out of the peer's end of a cable.
func advertise(t *testing.T, peer string, last byte) {
	t.Helper()
	src := net.IP{0: 0xfe, 1: 0x80, 15: last}
	hw := net.HardwareAddr{2, 0, 0, 0, 1, last}
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: src, DstIP: net.ParseIP("ff02::1")}
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(layers.ICMPv6TypeRouterAdvertisement, 0)}
	must(t, icmp.SetNetworkLayerForChecksum(ip))
	buf := gopacket.NewSerializeBuffer()
	must(t, gopacket.SerializeLayers(
		buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true},
		&layers.Ethernet{SrcMAC: hw, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, EthernetType: layers.EthernetTypeIPv6},
		ip, icmp, &layers.ICMPv6RouterAdvertisement{HopLimit: 64, RouterLifetime: 1800},
	))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Sendto(fd, buf.Bytes(), 0, &unix.SockaddrLinklayer{Ifindex: link(t, peer).Attrs().Index}))
}

// defaultRouters are the next hops of the IPv6 default routes on a link.
func defaultRouters(t *testing.T, name string) []string {
	t.Helper()
	routes, err := netlink.RouteList(link(t, name), netlink.FAMILY_V6)
	must(t, err)
	var out []string
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			if r.Gw != nil {
				out = append(out, r.Gw.String())
			}
			for _, hop := range r.MultiPath {
				out = append(out, hop.Gw.String())
			}
		}
	}
	slices.Sort(out)
	return out
}

func TestLearnedDefaultRoutesSurvive(t *testing.T) {
	for name, keys := range map[string][]string{"with": append([]string{keyForceForwarding}, oldKeys...), "without": oldKeys} {
		t.Run(name+" force_forwarding", func(t *testing.T) {
			roottest.Namespace(t)
			addVeth(t, "ptv0", "ptv1") // carries balanced traffic
			addVeth(t, "ptv2", "ptv3") // the way the operator comes in
			h := newHost(t)
			learn := func(name, peer string, last byte, want ...string) {
				t.Helper()
				roottest.Eventually(t, "a default route on "+name, func() bool {
					advertise(t, peer, last)
					return slices.Equal(defaultRouters(t, name), want)
				})
			}
			learn("ptv0", "ptv1", 1, "fe80::1")
			learn("ptv2", "ptv3", 1, "fe80::1")
			current, err := h.readConf(ipv6, keys)
			must(t, err)
			for _, s := range planSettings6(current, []string{"ptv0"}) {
				must(t, h.set(s))
			}
			for _, l := range []string{"ptv0", "ptv2"} {
				if got := defaultRouters(t, l); !slices.Equal(got, []string{"fe80::1"}) {
					t.Errorf("%s has default routes by %v", l, got)
				}
			}
			learn("ptv0", "ptv1", 2, "fe80::1", "fe80::2") // and it goes on learning
			learn("ptv2", "ptv3", 2, "fe80::1", "fe80::2")
		})
	}
}

func TestPrepareIPv6TwiceWritesOnce(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	must(t, h.PrepareIPv6([]string{"ptv0"}))
	keys := oldKeys
	if _, err := h.readSetting(ipv6, "all", keyForceForwarding); err == nil {
		keys = append([]string{keyForceForwarding}, oldKeys...)
	}
	current, err := h.readConf(ipv6, keys)
	must(t, err)
	if plan := planSettings6(current, []string{"ptv0"}); len(plan) > 0 {
		t.Errorf("still to write: %+v", plan)
	}
	if current["ptv0"][keyForwarding] != 1 {
		t.Error("the link does not forward")
	}
}
