package bpf

import (
	"errors"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// attachedTo counts this data plane's programs on an interface.
func attachedTo(t *testing.T, b *bench, i bpftest.Iface) int {
	t.Helper()
	n := 0
	b.ns.Do(func() {
		l, err := b.hooks.nl.LinkByName(i.Name)
		if err != nil {
			t.Fatal(err)
		}
		filter, err := findFilter(b.hooks.nl, l)
		if err != nil {
			t.Fatal(err)
		}
		if filter != nil {
			n++
		}
		n += tcxPrograms(t, l)
		if x := l.Attrs().Xdp; x != nil && x.Attached && b.opts.Hook != HookXDP {
			t.Errorf("%s has XDP program %d", i.Name, x.ProgId)
		}
	})
	return n
}

func TestInterfaceTakenOffTheListIsDetached(t *testing.T) {
	for _, hook := range []string{HookAuto, HookClsact, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Hook = hook })
			_ = b.Close()
			opts := b.opts
			opts.Interfaces = []string{"eth1"}
			b.Dataplane = openTest(t, b.ns, opts)
			if n := attachedTo(t, b, b.in); n != 1 {
				t.Errorf("%d programs on the interface that stays", n)
			}
			if n := attachedTo(t, b, b.out); n != 0 {
				t.Errorf("%d programs on the interface that was taken off the list", n)
			}
		})
	}
}

func TestVLANInterfaceCanBeAttachedTo(t *testing.T) {
	bpftest.RequirePrivilege(t)
	ns, peer := bpftest.NewNS(t), bpftest.NewNS(t)
	bpftest.Veth(ns, "eth1.100", peer, "far")
	opts := Options{PinDir: bpftest.PinDir(t), Interfaces: []string{"eth1.100"}, MaxFlows: 64, MaxHalfOpen: 64}
	for range 2 {
		d := openTest(t, ns, opts)
		if got := d.Interfaces()["eth1.100"].Hook; got != usedTCX && got != usedClsact {
			t.Fatal(got)
		}
		_ = d.Close()
	}
}

// Two data planes in one namespace, as a mistake or a migration: each looks after its own.
func TestForeignFilterOnAnotherInterfaceStays(t *testing.T) {
	b := newBench(t, func(o *Options) { o.Hook, o.Interfaces = HookClsact, []string{"eth2"} })
	other := b.opts
	other.PinDir, other.Interfaces = bpftest.PinDir(t), []string{"eth1"}
	openTest(t, b.ns, other)
	if n := attachedTo(t, b, b.out); n != 1 {
		t.Errorf("%d programs: the other data plane's was removed", n)
	}
}

func tcxPrograms(t *testing.T, l netlink.Link) int {
	t.Helper()
	result, err := link.QueryPrograms(link.QueryOptions{Target: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, unix.EINVAL) {
		return 0 // no TCX before 6.6
	}
	if err != nil {
		t.Fatal(err)
	}
	return len(result.Programs)
}
