package benchtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

const (
	udpWarmUp  = 300 * time.Millisecond
	primeWait  = 200 * time.Millisecond // for one answer
	primeTries = 5
)

// counter counts and swallows the packets that reach the server.
type counter struct {
	counts *ebpf.Map
	prog   *ebpf.Program
	link   link.Link
}

// tcxNext lets a packet go on (TCX_NEXT), tcxDrop does not.
const (
	tcxNext = -1
	tcxDrop = 2
)

// newCounter puts one before an interface of the server, in XDP or at TC
// ingress: where packets of the contender's kind arrive first, so that the
// receiving machine costs as little as it can for all.
func newCounter(h *lab.Host, iface string, xdp bool) (*counter, error) {
	c := &counter{}
	var err error
	c.counts, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pt_counts", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		return nil, fmt.Errorf("make packet counter: %w", err)
	}
	spec := &ebpf.ProgramSpec{Name: "pt_counter", Type: ebpf.SchedCLS, License: "GPL"}
	spec.Instructions = counterProgram(c.counts, UDPPort, skbData, skbDataEnd, tcxDrop, tcxNext)
	if xdp {
		spec.Type = ebpf.XDP
		spec.Instructions = counterProgram(c.counts, UDPPort, xdpData, xdpDataEnd, xdpDrop, xdpPass)
	}
	if c.prog, err = ebpf.NewProgram(spec); err != nil {
		c.close()
		return nil, fmt.Errorf("load packet counter: %w", err)
	}
	err = h.Do(func() (err error) {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return err
		}
		if xdp {
			c.link, err = link.AttachXDP(link.XDPOptions{Program: c.prog, Interface: l.Attrs().Index, Flags: link.XDPDriverMode})
		} else {
			c.link, err = link.AttachTCX(link.TCXOptions{Program: c.prog, Interface: l.Attrs().Index, Attach: ebpf.AttachTCXIngress})
		}
		return err
	})
	if err != nil {
		c.close()
		return nil, fmt.Errorf("attach packet counter to %s: %w", iface, err)
	}
	return c, nil
}

func (c *counter) close() {
	if c.link != nil {
		c.link.Close()
	}
	if c.prog != nil {
		c.prog.Close()
	}
	c.counts.Close()
}

// total is 0 when it cannot be read, which no measurement takes for a result.
func (c *counter) total() uint64 {
	var perCPU []uint64
	if err := c.counts.Lookup(uint32(0), &perCPU); err != nil {
		return 0
	}
	var sum uint64
	for _, n := range perCPU {
		sum += n
	}
	return sum
}

// prime says a datagram on each flow and hears its answer, so that what keeps
// state has all flows, seen in both directions, before it is measured.
func prime(ctx context.Context, client *lab.Host, from netip.Addr, to netip.AddrPort) error {
	return client.Do(func() error {
		for i := range udpFlows {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := primeOne(netip.AddrPortFrom(from, uint16(udpFirstPort+i)), to); err != nil {
				return fmt.Errorf("prime flow %d of %d: %w", i+1, udpFlows, err)
			}
		}
		return nil
	})
}

func primeOne(from, to netip.AddrPort) error {
	fd, err := socket(unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	tv := unix.NsecToTimeval(int64(primeWait))
	if err := errors.Join(
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
		unix.Bind(fd, sockaddr(from)), unix.Connect(fd, sockaddr(to))); err != nil {
		return err
	}
	buf := make([]byte, 64)
	for range primeTries {
		if _, err := unix.Write(fd, []byte("prime")); err != nil {
			return os.NewSyscallError("write", err)
		}
		// The first packet of the path waits for its neighbour's address.
		_, err = unix.Read(fd, buf)
		if err == nil {
			return nil
		}
		if err != unix.EAGAIN && err != unix.EINTR {
			return os.NewSyscallError("read", err)
		}
	}
	return errors.New("no answer")
}

// frame describes the packets towards a path's target.
func (b *bench) frame(p *path) (f frameSpec, ifindex int, err error) {
	f = frameSpec{from: netip.AddrPortFrom(p.sources[0], 0), to: netip.AddrPortFrom(p.target, UDPPort)}
	err = b.client.Do(func() error {
		l, err := netlink.LinkByName(p.clientIface)
		if err != nil {
			return fmt.Errorf("find %s: %w", p.clientIface, err)
		}
		ifindex, f.src = l.Attrs().Index, l.Attrs().HardwareAddr
		return nil
	})
	if err != nil {
		return f, 0, err
	}
	f.dst, err = linkAddr(p.next, p.nextIface)
	return f, ifindex, err
}

// udp measures small packets.
func (b *bench) udp(ctx context.Context, p *path) (Sample, error) {
	if err := prime(ctx, b.client, p.sources[0], netip.AddrPortFrom(p.target, UDPPort)); err != nil {
		return Sample{}, err
	}
	f, ifindex, err := b.frame(p)
	if err != nil {
		return Sample{}, err
	}
	gen, err := newGenerator(f, ifindex)
	if err != nil {
		return Sample{}, err
	}
	defer gen.close()
	c, err := newCounter(b.serverHost, p.serverIface, p.xdp)
	if err != nil {
		return Sample{}, err
	}
	defer c.close()
	sctx, stop := context.WithCancel(ctx)
	defer stop()
	var g errgroup.Group
	g.Go(func() error { return b.client.Do(func() error { return gen.run(sctx) }) })
	m, err := b.measure(ctx, udpWarmUp, c.total)
	stop()
	if err := errors.Join(err, g.Wait()); err != nil {
		return Sample{}, err
	}
	if m.count == 0 {
		return Sample{}, errors.New("nothing arrived")
	}
	return Sample{
		Rate:  float64(m.count) / 1000 / m.took.Seconds(),
		Cost:  float64(m.cpu.busy.Nanoseconds()) / float64(m.count),
		Loss:  max(0, 1-float64(c.total())/float64(gen.sent)),
		Steal: m.stealShare(),
	}, nil
}
