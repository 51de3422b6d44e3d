package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func addrs(s ...string) []netip.Addr {
	out := make([]netip.Addr, len(s))
	for i, a := range s {
		out[i] = netip.MustParseAddr(a)
	}
	return out
}

func on(link string, s ...string) []Address {
	var out []Address
	for _, a := range addrs(s...) {
		out = append(out, Address{Addr: a, Link: link})
	}
	return out
}

// parseHave reads "ADDR/BITS LINK [label|proto]".
func parseHave(t *testing.T, lines []string, indexes map[string]int) []ifaddr {
	t.Helper()
	var out []ifaddr
	for _, l := range lines {
		f := strings.Fields(l)
		p := netip.MustParsePrefix(f[0])
		a := ifaddr{addr: p.Addr(), bits: p.Bits(), link: f[1], index: indexes[f[1]]}
		for _, mark := range f[2:] {
			switch mark {
			case "label":
				a.label = labelFor(f[1])
			case "proto":
				a.proto = addrProto
			case "dadfailed":
				a.flags |= unix.IFA_F_DADFAILED
			}
		}
		out = append(out, a)
	}
	return out
}

func TestPlanHoldsExactlyWhatIsWanted(t *testing.T) {
	names := map[int]string{1: "lo", 2: "eth0", 3: "eth1"}
	indexes := map[string]int{"lo": 1, "eth0": 2, "eth1": 3}
	for _, tc := range []struct {
		name        string
		have        []string
		want        []Address
		managed     []netip.Addr
		remove, add []Address
		err         string // substring; "" for none
	}{
		{name: "new", want: on("eth0", "10.0.0.9"), add: on("eth0", "10.0.0.9")},
		{name: "held", have: []string{"10.0.0.9/32 eth0 proto"}, want: on("eth0", "10.0.0.9")},
		{name: "held without a mark", have: []string{"10.0.0.9/32 eth0"}, want: on("eth0", "10.0.0.9")},
		{
			name: "on the wrong link", have: []string{"10.0.0.9/32 eth1 proto"}, want: on("eth0", "10.0.0.9"),
			remove: on("eth1", "10.0.0.9"), add: on("eth0", "10.0.0.9"),
		},
		{name: "marked by proto, unknown now", have: []string{"10.0.0.9/32 eth0 proto"}, remove: on("eth0", "10.0.0.9")},
		{name: "marked by label, unknown now", have: []string{"10.0.0.9/32 eth0 label"}, remove: on("eth0", "10.0.0.9")},
		{name: "managed, unmarked", have: []string{"10.0.0.9/32 eth0"}, managed: addrs("10.0.0.9"), remove: on("eth0", "10.0.0.9")},
		{name: "someone else's /32", have: []string{"10.0.0.9/32 eth0"}, managed: addrs("10.0.0.8")},
		{name: "subnet address with our mark is not ours", have: []string{"10.0.0.9/24 eth0 label proto"}},
		{
			name: "operator holds a VIP", have: []string{"10.0.0.9/24 eth0"}, managed: addrs("10.0.0.9"),
			err: "address 10.0.0.9/24 on eth0: set by the operator",
		},
		{
			name: "operator holds a wanted VIP, others go on", have: []string{"10.0.0.9/24 eth0"},
			want: on("eth0", "10.0.0.9", "10.0.0.8"), add: on("eth0", "10.0.0.8"), err: "set by the operator",
		},
		{
			name: "missing link, others go on", want: append(on("eth7", "10.0.0.9"), on("eth0", "10.0.0.8")...),
			add: on("eth0", "10.0.0.8"), err: `interface "eth7": no such interface (there are: eth0, eth1, lo)`,
		},
		{name: "two links", want: append(on("eth0", "10.0.0.9"), on("eth1", "10.0.0.9")...), add: on("eth0", "10.0.0.9"), err: "wanted on eth0 and on eth1"},
		{name: "twice the same", want: on("eth0", "10.0.0.9", "10.0.0.9"), add: on("eth0", "10.0.0.9")},
		{name: "mapped", want: on("eth0", "::ffff:10.0.0.9"), have: []string{"10.0.0.9/32 eth0"}},
		{name: "empty", want: []Address{{Link: "eth0"}}, err: "the address is empty"},
		{name: "IPv6", have: []string{"2001:db8::1/64 eth0", "2001:db8::9/128 eth1 proto"}, want: on("eth0", "2001:db8::9"), remove: on("eth1", "2001:db8::9"), add: on("eth0", "2001:db8::9")},
		{name: "failed duplicate detection", have: []string{"2001:db8::9/128 eth0 dadfailed"}, want: on("eth0", "2001:db8::9"), remove: on("eth0", "2001:db8::9"), add: on("eth0", "2001:db8::9")},
		{name: "link gone between dumps", have: []string{"10.0.0.9/32 eth9"}, managed: addrs("10.0.0.9"), remove: on("eth9", "10.0.0.9")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			remove, add, err := planAddresses(parseHave(t, tc.have, indexes), names, tc.want, addressSet(tc.want, tc.managed))
			if diff := cmp.Diff(tc.remove, plain(remove), sameAddr); diff != "" {
				t.Errorf("removals (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tc.add, plain(add), sameAddr); diff != "" {
				t.Errorf("additions (-want +got):\n%s", diff)
			}
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("error %v, want %q", err, tc.err)
			}
		})
	}
}

