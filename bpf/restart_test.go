package bpf

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
)

// A connection is in use while the data plane is closed, or left behind as by SIGKILL, and opened again.
func TestRestartDoesNotDisturbTraffic(t *testing.T) {
	for _, hook := range []string{HookAuto, HookClsact, HookXDP} {
		for _, crash := range []bool{false, true} {
			t.Run(hook+map[bool]string{false: " close", true: " crash"}[crash], func(t *testing.T) {
				l := newLab(t, false, 1)
				if hook == HookXDP {
					l.forXDP()
				}
				l.serve()
				pins := bpftest.PinDir(t)
				open := func(slot uint8) *Dataplane {
					return l.open(0, func(o *Options) { o.PinDir, o.Hook = pins, hook })
				}
				first := open(0)
				if first.Adopted() {
					t.Error("nothing was there, yet adopted")
				}
				stop := runDataplane(t, first)
				l.sync(first, ModeFullNAT, protoTCP)
				c := l.dial()
				talk := converse(c)
				talk.goOn(t)
				stop()
				if !crash {
					if err := first.Close(); err != nil {
						t.Error(err)
					}
				}
				second := open(0)
				if !second.Adopted() {
					t.Error("not adopted")
				}
				runDataplane(t, second)
				l.sync(second, ModeFullNAT, protoTCP)
				talk.goOn(t)
				longest, err := talk.stop()
				if err != nil {
					t.Fatalf("%v\n%+v", err, second.Stats())
				}
				// A quiet machine shows about 10 ms; the bound allows for a busy one.
				if t.Logf("longest gap %s", longest); longest > time.Second {
					t.Errorf("longest gap %s", longest)
				}
				for reason, n := range second.Stats().Drops {
					if n > 0 {
						t.Errorf("%d packets dropped: %s", n, reason)
					}
				}
				if other := l.dial(); transfer(other, 1<<20, nil) != nil {
					t.Error("a new connection fails")
				}
			})
		}
	}
}

func TestReopenedDataplaneKnowsItsTables(t *testing.T) {
	b := newBench(t, nil)
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Algorithm = AlgorithmMaglev
	b.sync(s)
	before := b.tables
	again := openTest(t, b.ns, b.opts)
	if len(again.tables.services) != 1 || len(again.tables.endpoints) != 2 {
		t.Fatalf("found %d services, %d endpoints", len(again.tables.services), len(again.tables.endpoints))
	}
	for key, entry := range before.services {
		if again.tables.services[key].value != entry.value {
			t.Errorf("%+v became %+v", entry.value, again.tables.services[key].value)
		}
	}
	b.Dataplane = again
	b.sync(s)
	if again.tables.services[serviceKey(s)].value != before.services[serviceKey(s)].value {
		t.Error("a sync that wants what is there wrote a new table")
	}
}

func TestOpenNamesWhatDiffersInPinnedMaps(t *testing.T) {
	b := newBench(t, nil)
	_ = b.Close()
	path := filepath.Join(b.opts.PinDir, mapFolder, pontoonMapFlows)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 40, ValueSize: 56, MaxEntries: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(path); err != nil {
		t.Fatal(err)
	}
	b.ns.Do(func() { _, err = Open(b.opts) })
	if err == nil || !strings.Contains(err.Error(), "flows: value size is 56, need 64") {
		t.Errorf("error is %v", err)
	}
}

func TestOpenExplainsMissingFileSystem(t *testing.T) {
	bpftest.RequirePrivilege(t)
	_, err := Open(Options{PinDir: filepath.Join(t.TempDir(), "pins")})
	if err == nil || !strings.Contains(err.Error(), "mount -t bpf") {
		t.Errorf("error is %v", err)
	}
}

