package bpf

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/vishvananda/netlink"
)

// sets counts the pinned program arrays.
func sets(t *testing.T, opts Options) int {
	t.Helper()
	pins, err := os.ReadDir(filepath.Join(opts.PinDir, programFolder))
	if err != nil {
		t.Fatal(err)
	}
	arrays := 0
	for _, pin := range pins {
		if !strings.Contains(pin.Name(), "%") {
			arrays++
		}
	}
	return arrays
}

// unreadable puts something in the place of a pinned link that cannot be opened as one. The link
// stays attached. The result puts it back.
func unreadable(t *testing.T, d *Dataplane, path string) (mend func()) {
	t.Helper()
	aside := filepath.Join(d.opts.PinDir, "aside")
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(os.Remove(path), os.Rename(aside, path)); err != nil {
			t.Fatal(err)
		}
	}
}

// newClients has some clients that were never seen before ask by UDP; the answers take the slow way
// through the program on the endpoints' side.
func (l *lab) newClients(t *testing.T) error {
	t.Helper()
	for i := range 5 {
		c, err := l.client.Dial(&net.Dialer{}, "udp4", vipPort.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("first")); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Read(make([]byte, 64)); err != nil {
			return fmt.Errorf("client %d: %w", i, err)
		}
	}
	return nil
}

// An interface that cannot be brought to the new set of programs keeps the old one, and that works
// until the last interface is rid of it.
func TestOldProgramsWorkUntilNoInterfaceCarriesThem(t *testing.T) {
	for hook, suffix := range map[string]string{HookAuto: "", HookXDP: xdpSuffix} {
		t.Run(hook, func(t *testing.T) {
			l := newLab(t, false, 1)
			if hook == HookXDP {
				l.forXDP()
			}
			l.echoUDP()
			old := l.open(0, func(o *Options) { o.Hook = hook })
			used := old.Interfaces()["eth2"].Hook
			if !strings.HasSuffix(used, usedTCX) {
				t.Skip("links are pinned on TCX only")
			}
			l.sync(old, ModeFullNAT, protoUDP)
			one := sets(t, old.opts)
			_ = old.Close()
			mend := unreadable(t, old, old.hooks.pin("eth2")+suffix)
			changed := old.opts
			changed.nextHopLife += time.Second // else it would use the programs that are there
			d := l.reopen(changed)
			l.sync(d, ModeFullNAT, protoUDP)
			if got := d.Interfaces()["eth2"]; got.Reason == "" || got.Hook == used {
				t.Errorf("interface with the old programs: %+v", got)
			}
			if n := sets(t, d.opts); n != 2*one {
				t.Errorf("%d pinned sets while two sets are in use, want %d", n, 2*one)
			}
			if err := l.newClients(t); err != nil {
				t.Errorf("%v; drops %v", err, d.Stats().Drops)
			}
			if n := d.Stats().Drops["no_program"]; n != 0 {
				t.Errorf("%d packets found no program", n)
			}
			mend()
			l.lbs[0].Do(d.lookAfter)
			if got := d.Interfaces()["eth2"]; got.Hook != used {
				t.Errorf("after mending: %+v", got)
			}
			if n := sets(t, d.opts); n != one {
				t.Errorf("%d pinned sets when one set is in use, want %d", n, one)
			}
			if err := l.newClients(t); err != nil {
				t.Errorf("%v; drops %v", err, d.Stats().Drops)
			}
		})
	}
}

// The same with the programs of the tracer, when a session ends.
func TestTracingProgramsStayWhereTheyCannotBeReplaced(t *testing.T) {
	b := newBench(t, nil)
	if b.Interfaces()["eth2"].Hook != usedTCX {
		t.Skip("links are pinned on TCX only")
	}
	one := sets(t, b.opts)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started, done := make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := b.Trace(ctx, TraceFilter{Service: 7}, TraceNames{}, func() { close(started) }, func(TraceEvent) error { return nil })
		done <- err
	}()
	<-started
	mend := unreadable(t, b.Dataplane, b.hooks.pin("eth2"))
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	b.lookAfter()
	if n := sets(t, b.opts); n != 2*one {
		t.Errorf("%d pinned sets while an interface carries the tracer's programs, want %d", n, 2*one)
	}
	mend()
	b.lookAfter()
	if n := sets(t, b.opts); n != one {
		t.Errorf("%d pinned sets after mending, want %d", n, one)
	}
}