func plain(in []ifaddr) []Address {
	var out []Address
	for _, a := range in {
		out = append(out, a.address())
	}
	return out
}

func TestLabelFitsOrIsLeftOut(t *testing.T) {
	for link, want := range map[string]string{"eth0": "eth0:pt", "enp94s0f0np0": "enp94s0f0np0:pt", "enp94s0f0np01": ""} {
		if got := labelFor(link); got != want {
			t.Errorf("label for %s: %q, want %q", link, got, want)
		}
	}
}

// held lists Pontoon-looking addresses as the kernel has them.
func held(t *testing.T, h *Host) []string {
	t.Helper()
	names, err := h.linkNames()
	must(t, err)
	all, err := h.dumpAddresses(names)
	must(t, err)
	var out []string
	for _, a := range all {
		if a.link != "lo" && (a.addr.Is4() || a.scope == unix.RT_SCOPE_UNIVERSE) {
			out = append(out, fmt.Sprintf("%s %s", a.prefix(), a.link))
		}
	}
	slices.Sort(out)
	return out
}

func syncTo(t *testing.T, h *Host, want []Address, managed []netip.Addr, added, removed int) {
	t.Helper()
	a, r, err := h.SyncAddresses(want, managed)
	must(t, err)
	if len(a) != added || len(r) != removed {
		t.Fatalf("added %v and removed %v, want %d and %d", a, r, added, removed)
	}
}

func TestAddressRemovedByHandComesBackAndStrayGoes(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "10.0.0.1/24")
	h := newHost(t)
	managed := addrs("10.0.0.9", "10.0.0.8", "2001:db8::9")
	want := on("ptv0", "10.0.0.9", "2001:db8::9")
	syncTo(t, h, want, managed, 2, 0)
	syncTo(t, h, want, managed, 0, 0)
	if diff := cmp.Diff([]string{"10.0.0.1/24 ptv0", "10.0.0.9/32 ptv0", "2001:db8::9/128 ptv0"}, held(t, h)); diff != "" {
		t.Fatal(diff)
	}

	gone, err := netlink.ParseAddr("10.0.0.9/32")
	must(t, err)
	must(t, netlink.AddrDel(link(t, "ptv0"), gone))
	operatorAdds(t, "ptv1", "10.0.0.8/32") // a VIP of another node, left behind by hand
	syncTo(t, h, want, managed, 1, 1)

	syncTo(t, h, nil, managed, 0, 2)
	if diff := cmp.Diff([]string{"10.0.0.1/24 ptv0"}, held(t, h)); diff != "" {
		t.Fatal(diff)
	}
}