func TestInterfaceThatComesBackIsAttachedAgain(t *testing.T) {
	for _, hook := range []string{HookAuto, HookClsact, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Hook = hook })
			used := b.Interfaces()["eth1"].Hook
			b.ns.Do(func() {
				link, err := netlink.LinkByName("eth1")
				if err == nil {
					err = netlink.LinkDel(link)
				}
				if err != nil {
					t.Fatal(err)
				}
				b.hooks.ensure()
			})
			if got := b.Interfaces()["eth1"].Reason; !strings.Contains(got, "find interface eth1") {
				t.Errorf("gone, yet reported as %q", got)
			}
			bpftest.Veth(b.ns, "eth1", bpftest.NewNS(t), "new")
			b.ns.Do(func() { b.hooks.ensure() })
			if got := b.Interfaces()["eth1"].Hook; got != used {
				t.Errorf("back, yet reported as %q", got)
			}
		})
	}
}

func TestHookCanBeChangedInFlight(t *testing.T) {
	b := newBench(t, nil)
	for _, hook := range []string{HookClsact, HookXDP, HookXDPGeneric, HookAuto, HookXDPGeneric, HookXDP, HookClsact} {
		_ = b.Close()
		b.opts.Hook = hook
		b.Dataplane = openTest(t, b.ns, b.opts)
		links, err := os.ReadDir(filepath.Join(b.opts.PinDir, linkFolder))
		if err != nil {
			t.Fatal(err)
		}
		var filter netlink.Filter
		var mode uint32
		b.ns.Do(func() {
			eth1, lerr := netlink.LinkByName("eth1")
			if err = lerr; err == nil {
				if x := eth1.Attrs().Xdp; x != nil && x.Attached {
					mode = x.AttachMode
				}
				filter, err = findFilter(b.hooks.nl, eth1)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		clsact := strings.HasSuffix(b.Interfaces()["eth1"].Hook, usedClsact)
		if wantXDP := map[string]uint32{HookXDP: xdpAttachedDriver, HookXDPGeneric: xdpAttachedGeneric}[hook]; mode != wantXDP {
			t.Errorf("%s: XDP mode %d, want %d", hook, mode, wantXDP)
		}
		if linked := !clsact || mode != 0; (filter != nil) != clsact || (len(links) > 0) != linked {
			t.Errorf("%s: filter %v, %d links", hook, filter, len(links))
		}
	}
}

func TestRunEndsWithItsContextAndLeavesNoGoroutine(t *testing.T) {
	b := newBench(t, nil)
	before := runtime.NumGoroutine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "goroutines", func() error {
		if n := runtime.NumGoroutine(); n > before {
			return errors.New("more than before")
		}
		return nil
	})
}

func TestRemoveLeavesNothing(t *testing.T) {
	for _, hook := range []string{HookAuto, HookClsact, HookXDP} {
		b := newBench(t, func(o *Options) { o.Hook = hook })
		var err error
		b.ns.Do(func() { err = Remove(b.opts.PinDir, b.opts.Interfaces) })
		if err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(b.opts.PinDir); !os.IsNotExist(err) {
			t.Errorf("pins: %v", err)
		}
		// A packet to the VIP is now the host's business alone.
		b.ns.Do(func() {
			eth1, lerr := netlink.LinkByName("eth1")
			if lerr != nil {
				t.Fatal(lerr)
			}
			if filter, err := findFilter(b.hooks.nl, eth1); filter != nil || err != nil {
				t.Errorf("filter %v, %v", filter, err)
			}
			if eth1.Attrs().Index == 0 {
				t.Error("no index")
			}
			if x := eth1.Attrs().Xdp; x != nil && x.Attached {
				t.Errorf("XDP program %d", x.ProgId)
			}
		})
	}
}

func TestDesiredReportsAllErrorsAtOnce(t *testing.T) {
	err := Desired{
		VIPs: []netip.Addr{{}},
		Services: []Service{
			{ID: 1, VIP: vipPort, Protocol: 99, Mode: ModeFullNAT, Algorithm: AlgorithmRR},
			{ID: 1, VIP: vipPort, Protocol: 6, Mode: 9, Algorithm: 9, Endpoints: []Endpoint{{}}},
		},
	}.Validate()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"vip is no address", "protocol 99", "id 1 is there twice", "mode 9", "algorithm 9", "endpoint"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("nothing about %q in %v", part, err)
		}
	}
}
