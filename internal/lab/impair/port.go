package impair

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/perf"
	"golang.org/x/sys/unix"
)

// ringSize is how much of late frames waits on each processor to be read.
const ringSize = 1 << 21

// Config names the port to hurt.
type Config struct {
	// Do runs a function on a thread in the namespace of the segment's end of the
	// cable.
	Do func(func() error) error
	// Interface is that end's name there.
	Interface string
}

// Port is one cable's segment's end with the programs on it. Its methods are safe
// for concurrent use.
type Port struct {
	name    string
	index   int
	do      func(func() error) error
	ring    *ebpf.Map
	reader  *perf.Reader
	socket  [2]int // by direction
	overrun atomic.Uint64

	mu     sync.Mutex
	side   [2]side // by direction
	closed bool
}

// side is one direction's program.
type side struct {
	link    link.Link
	program *ebpf.Program
	counts  *ebpf.Map
	rules   int
}

// Open puts programs without rules on the port. Close takes them away again.
func Open(cfg Config) (p *Port, err error) {
	p = &Port{name: cfg.Interface, do: cfg.Do, socket: [2]int{-1, -1}}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("impair %s: %w", cfg.Interface, err), p.Close())
		}
	}()
	if p.ring, err = ebpf.NewMap(&ebpf.MapSpec{Name: "pt_late", Type: ebpf.PerfEventArray}); err != nil {
		return p, err
	}
	if p.reader, err = perf.NewReader(p.ring, ringSize); err != nil {
		return p, err
	}
	err = cfg.Do(func() error {
		dev, err := net.InterfaceByName(cfg.Interface)
		if err != nil {
			return fmt.Errorf("find interface: %w", err)
		}
		p.index = dev.Index
		for d, mark := range map[direction]int{toHost: markSent, fromHost: markReceived} {
			if p.socket[d], err = packetSocket(mark); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return p, err
	}
	return p, p.Set(Rules{})
}

// packetSocket sends whole frames that carry the mark. It receives nothing.
func packetSocket(mark int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt mark", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, mark)),
		os.NewSyscallError("setsockopt vnet header", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)),
		os.NewSyscallError("setsockopt send buffer", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<22)),
	)
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Set replaces all rules at once for each direction. Counters begin anew.
func (p *Port) Set(r Rules) error {
	if err := r.Validate(); err != nil {
		return fmt.Errorf("impair %s: %w", p.name, err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("impair %s: %w", p.name, os.ErrClosed)
	}
	for d, rules := range map[direction][]Rule{fromHost: r.FromHost, toHost: r.ToHost} {
		if err := p.setSide(d, rules); err != nil {
			return fmt.Errorf("impair %s: %w", p.name, err)
		}
	}
	return nil
}

// setSide puts a new program in the place of the old one; p.mu is held.
func (p *Port) setSide(d direction, rules []Rule) (err error) {
	next := side{link: p.side[d].link, rules: len(rules)}
	next.counts, err = ebpf.NewMap(&ebpf.MapSpec{
		Name: "pt_counts", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 4 * maxRules,
	})
	if err != nil {
		return err
	}
	spec := compile(d, p.index, rules, p.ring, next.counts)
	if next.program, err = ebpf.NewProgram(spec); err != nil {
		return errors.Join(fmt.Errorf("load program: %w", err), next.counts.Close())
	}
	if next.link == nil {
		err = p.do(func() (err error) {
			next.link, err = link.AttachTCX(link.TCXOptions{Interface: p.index, Program: next.program, Attach: spec.AttachType})
			return err
		})
	} else {
		err = next.link.Update(next.program)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("attach program: %w", err), next.program.Close(), next.counts.Close())
	}
	old := p.side[d]
	old.link = nil // it lives on in next
	p.side[d] = next
	return old.close()
}

func (s side) close() error {
	var errs []error
	if s.link != nil {
		errs = append(errs, s.link.Close())
	}
	if s.program != nil {
		errs = append(errs, s.program.Close())
	}
	if s.counts != nil {
		errs = append(errs, s.counts.Close())
	}
	return errors.Join(errs...)
}

// Counts are those of the rules for what comes from the host and for what goes to
// it, in their order.
func (p *Port) Counts() (from, to []Counts, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out [2][]Counts
	for d := range out {
		for i := range p.side[d].rules {
			var v [4]uint64
			for k := range v {
				if err := p.side[d].counts.Lookup(uint32(4*i+k), &v[k]); err != nil {
					return nil, nil, fmt.Errorf("impair %s: read counters: %w", p.name, err)
				}
			}
			out[d] = append(out[d], Counts{Matched: v[0], Dropped: v[1], Duplicated: v[2], Delayed: v[3]})
		}
	}
	return out[fromHost], out[toHost], nil
}

// Overrun is how many late frames were lost because too many waited.
func (p *Port) Overrun() uint64 { return p.overrun.Load() }

// transmit sends a late frame the way it was going. A port that has gone, or has
// no carrier, loses it.
func (p *Port) transmit(f lateFrame) {
	h := vnetHeader(f.raw, f.gso)
	var kind [2]byte
	copy(kind[:], f.raw[12:]) // Ethernet's type, in the order of the network
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(kind[:]), Ifindex: p.index}
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		_, _ = unix.SendmsgN(p.socket[f.dir], append(h[:], f.raw...), nil, to, unix.MSG_DONTWAIT)
	}
}

// Close takes the programs off the port. End Run first. It may be called more
// than once, and on a port whose interface has gone.
func (p *Port) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	var errs []error
	for d := range p.side {
		errs = append(errs, p.side[d].close())
		if p.socket[d] >= 0 {
			errs = append(errs, unix.Close(p.socket[d]))
		}
	}
	if p.reader != nil {
		errs = append(errs, p.reader.Close())
	}
	if p.ring != nil {
		errs = append(errs, p.ring.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("impair %s: %w", p.name, err)
	}
	return nil
}
