package health

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"pontoon/internal/roottest"
)

// pathLab is a load balancer (the test's own namespace) and an endpoint at the two ends of a cable. Both
// hold the VIPs, as they do where endpoints answer clients directly.
type pathLab struct {
	t        *testing.T
	lb, peer netns.NsHandle
}

func newPathLab(t *testing.T) *pathLab {
	lab := &pathLab{t: t, lb: roottest.Namespace(t)}
	made := make(chan netns.NsHandle, 1)
	must(t, <-roottest.Go(lab.lb, func() error {
		ns, err := netns.New() // on a thread that is thrown away
		made <- ns
		return err
	}))
	lab.peer = <-made
	t.Cleanup(func() { _ = lab.peer.Close() })
	la := netlink.NewLinkAttrs()
	la.Name = "ptlb"
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: "ptep", PeerNamespace: netlink.NsFd(int(lab.peer))}))
	must(t, errors.Join(up("lo", "192.0.2.100/32", "2001:db8::100/128"), up("ptlb", "10.77.0.1/24", "fd77::1/64")))
	lab.inside(func() error {
		return errors.Join(up("lo", "192.0.2.100/32", "2001:db8::100/128"), up("ptep", "10.77.0.2/24", "fd77::2/64"))
	})
	roottest.Eventually(t, "both ends have a carrier", func() bool {
		l, err := netlink.LinkByName("ptlb")
		return err == nil && l.Attrs().OperState == netlink.OperUp
	})
	return lab
}

// up sets a link up with addresses.
func up(name string, prefixes ...string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	err = netlink.LinkSetUp(l)
	for _, p := range prefixes {
		a, bad := netlink.ParseAddr(p)
		if bad != nil {
			return bad
		}
		if a.IP.To4() == nil {
			a.Flags = unix.IFA_F_NODAD
		}
		err = errors.Join(err, netlink.AddrAdd(l, a))
	}
	return err
}

// inside runs f at the endpoint.
func (lab *pathLab) inside(f func() error) {
	lab.t.Helper()
	must(lab.t, <-roottest.Go(lab.peer, f))
}

// start runs a prober at the load balancer.
func (lab *pathLab) start(targets ...Target) *Prober {
	p := New(Options{Logger: slog.New(slog.NewTextHandler(lab.t.Output(), nil))})
	p.Want(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := roottest.Go(lab.lb, func() error { return p.Run(ctx) })
	lab.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			lab.t.Errorf("run: %v", err)
		}
	})
	return p
}

// through is a target probed by way of the VIP.
func through(key uint32, kind Type, v6 bool, port uint16) Target {
	addr, vip := "10.77.0.2", "192.0.2.100"
	if v6 {
		addr, vip = "fd77::2", "2001:db8::100"
	}
	t := Target{
		Key: key, Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), port),
		VIP: netip.AddrPortFrom(netip.MustParseAddr(vip), port), Probe: fast(kind),
	}
	t.Probe.ThroughVIP = true
	return t
}

func TestEndpointIsProbedThroughTheVIP(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		lab := newPathLab(t)
		vip, prefix := "192.0.2.100", "192.0.2.100/32"
		if v6 {
			vip, prefix = "2001:db8::100", "2001:db8::100/128"
		}
		var server net.Listener
		var echoer net.PacketConn
		lab.inside(func() (err error) {
			if server, err = net.Listen("tcp", netip.AddrPortFrom(netip.MustParseAddr(vip), 80).String()); err != nil {
				return err
			}
			echoer, err = net.ListenPacket("udp", netip.AddrPortFrom(netip.MustParseAddr(vip), 53).String())
			return err
		})
		served := make(chan struct{})
		go func() {
			defer close(served)
			buf := make([]byte, 2048)
			for {
				n, from, err := echoer.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = echoer.WriteTo(append([]byte("you said "), buf[:n]...), from)
			}
		}()
		asks := through(2, TypeUDP, v6, 53)
		asks.Probe.Send, asks.Probe.Body = "ping", "said ping"
		p := lab.start(through(1, TypeTCP, v6, 80), asks, through(3, TypeICMP, v6, 0))
		for key := range uint32(3) {
			if r := becomes(t, p, key+1, Up, ""); r.P50 <= 0 {
				t.Errorf("%+v", r)
			}
		}
		// The server is gone, the VIP is there.
		must(t, server.Close())
		becomes(t, p, 1, Down, "connection refused")
		must(t, echoer.Close())
		<-served
		becomes(t, p, 2, Down, "port unreachable")
		// The machine is there, and has lost the VIP: what a probe of its own address would not see.
		lab.inside(func() error {
			lo, err := netlink.LinkByName("lo")
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(prefix)
			if err != nil {
				return err
			}
			return netlink.AddrDel(lo, a)
		})
		becomes(t, p, 3, Down, "no answer in 80ms")
	}
}