// A card that comes after the start gets XDP, although no interface wanted it before; so does its
// successor.
func TestCardThatComesLaterGetsXDP(t *testing.T) {
	bpftest.RequirePrivilege(t)
	ns, peer := bpftest.NewNS(t), bpftest.NewNS(t)
	bpftest.Veth(ns, "eth1", peer, "far")
	d := openTest(t, ns, Options{
		PinDir: bpftest.PinDir(t), Interfaces: []string{"eth1", "card"}, MaxFlows: 64, MaxHalfOpen: 64, without: translators(),
	})
	d.hooks.see = func(name string, iface netlink.Link) device {
		seen := d.hooks.look(name, iface)
		if name == "card" {
			seen.bus = "pci"
		}
		return seen
	}
	runDataplane(t, d)
	for i := range 2 {
		card, end := bpftest.Veth(ns, "card", peer, fmt.Sprintf("end%d", i))
		card.ForXDP()
		end.ForXDP()
		d.LinksChanged()
		eventually(t, "XDP on the card", func() error { return wantXDP(d.Interfaces()["card"]) })
		if got := d.Interfaces()["eth1"]; strings.HasPrefix(got.Hook, usedXDP) || !strings.Contains(got.Reason, "virtual interface") {
			t.Errorf("the other interface: %+v", got)
		}
		eventually(t, "the old set to go", func() error {
			if n := sets(t, d.opts); n != 1 {
				return fmt.Errorf("%d pinned sets", n)
			}
			return nil
		})
		ns.Do(func() {
			l, err := netlink.LinkByName("card")
			if err != nil {
				t.Fatal(err)
			}
			if x := l.Attrs().Xdp; x == nil || !x.Attached {
				t.Error("no XDP on it")
			}
			if err := netlink.LinkDel(l); err != nil {
				t.Fatal(err)
			}
		})
		d.LinksChanged()
		eventually(t, "the loss of the card", func() error {
			if got := d.Interfaces()["card"]; got.Hook != "" {
				return fmt.Errorf("%+v", got)
			}
			return nil
		})
	}
}

// A veth that is made anew while traffic waits for it is served again without anybody's doing.
func TestInterfaceMadeAnewIsServedByTheRunningDataPlane(t *testing.T) {
	for _, hook := range []string{HookAuto, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			l := newLab(t, false, 1)
			if hook == HookXDP {
				l.forXDP()
			}
			l.echoUDP()
			d := l.open(0, func(o *Options) { o.Hook = hook })
			runDataplane(t, d)
			l.sync(d, ModeFullNAT, protoUDP)
			if err := l.newClients(t); err != nil {
				t.Fatal(err)
			}
			before := d.Interfaces()["eth1"]
			l.lbs[0].Do(func() {
				iface, err := netlink.LinkByName("eth1")
				if err == nil {
					err = netlink.LinkDel(iface)
				}
				if err != nil {
					t.Fatal(err)
				}
			})
			d.LinksChanged()
			eventually(t, "the loss", func() error {
				if got := d.Interfaces()["eth1"]; got.Hook != "" {
					return fmt.Errorf("%+v", got)
				}
				return nil
			})
			cables := len(l.cables)
			l.front.replug(l.lbs[0], "br-front", "eth1", "10.9.0.1/24")
			l.hold(0)
			if hook == HookXDP {
				for _, end := range l.cables[cables:] {
					end.ForXDP()
				}
			}
			l.client.Lookup("eth1").ForgetNeighbour(vip.String())
			eventually(t, "the same hook", func() error {
				if got := d.Interfaces()["eth1"]; got != before {
					return fmt.Errorf("%+v, was %+v", got, before)
				}
				return nil
			})
			d.FlushNextHops()
			eventually(t, "answers", func() error { return l.newClients(t) })
		})
	}
}

// Before a machine takes an address up, its programs are looked after at once: a kernel without one in front
// resets the connections to what it holds.
func TestReattachPutsBackWhatWasTakenOffBeforeItReturns(t *testing.T) {
	l := newLab(t, false, 1)
	d := l.open(0, nil) // nobody runs it, and so nobody else looks after it
	pin := filepath.Join(d.opts.PinDir, linkFolder, "eth1")
	if err := dropLink(pin); err != nil { // unpinning alone takes it off some time later
		t.Fatal(err)
	}
	d.Reattach()
	if _, err := os.Stat(pin); err != nil {
		t.Errorf("%v; attached: %+v", err, d.Interfaces())
	}
}

func TestInterfaceWithoutEthernetIsRefused(t *testing.T) {
	bpftest.RequirePrivilege(t)
	ns, peer := bpftest.NewNS(t), bpftest.NewNS(t)
	bpftest.Veth(ns, "eth1", peer, "far")
	opts := Options{PinDir: bpftest.PinDir(t), Interfaces: []string{"eth1", "lo", "tun9"}, MaxFlows: 64, MaxHalfOpen: 64, without: translators()}
	t.Cleanup(func() { ns.Do(func() { _ = Remove(opts.PinDir, opts.Interfaces) }) })
	var err error
	ns.Do(func() { _, err = Open(opts) })
	if !errors.Is(err, ErrNotEthernet) || !strings.Contains(err.Error(), "interface lo") || strings.Contains(err.Error(), "interface eth1") {
		t.Fatalf("loopback: %v", err)
	}
	opts.Interfaces = []string{"eth1", "tun9"}
	d := openTest(t, ns, opts)
	ns.Do(func() {
		tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun9"}, Mode: netlink.TUNTAP_MODE_TUN}
		if err := netlink.LinkAdd(tun); err != nil {
			t.Skipf("no tun devices here: %v", err)
		}
	})
	ns.Do(d.lookAfter)
	if got := d.Interfaces()["tun9"]; got.Hook != "" || !strings.Contains(got.Reason, ErrNotEthernet.Error()) {
		t.Errorf("tun: %+v", got)
	}
	if got := d.Interfaces()["eth1"]; got.Hook == "" {
		t.Errorf("the veth beside it: %+v", got)
	}
}
