package bpf

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"pontoon/bpf/bpftest"
	"pontoon/internal/roottest"

	"github.com/vishvananda/netlink"
)

// lab is real hosts: a client, load balancers and two endpoints, joined by bridges, every
// offload as the kernel sets it.
type lab struct {
	tb        testing.TB
	cables    []bpftest.Iface // both ends of each
	client    *bpftest.NS
	lbs       []*bpftest.NS
	front     *segment
	endpoints []*bpftest.NS
	oneLeg    bool
}

// segment plugs interfaces into one bridge.
type segment struct {
	lab   *lab
	ns    *bpftest.NS
	name  string
	ports []bpftest.Iface
}

func (s *segment) plug(host *bpftest.NS, name string, addresses ...string) bpftest.Iface {
	mine, port := bpftest.Veth(host, name, s.ns, fmt.Sprintf("%s%d", s.name, len(s.ports)))
	s.ports = append(s.ports, port)
	s.lab.cables = append(s.lab.cables, mine, port)
	for _, a := range addresses {
		mine.Address(a)
	}
	return mine
}

// replug puts a host's new interface into the segment's bridge, which is there already.
func (s *segment) replug(host *bpftest.NS, bridge, name string, addresses ...string) {
	s.plug(host, name, addresses...)
	port := s.ports[len(s.ports)-1]
	s.ns.Do(func() {
		master, err := netlink.LinkByName(bridge)
		if err == nil {
			err = netlink.LinkSetMaster(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: port.Index}}, master)
		}
		if err != nil {
			s.lab.tb.Fatal(err)
		}
	})
}

// newLab builds one segment (one leg) or two. In two legs the endpoints' default route is the
// gateway address 10.8.0.1, which the first load balancer holds, as it holds the VIP.
func newLab(tb testing.TB, oneLeg bool, lbs int) *lab {
	tb.Helper()
	bpftest.RequirePrivilege(tb)
	l := &lab{tb: tb, oneLeg: oneLeg, client: bpftest.NewNS(tb)}
	sw := bpftest.NewNS(tb)
	front, back := &segment{ns: sw, name: "front", lab: l}, &segment{ns: sw, name: "back", lab: l}
	l.front = front
	front.plug(l.client, "eth1", client.String()+"/24")
	for i := range lbs {
		lb := bpftest.NewNS(tb)
		l.lbs = append(l.lbs, lb)
		own := fmt.Sprintf("10.9.0.%d/24", 1+i)
		front.plug(lb, "eth1", own)
		if !oneLeg {
			back.plug(lb, "eth2", fmt.Sprintf("10.8.0.%d/24", 11+i))
		}
	}
	for i := range 2 {
		e := bpftest.NewNS(tb)
		l.endpoints = append(l.endpoints, e)
		if oneLeg {
			front.plug(e, "eth1", fmt.Sprintf("10.9.0.%d/24", 21+i))
			continue
		}
		back.plug(e, "eth1", fmt.Sprintf("10.8.0.%d/24", 21+i))
		e.DefaultRoute("10.8.0.1")
	}
	sw.Bridge("br-front", front.ports...)
	if !oneLeg {
		sw.Bridge("br-back", back.ports...)
	}
	l.hold(0)
	return l
}

// forXDP makes all cables as XDP needs them.
func (l *lab) forXDP() {
	l.tb.Helper()
	for _, end := range l.cables {
		end.ForXDP()
	}
}

// hold gives the VIP and the gateway address to one load balancer and takes them from the others.
func (l *lab) hold(master int) {
	l.tb.Helper()
	for i, lb := range l.lbs {
		holdAddress(l.tb, lb, "eth1", vip.String()+"/32", i == master)
		if !l.oneLeg {
			holdAddress(l.tb, lb, "eth2", "10.8.0.1/24", i == master)
		}
	}
}

func (l *lab) interfaces() []string {
	if l.oneLeg {
		return []string{"eth1"}
	}
	return []string{"eth1", "eth2"}
}

func (l *lab) endpointAddrs(port uint16) []netip.AddrPort {
	prefix := "10.8.0."
	if l.oneLeg {
		prefix = "10.9.0."
	}
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr(prefix+"21"), port),
		netip.AddrPortFrom(netip.MustParseAddr(prefix+"22"), port),
	}
}

func (l *lab) open(lb int, change func(*Options)) *Dataplane {
	l.tb.Helper()
	opts := Options{
		PinDir: bpftest.PinDir(l.tb), Interfaces: l.interfaces(),
		MaxFlows: 4096, MaxHalfOpen: 4096, Slot: uint8(lb),
	}
	if change != nil {
		change(&opts)
	}
	return openTest(l.tb, l.lbs[lb], opts)
}

