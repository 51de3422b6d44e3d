// Package arping asks, again and again, who has an address, and writes down who
// answers and when. It stands in a host of its own and speaks ARP (RFC 826) and
// neighbour discovery (RFC 4861) itself, so it sees what clients' kernels would
// believe, every answer and every unasked claim of every claimant, and no cache
// comes in between.
//
// It decides nothing: what the claims mean is for who reads them.
package arping

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says who asks for what.
type Config struct {
	// Do runs a function on a thread in the asking host's namespace.
	Do func(func() error) error
	// Interface is where it asks; it needs an address there of each family it asks for.
	Interface string
	// Targets are the addresses asked for, IPv4 and IPv6.
	Targets []netip.Addr
	// Interval is the time between two rounds of questions, 5 ms when 0.
	Interval time.Duration
}

// Claim is one word of somebody who says that it has an address.
type Claim struct {
	At      time.Time // when the kernel got it
	Address netip.Addr
	MAC     string // hardware address of the claimant, as net.HardwareAddr writes it
	Asked   bool   // an answer to a question of ours; otherwise it was told to all
}

// Prober asks and listens. Its methods are safe for concurrent use.
type Prober struct {
	cfg   Config
	mouth []*voice
	index int
	mac   net.HardwareAddr

	mu     sync.Mutex
	claims []Claim
}

// voice is the socket of one family.
type voice struct {
	proto     uint16 // of Ethernet
	file      *os.File
	questions [][]byte
}

const (
	etherARP  = 0x0806
	etherIPv6 = 0x86dd
)

// New opens the sockets. Run closes them at its end.
func New(cfg Config) (*Prober, error) {
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Millisecond
	}
	p := &Prober{cfg: cfg}
	if err := cfg.Do(p.open); err != nil {
		return nil, errors.Join(fmt.Errorf("ask on %s: %w", cfg.Interface, err), p.close())
	}
	return p, nil
}

func (p *Prober) close() error {
	var errs []error
	for _, v := range p.mouth {
		errs = append(errs, v.file.Close())
	}
	return errors.Join(errs...)
}

func (p *Prober) open() error {
	dev, err := net.InterfaceByName(p.cfg.Interface)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	p.index, p.mac = dev.Index, dev.HardwareAddr
	four, six, err := addressesOf(dev)
	if err != nil {
		return err
	}
	arp, ndp := voice{proto: etherARP}, voice{proto: etherIPv6}
	for _, a := range p.cfg.Targets {
		if a.Is4() {
			arp.questions = append(arp.questions, request(p.mac, four, a))
		} else {
			ndp.questions = append(ndp.questions, solicitation(p.mac, six, a))
		}
	}
	for _, one := range []struct {
		voice
		self netip.Addr
	}{{arp, four}, {ndp, six}} {
		switch {
		case len(one.questions) == 0:
			continue
		case !one.self.IsValid():
			return errors.New("it has no address of a family that is asked for")
		}
		if one.file, err = p.socket(one.proto); err != nil {
			return err
		}
		p.mouth = append(p.mouth, &one.voice)
	}
	return nil
}

// addressesOf is where questions come from: an address of each family, of IPv6 one that is not of the link alone.
func addressesOf(dev *net.Interface) (four, six netip.Addr, err error) {
	addrs, err := dev.Addrs()
	if err != nil {
		return four, six, fmt.Errorf("find its addresses: %w", err)
	}
	for _, a := range addrs {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		switch ip, _ := netip.AddrFromSlice(n.IP); {
		case ip.Unmap().Is4():
			four = ip.Unmap()
		case !ip.IsLinkLocalUnicast():
			six = ip
		}
	}
	return four, six, nil
}

// socket sends and hears frames of one protocol.
func (p *Prober) socket(proto uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt timestamp", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
		os.NewSyscallError("setsockopt receive buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<22)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(proto), Ifindex: p.index})),
	)
	if err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "arp:"+p.cfg.Interface), nil
}

// bigEndian is v in the order of the network.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Targets are the addresses asked for.
func (p *Prober) Targets() []netip.Addr { return slices.Clone(p.cfg.Targets) }

// Claims are all so far, in the order in which they came.
func (p *Prober) Claims() []Claim {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Claim(nil), p.claims...)
}

// Since are the claims of the last so much time.
func (p *Prober) Since(d time.Duration) []Claim {
	from := time.Now().Add(-d)
	p.mu.Lock()
	defer p.mu.Unlock()
	i := len(p.claims)
	for i > 0 && p.claims[i-1].At.After(from) {
		i--
	}
	return append([]Claim(nil), p.claims[i:]...)
}

// Run asks and listens until ctx ends.
func (p *Prober) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, v := range p.mouth {
		g.Go(func() error { return p.speak(ctx, v) })
	}
	if err := errors.Join(g.Wait(), p.close()); err != nil {
		return fmt.Errorf("ask on %s: %w", p.cfg.Interface, err)
	}
	return nil
}

// speak asks and listens by one socket.
func (p *Prober) speak(ctx context.Context, v *voice) error {
	raw, err := v.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.ask(ctx, v, raw.Write) })
	g.Go(func() error { return p.listen(ctx, raw.Read) })
	g.Go(func() error {
		<-ctx.Done()
		return v.file.SetDeadline(time.Unix(1, 0))
	})
	return g.Wait()
}

func (p *Prober) ask(ctx context.Context, v *voice, write func(func(uintptr) bool) error) error {
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(v.proto), Ifindex: p.index}
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, q := range v.questions {
			var failed error
			err := write(func(fd uintptr) bool {
				_, failed = unix.SendmsgN(int(fd), q, nil, to, unix.MSG_DONTWAIT)
				return true // a question that finds no room is asked again soon
			})
			if err = errors.Join(err, ignoreBusy(failed)); err != nil && ctx.Err() == nil {
				return fmt.Errorf("send: %w", err)
			}
		}
	}
}

func ignoreBusy(err error) error {
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENETDOWN) {
		return nil
	}
	return err
}

func (p *Prober) listen(ctx context.Context, read func(func(uintptr) bool) error) error {
	b, oob := make([]byte, 256), make([]byte, 128)
	for {
		var n, oobn int
		var failed error
		err := read(func(fd uintptr) bool {
			n, oobn, _, _, failed = unix.Recvmsg(int(fd), b, oob, 0)
			return !errors.Is(failed, unix.EAGAIN)
		})
		if err = errors.Join(err, ignoreBusy(failed)); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("receive: %w", err)
		}
		if failed == nil {
			p.take(b[:n], arrival(oob[:oobn]))
		}
	}
}

// arrival is when the kernel got a packet: this process may have come late to it.
func arrival(oob []byte) time.Time {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return time.Now()
	}
	for _, m := range msgs {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	return time.Now()
}

// take files a frame if it claims one of the targets.
func (p *Prober) take(frame []byte, at time.Time) {
	mac, addr, to, ok := claimIn(frame)
	if !ok || !slices.Contains(p.cfg.Targets, addr) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.claims = append(p.claims, Claim{At: at, Address: addr, MAC: mac.String(), Asked: slices.Equal(to, p.mac)})
}
