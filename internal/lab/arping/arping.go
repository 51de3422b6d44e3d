// Package arping asks, again and again, who has an IPv4 address, and writes down
// who answers and when. It stands in a host of its own and speaks ARP (RFC 826)
// itself, so it sees what clients' kernels would believe, every answer and every
// unasked claim of every claimant, and no cache comes in between.
//
// It decides nothing: what the claims mean is for who reads them.
package arping

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Config says who asks for what.
type Config struct {
	// Do runs a function on a thread in the asking host's namespace.
	Do func(func() error) error
	// Interface is where it asks; it needs an IPv4 address there.
	Interface string
	// Targets are the addresses asked for.
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
	file  *os.File
	index int
	mac   net.HardwareAddr
	self  netip.Addr

	mu     sync.Mutex
	claims []Claim
}

const etherARP = 0x0806

// New opens the socket. Run closes it at its end.
func New(cfg Config) (*Prober, error) {
	if cfg.Interval == 0 {
		cfg.Interval = 5 * time.Millisecond
	}
	for _, a := range cfg.Targets {
		if !a.Is4() {
			return nil, fmt.Errorf("ask for %s: want an IPv4 address", a)
		}
	}
	p := &Prober{cfg: cfg}
	if err := cfg.Do(p.open); err != nil {
		return nil, fmt.Errorf("ask on %s: %w", cfg.Interface, err)
	}
	return p, nil
}

func (p *Prober) open() error {
	dev, err := net.InterfaceByName(p.cfg.Interface)
	if err != nil {
		return fmt.Errorf("find interface: %w", err)
	}
	addrs, err := dev.Addrs()
	if err != nil {
		return fmt.Errorf("find its address: %w", err)
	}
	p.index, p.mac = dev.Index, dev.HardwareAddr
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil {
			p.self = netip.AddrFrom4([4]byte(n.IP.To4()))
		}
	}
	if !p.self.IsValid() {
		return errors.New("it has no IPv4 address")
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt timestamp", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)),
		os.NewSyscallError("setsockopt receive buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 1<<22)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: bigEndian(etherARP), Ifindex: dev.Index})),
	)
	if err != nil {
		return errors.Join(err, unix.Close(fd))
	}
	p.file = os.NewFile(uintptr(fd), "arp:"+p.cfg.Interface)
	return nil
}

// bigEndian is v in the order of the network.
func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

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
	raw, err := p.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("ask on %s: %w", p.cfg.Interface, err)
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.ask(ctx, raw.Write) })
	g.Go(func() error { return p.listen(ctx, raw.Read) })
	g.Go(func() error {
		<-ctx.Done()
		return p.file.SetDeadline(time.Unix(1, 0))
	})
	err = g.Wait()
	if err = errors.Join(err, p.file.Close()); err != nil {
		return fmt.Errorf("ask on %s: %w", p.cfg.Interface, err)
	}
	return nil
}

func (p *Prober) ask(ctx context.Context, write func(func(uintptr) bool) error) error {
	var questions [][]byte
	for _, a := range p.cfg.Targets {
		questions = append(questions, request(p.mac, p.self, a))
	}
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(etherARP), Ifindex: p.index}
	tick := time.NewTicker(p.cfg.Interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, q := range questions {
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
	if !ok {
		return
	}
	for _, t := range p.cfg.Targets {
		if t == addr {
			p.mu.Lock()
			p.claims = append(p.claims, Claim{At: at, Address: addr, MAC: mac.String(), Asked: bytes.Equal(to, p.mac)})
			p.mu.Unlock()
		}
	}
}

const frameLen = 14 + 28 // Ethernet and ARP for IPv4

// request is the question who has target.
func request(mac net.HardwareAddr, self, target netip.Addr) []byte {
	f := make([]byte, 0, frameLen)
	f = append(f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff)
	f = append(f, mac...)
	f = append(f, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(f, mac...)
	f = append(f, self.AsSlice()...)
	f = append(f, make([]byte, 6)...)
	return append(f, target.AsSlice()...)
}

// claimIn reads who says in a frame that it has which address, and to whom. Both
// forms count: a request names its sender as a reply does.
func claimIn(frame []byte) (mac net.HardwareAddr, addr netip.Addr, to net.HardwareAddr, ok bool) {
	if len(frame) < frameLen || !bytes.Equal(frame[12:20], []byte{8, 6, 0, 1, 8, 0, 6, 4}) {
		return nil, netip.Addr{}, nil, false
	}
	arp := frame[14:]
	if op := binary.BigEndian.Uint16(arp[6:]); op != 1 && op != 2 {
		return nil, netip.Addr{}, nil, false
	}
	return net.HardwareAddr(bytes.Clone(arp[8:14])), netip.AddrFrom4([4]byte(arp[14:18])), net.HardwareAddr(bytes.Clone(frame[:6])), true
}