// reopen opens the first load balancer's data plane once more. Its VIPs have no leases, as those of versions before
// there were any: it gives them one of some seconds, which is not enough for a test on a busy machine.
func (l *lab) reopen(opts Options) *Dataplane {
	l.tb.Helper()
	d := openTest(l.tb, l.lbs[0], opts)
	if err := d.SyncLeases(nil); err != nil {
		l.tb.Fatal(err)
	}
	return d
}

// serve echoes on TCP at port 8080 of both endpoints until the test ends.
func (l *lab) serve() {
	for _, e := range l.endpoints {
		listener := e.Listen("0.0.0.0:8080")
		go func() {
			for {
				c, err := listener.Accept()
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
}

func (l *lab) dial() net.Conn {
	l.tb.Helper()
	c, err := l.client.Dial(&net.Dialer{Timeout: 5 * time.Second}, "tcp4", vipPort.String())
	if err != nil {
		l.tb.Fatal(err)
	}
	return c
}

// transfer sends size bytes through an echo connection and compares what comes back.
func transfer(c net.Conn, size int, progress func(int)) error {
	if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
		return err
	}
	sent, received := sha256.New(), sha256.New()
	failed := make(chan error, 1)
	go func() { failed <- send(c, sent, size) }()
	buffer := make([]byte, 64<<10)
	for got := 0; got < size; {
		n, err := c.Read(buffer)
		received.Write(buffer[:n])
		got += n
		if progress != nil {
			progress(got)
		}
		if err != nil {
			return fmt.Errorf("after %d bytes: %w", got, err)
		}
	}
	if err := <-failed; err != nil {
		return err
	}
	if string(sent.Sum(nil)) != string(received.Sum(nil)) {
		return errors.New("what came back is not what was sent")
	}
	return nil
}

// conversation is a connection to an echo that is in use all the time, in both directions.
type conversation struct {
	end     chan struct{}
	ended   chan error
	echoed  atomic.Int64
	longest time.Duration // between two echoes; read it when it has ended
}

// converse begins one: a block of 64 KB each millisecond, if the one before has come back.
func converse(c net.Conn) *conversation {
	v := &conversation{end: make(chan struct{}), ended: make(chan error, 1)}
	go func() { v.ended <- v.run(c) }()
	return v
}

func (v *conversation) run(c net.Conn) error {
	sent, got := make([]byte, 64<<10), make([]byte, 64<<10)
	pace := time.NewTicker(time.Millisecond)
	defer pace.Stop()
	last := time.Now()
	for round := 0; ; round++ {
		select {
		case <-v.end:
			return nil
		case <-pace.C:
		}
		for i := range sent {
			sent[i] = byte(round + i>>3*7)
		}
		if err := c.SetDeadline(time.Now().Add(60 * time.Second)); err != nil {
			return err
		}
		if _, err := c.Write(sent); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if _, err := io.ReadFull(c, got); err != nil {
			return fmt.Errorf("round %d: %w", round, err)
		}
		if !bytes.Equal(sent, got) {
			return fmt.Errorf("round %d: what came back is not what was sent", round)
		}
		now := time.Now()
		v.longest, last = max(v.longest, now.Sub(last)), now
		v.echoed.Add(1)
	}
}

// goOn waits for fifty more echoes.
func (v *conversation) goOn(tb testing.TB) {
	tb.Helper()
	until := v.echoed.Load() + 50
	eventually(tb, "conversation", func() error {
		if n := v.echoed.Load(); n < until {
			return fmt.Errorf("%d echoes, want %d", n, until)
		}
		return nil
	})
}

func (v *conversation) stop() (longest time.Duration, err error) {
	close(v.end)
	err = <-v.ended
	return v.longest, err
}

func send(c net.Conn, hash io.Writer, size int) error {
	block := make([]byte, 64<<10)
	for at := 0; at < size; at += len(block) {
		block = block[:min(len(block), size-at)]
		for i := 0; i < len(block); i += 8 {
			block[i] = byte((at + i) >> 3 * 7)
		}
		if _, err := io.MultiWriter(hash, c).Write(block); err != nil {
			return fmt.Errorf("send: %w", err)
		}
	}
	return nil
}

// runDataplane runs d until the test ends.
func runDataplane(tb testing.TB, d *Dataplane) (stop func()) {
	tb.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	}
	tb.Cleanup(stop)
	return stop
}

// eventually polls until the condition holds; it says why not yet.
func eventually(tb testing.TB, what string, condition func() error) {
	tb.Helper()
	deadline := time.Now().Add(roottest.Patient(10 * time.Second))
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			tb.Fatalf("%s: %v", what, err)
		}
		<-ticker.C
	}
}

func holdAddress(tb testing.TB, ns *bpftest.NS, iface, prefix string, held bool) {
	tb.Helper()
	ns.Lookup(iface).Hold(prefix, held)
}
