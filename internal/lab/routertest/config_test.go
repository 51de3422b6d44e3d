package routertest

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/internal/lab"
)

func TestPeersFollowTheNumberOfNodes(t *testing.T) {
	for _, kind := range Kinds() {
		for _, form := range Forms() {
			text, err := Documented(kind, form)
			if err != nil {
				t.Fatal(err)
			}
			if got := peers(text, 3); got != text {
				t.Errorf("%s %s is not for three nodes:\n%s", kind, form, cmp.Diff(text, got))
			}
			for nodes, want := range map[int][2]string{1: {"90.11", "90.12"}, 2: {"90.12", "90.13"}, 5: {"90.15", "90.16"}} {
				if got := peers(text, nodes); !strings.Contains(got, want[0]) || strings.Contains(got, want[1]) {
					t.Errorf("%s %s for %d nodes:\n%s", kind, form, nodes, got)
				}
			}
		}
	}
}

func TestEveryOptionFindsItsLine(t *testing.T) {
	for _, kind := range Kinds() {
		for _, form := range Forms() {
			for _, tc := range []struct {
				o        Options
				yes, not string
			}{
				{Options{}, "", map[Kind]string{BIRD: "bfd on", FRR: "bfd profile pontoon"}[kind]},
				{Options{BFD: 300 * time.Millisecond}, "300", " 50"},
				{Options{BFD: 50 * time.Millisecond, Password: "secret"}, "secret", ""},
				{Options{BFD: 50 * time.Millisecond, NoGracefulRestart: true}, map[Kind]string{BIRD: "restart off", FRR: "restart-disable"}[kind], ""},
				{Options{BFD: 50 * time.Millisecond, IBGP: true}, "64512", "65000"},
			} {
				tc.o.Form = form
				text, err := renderFor(kind, netip.MustParseAddr("192.168.90.2"), 3, tc.o)
				if err != nil {
					t.Errorf("%s %s: %v", kind, form, err)
					continue
				}
				if !strings.Contains(text, tc.yes) || tc.not != "" && strings.Contains(text, tc.not) || !strings.Contains(text, "id 192.168.90.2") {
					t.Errorf("%s %+v: want %q and no %q in\n%s", kind, tc.o, tc.yes, tc.not, text)
				}
			}
		}
	}
}

// With the documented timers, on the documented router, what runs is what is documented.
func TestWhatRunsIsWhatIsDocumented(t *testing.T) {
	for _, kind := range Kinds() {
		for _, form := range Forms() {
			want, err := Documented(kind, form)
			if err != nil {
				t.Fatal(err)
			}
			got, err := renderFor(kind, netip.MustParseAddr("192.168.90.1"), 3, Options{Form: form, BFD: 50 * time.Millisecond})
			if err != nil || got != want {
				t.Errorf("%s %s: %v\n%s", kind, form, err, cmp.Diff(want, got))
			}
		}
	}
}

func TestAnswersAreRead(t *testing.T) {
	first, second := netip.MustParseAddr("192.168.90.11"), netip.MustParseAddr("192.168.90.12")
	bird := `BIRD 2.0.12 ready.
Table master4:
198.18.0.1/32        unicast [lb1 16:00:01.123] * (100) [AS64512i]
	via 192.168.90.11 on eth2
	Type: BGP univ
	BGP.origin: IGP
	BGP.as_path: 64512
	BGP.next_hop: 192.168.90.11
	BGP.med: 10
	BGP.local_pref: 100
	BGP.community: (65535,0)
                     unicast [lb2 16:00:01.100 from 192.168.90.12] (100s) [AS64512i]
	via 192.168.90.100 on eth2
	Type: BGP univ
	BGP.as_path: 64512 64512
	BGP.next_hop: 192.168.90.100 fe80::1
	BGP.med: 20
	BGP.local_pref: 100
`
	got, err := parseBIRD(bird)
	want := []Path{
		{From: first, NextHop: first, MED: 10, LocalPref: 100, ASPath: "64512", Communities: "(65535,0)", Best: true},
		{From: second, NextHop: lab.IPv4.NextHopVIP(), MED: 20, LocalPref: 100, ASPath: "64512 64512", Stale: true},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("BIRD: %v\n%s", err, diff)
	}
	frr := `{"prefix":"198.18.0.1/32","paths":[{"aspath":{"string":"64512"},"origin":"IGP","metric":10,"valid":true,
	 "community":{"string":"65535:0"},"bestpath":{"overall":true},"peer":{"peerId":"192.168.90.11"},
	 "nexthops":[{"ip":"192.168.90.11","afi":"ipv4"}]},
	 {"aspath":{"string":"64512 64512"},"metric":20,"stale":true,"peer":{"peerId":"192.168.90.12"},"nexthops":[{"ip":"fe80::1","scope":"link-local"},{"ip":"192.168.90.100"}]}]}`
	want[0].LocalPref, want[1].LocalPref, want[0].Communities = 0, 0, "65535:0"
	got, err = parseFRR(frr)
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Errorf("FRR: %v\n%s", err, diff)
	}
}
