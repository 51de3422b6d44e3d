package host

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"pontoon/internal/roottest"
)

// fakeConf makes a tree like /proc/sys with every setting 0 but those given.
func fakeConf(t *testing.T, links []string, set map[string]int) *Host {
	t.Helper()
	h := &Host{logger: slog.New(slog.DiscardHandler), procSys: t.TempDir()}
	for _, l := range links {
		must(t, os.MkdirAll(filepath.Join(h.confDir(ipv4), l), 0o755))
		for _, p := range perLink {
			must(t, os.WriteFile(filepath.Join(h.confDir(ipv4), l, p.key), fmt.Appendf(nil, "%d\n", set[l+"."+p.key]), 0o644))
		}
	}
	return h
}

func values(t *testing.T, h *Host) map[string]int {
	t.Helper()
	c, err := h.readConf(ipv4, keysOfIPv4())
	must(t, err)
	out := make(map[string]int)
	for l, keys := range c {
		for k, v := range keys {
			if v != 0 {
				out[l+"."+k] = v
			}
		}
	}
	return out
}

var prepared = map[string]int{"eth0.forwarding": 1, "eth0.accept_local": 1, "eth0.arp_ignore": 1, "eth0.arp_announce": 2}

func with(base map[string]int, more map[string]int) map[string]int {
	out := make(map[string]int)
	for _, m := range []map[string]int{base, more} {
		for k, v := range m {
			out[k] = v
		}
	}
	return out
}

func TestPrepareChangesNothingForOtherInterfaces(t *testing.T) {
	for _, tc := range []struct {
		name          string
		before, after map[string]int
	}{
		{"all zero", nil, prepared},
		{"done already", prepared, prepared},
		{
			"strict everywhere",
			map[string]int{"all.rp_filter": 1, "default.rp_filter": 1, "eth0.rp_filter": 1, "eth9.rp_filter": 1},
			with(prepared, map[string]int{"default.rp_filter": 1, "lo.rp_filter": 1, "eth9.rp_filter": 1}),
		},
		{
			"strict through all only",
			map[string]int{"all.rp_filter": 1, "eth9.rp_filter": 2},
			with(prepared, map[string]int{"default.rp_filter": 1, "lo.rp_filter": 1, "eth9.rp_filter": 2}),
		},
		{
			"redirects",
			map[string]int{"all.send_redirects": 1, "default.send_redirects": 1, "eth0.send_redirects": 1},
			with(prepared, map[string]int{"default.send_redirects": 1, "lo.send_redirects": 1, "eth9.send_redirects": 1}),
		},
		{"own filter only", map[string]int{"eth0.rp_filter": 2, "eth9.rp_filter": 2}, with(prepared, map[string]int{"eth9.rp_filter": 2})},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := fakeConf(t, []string{"all", "default", "lo", "eth0", "eth9"}, tc.before)
			before := values(t, h)
			restore, err := h.Prepare([]string{"eth0"})
			must(t, err)
			if diff := cmp.Diff(tc.after, values(t, h)); diff != "" {
				t.Errorf("prepared (-want +got):\n%s", diff)
			}
			must(t, restore())
			if diff := cmp.Diff(before, values(t, h)); diff != "" {
				t.Errorf("restored (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPlanWritesAllLastAndOursAfterDefault(t *testing.T) {
	current := conf{"all": {"rp_filter": 1}, "default": {}, "eth0": {}, "eth9": {}}
	var order []string
	for _, s := range planSettings(current, []string{"eth0"}) {
		if s.key == "rp_filter" {
			order = append(order, s.link)
		}
	}
	if want := []string{"default", "eth9", "eth0", "all"}; !slices.Equal(order, want) {
		t.Errorf("order %v, want %v", order, want)
	}
}

func TestRestoreLeavesWhatSomeoneElseDecided(t *testing.T) {
	h := fakeConf(t, []string{"all", "default", "eth0", "eth1"}, nil)
	restore, err := h.Prepare([]string{"eth0", "eth1"})
	must(t, err)
	must(t, h.writeSetting(ipv4, "eth0", "arp_ignore", 8))
	must(t, os.RemoveAll(filepath.Join(h.confDir(ipv4), "eth1")))
	must(t, restore())
	if diff := cmp.Diff(map[string]int{"eth0.arp_ignore": 8}, values(t, h)); diff != "" {
		t.Error(diff)
	}
}

func TestFailedPrepareUndoesItsWrites(t *testing.T) {
	h := fakeConf(t, []string{"all", "default", "eth0"}, map[string]int{"all.send_redirects": 1, "eth0.send_redirects": 1})
	path := filepath.Join(h.confDir(ipv4), "eth0", "arp_announce")
	must(t, os.Remove(path))
	// A number that not even root may write.
	must(t, os.Symlink("/proc/sys/kernel/random/poolsize", path))
	before := values(t, h)
	restore, err := h.Prepare([]string{"eth0"})
	if restore != nil || err == nil || !strings.Contains(err.Error(), "set net.ipv4.conf.eth0.arp_announce=2 (is ") {
		t.Errorf("got %v", err)
	}
	if diff := cmp.Diff(before, values(t, h)); diff != "" {
		t.Error(diff)
	}
}

func TestPrepareRefusesWhatIsNoInterface(t *testing.T) {
	h := fakeConf(t, []string{"all", "default", "eth0"}, nil)
	for _, name := range []string{"eth7", "all", "default", "", "../conf/eth0"} {
		if _, err := h.Prepare([]string{name}); !errors.Is(err, ErrNoLink) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestPrepareAndRestoreInTheKernel(t *testing.T) {
	roottest.Namespace(t)
	addVeth(t, "ptv0", "ptv1")
	addVeth(t, "ptv2", "ptv3")
	h := newHost(t)
	must(t, h.writeSetting(ipv4, "all", "rp_filter", 1))
	must(t, h.writeSetting(ipv4, "ptv0", "rp_filter", 2))
	before := values(t, h)
	// ptv3 was never set: writing conf/default changes it too.
	restore, err := h.Prepare([]string{"ptv0", "ptv3"})
	must(t, err)
	got := values(t, h)
	want := map[string]int{
		"ptv0.forwarding": 1, "ptv0.accept_local": 1, "ptv0.arp_ignore": 1, "ptv0.arp_announce": 2,
		"ptv0.rp_filter": 0, "all.rp_filter": 0, "ptv0.send_redirects": 0, "all.send_redirects": 0, "all.forwarding": 0,
		"ptv3.rp_filter": 0, "ptv2.rp_filter": 1, "ptv2.forwarding": 0, "ptv2.send_redirects": 1,
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s is %d, want %d", k, got[k], v)
		}
	}
	addVeth(t, "ptv4", "ptv5") // a later interface filters as it would have before
	if later := values(t, h); later["ptv4.rp_filter"] != 1 {
		t.Errorf("later interface: rp_filter %d", later["ptv4.rp_filter"])
	}
	must(t, netlink.LinkDel(link(t, "ptv4")))
	must(t, restore())
	if diff := cmp.Diff(before, values(t, h)); diff != "" {
		t.Errorf("restored (-want +got):\n%s", diff)
	}
}