func TestNeighbourThatIsNotThereIsSaidSo(t *testing.T) {
	lab := newPathLab(t)
	gone := through(1, TypeTCP, false, 80)
	gone.Addr = netip.MustParseAddrPort("10.77.0.99:80")
	away := through(2, TypeTCP, false, 80)
	away.Addr = netip.MustParseAddrPort("198.51.100.1:80")
	away.Start = Up
	must(t, netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(10, 77, 0, 2)}))
	p := lab.start(gone, away)
	becomes(t, p, 1, Down, "no neighbour has this address")
	roottest.Eventually(t, "it says that it reaches no further", func() bool {
		r, _ := p.Result(2)
		return r.LastError == "198.51.100.1 is in no network of this node, and without a tunnel packets reach no further"
	})
}

// endTunnel is an endpoint's end of a tunnel, without the kernel's help: it takes a packet out of the one
// that came and answers it as an open port would, past the load balancer.
func endTunnel(v6 bool, in, out int, stop <-chan struct{}) {
	buf := make([]byte, 2048)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(in, buf, 0)
		if err != nil {
			continue // the time of a read is over
		}
		inner := buf[:n]
		if !v6 {
			_, rest, ok := split4(buf[:n])
			if !ok {
				continue
			}
			inner = rest
		}
		a, ok := parseAnswer(v6, inner)
		if !ok || a.flags != tcpSYN {
			continue
		}
		// The same op the other way round.
		reply := &op{
			check: &check{subject: subject{vip: netip.AddrPortFrom(a.from, a.port), probe: Probe{Type: TypeTCP}}},
			slot:  a.slot, path: path{hop{source: a.to}},
		}
		segment := reply.tcp(tcpSYN|tcpACK, 1)
		head := ipv4Head
		if v6 {
			head = ipv6Head
		}
		tcp := segment[head:]
		copy(tcp[8:12], acknowledge(inner[head+4:head+8]))
		tcp[16], tcp[17] = 0, 0
		_ = unix.Sendto(out, ipPacket(a.to, a.from, unix.IPPROTO_TCP, tcp, 16), 0, sockaddrOf(a.from))
	}
}

func sockaddrOf(a netip.Addr) unix.Sockaddr { return sockaddr(netip.AddrPortFrom(a, 0)) }

// acknowledge is the sequence number after this one.
func acknowledge(b []byte) []byte {
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n++
	return []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)}
}

func TestEndpointIsProbedThroughTheTunnel(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		lab := newPathLab(t)
		inner := unix.IPPROTO_IPIP
		if v6 {
			inner = unix.IPPROTO_IPV6
		}
		any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
		var in, out int
		lab.inside(func() (err error) {
			a := any4
			if v6 {
				a = any6
			}
			if in, err = unix.Socket(family(a), unix.SOCK_RAW|unix.SOCK_CLOEXEC, inner); err != nil {
				return err
			}
			if out, err = unix.Socket(family(a), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
				return err
			}
			return unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000})
		})
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			endTunnel(v6, in, out, stop)
		}()
		target := through(1, TypeTCP, v6, 80)
		target.Tunnel = true
		p := lab.start(target)
		becomes(t, p, 1, Up, "")
		close(stop)
		<-done
		becomes(t, p, 1, Down, "no answer in 80ms")
		_ = unix.Close(in)
		_ = unix.Close(out)
	}
}

func TestHostWithoutSCTPIsSaidSo(t *testing.T) {
	lab := newPathLab(t)
	p := lab.start(
		Target{Key: 1, Addr: netip.MustParseAddrPort("10.77.0.2:38412"), Probe: fast(TypeSCTP)},
		Target{Key: 2, Addr: netip.MustParseAddrPort("[fd77::2]:38412"), Probe: fast(TypeSCTP)},
		Target{Key: 3, Addr: netip.MustParseAddrPort("10.77.0.2:7"), Probe: fast(TypeICMP)},
		Target{Key: 4, Addr: netip.MustParseAddrPort("[fd77::2]:7"), Probe: fast(TypeICMP)},
		Target{Key: 5, Addr: netip.MustParseAddrPort("10.77.0.99:7"), Probe: fast(TypeICMP)})
	becomes(t, p, 3, Up, "")
	becomes(t, p, 4, Up, "")
	becomes(t, p, 5, Down, "no answer in 80ms")
	words := "protocol is not spoken there"
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP); err == nil {
		_ = unix.Close(fd)
		words = "association refused" // this kernel speaks it, and nobody listens
	}
	becomes(t, p, 1, Down, words)
	becomes(t, p, 2, Down, words)
}