func TestAddressIsSetForFailover(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	syncTo(t, h, on("ptv0", "10.0.0.9", "2001:db8::9"), nil, 2, 0)
	all, err := netlink.AddrList(link(t, "ptv0"), netlink.FAMILY_ALL)
	must(t, err)
	found := 0
	for _, a := range all {
		switch a.IPNet.String() {
		case "10.0.0.9/32":
			found++
			if a.Label != "ptv0:pt" || a.Scope != unix.RT_SCOPE_UNIVERSE || a.Flags&unix.IFA_F_NOPREFIXROUTE == 0 {
				t.Errorf("IPv4: %+v", a)
			}
		case "2001:db8::9/128":
			found++
			if a.Flags&unix.IFA_F_NODAD == 0 || a.Flags&unix.IFA_F_TENTATIVE != 0 || a.Flags&unix.IFA_F_NOPREFIXROUTE == 0 {
				t.Errorf("IPv6: %+v", a)
			}
		}
	}
	if found != 2 {
		t.Errorf("found %d of 2 in %v", found, all)
	}
}

func TestRestartedHostRecognisesItsAddresses(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	addVeth(t, "ptlongestname00", "ptlongpeername0") // no room for a label
	operatorAdds(t, "ptv0", "10.0.0.7/32")
	before := newHost(t)
	syncTo(t, before, append(on("ptv0", "10.0.0.9"), on("ptlongestname00", "10.1.0.9", "2001:db8::9")...), nil, 3, 0)
	before.Close()

	// Every VIP was deleted while the daemon was away: nothing is managed any more.
	syncTo(t, newHost(t), nil, nil, 0, 3)
	if diff := cmp.Diff([]string{"10.0.0.7/32 ptv0"}, held(t, newHost(t))); diff != "" {
		t.Fatal(diff)
	}
}

// On kernels before 5.18 only the label is kept.
func TestLabelAloneMarksAnAddress(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	a, err := netlink.ParseAddr("10.0.0.9/32 ptv0:pt")
	must(t, err)
	must(t, netlink.AddrAdd(link(t, "ptv0"), a))
	syncTo(t, newHost(t), nil, nil, 0, 1)
}

func TestOperatorAddressIsUntouched(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	operatorAdds(t, "ptv0", "10.0.0.9/24")
	operatorAdds(t, "ptv0", "2001:db8::9/64")
	h := newHost(t)
	before := held(t, h)
	for _, want := range [][]Address{nil, on("ptv0", "10.0.0.9", "2001:db8::9"), on("ptv1", "10.0.0.9")} {
		added, removed, err := h.SyncAddresses(want, addrs("10.0.0.9", "2001:db8::9"))
		if !errors.Is(err, ErrForeignAddress) || len(added)+len(removed) > 0 {
			t.Errorf("want %v: added %v, removed %v, error %v", want, added, removed, err)
		}
	}
	if diff := cmp.Diff(before, held(t, h)); diff != "" {
		t.Error(diff)
	}
}

func TestHundredVIPsInOnePass(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	h := newHost(t)
	var want []Address
	for i := range 100 {
		want = append(want, Address{Addr: netip.AddrFrom4([4]byte{10, 0, 1, byte(i)}), Link: "ptv0"})
	}
	for _, step := range []struct {
		name           string
		want           []Address
		added, removed int
	}{{"add", want, 100, 0}, {"nothing to do", want, 0, 0}, {"remove", nil, 0, 100}} {
		start := time.Now()
		syncTo(t, h, step.want, nil, step.added, step.removed)
		t.Logf("%s: %v", step.name, time.Since(start))
	}
}

func TestParseIfaddrNeverPanics(t *testing.T) {
	good := []byte{unix.AF_INET, 32, 0, 0, 2, 0, 0, 0, 8, 0, unix.IFA_LOCAL, 0, 10, 0, 0, 9}
	if a, ok := parseIfaddr(good); !ok || a.prefix() != netip.MustParsePrefix("10.0.0.9/32") || a.index != 2 {
		t.Fatalf("got %+v, %v", a, ok)
	}
	for n := range good {
		if a, ok := parseIfaddr(good[:n]); ok {
			t.Errorf("%d bytes parsed to %+v", n, a)
		}
	}
}
