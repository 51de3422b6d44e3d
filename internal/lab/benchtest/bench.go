package benchtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// Config says what is compared.
type Config struct {
	// Binary is the product's executable.
	Binary string
	// Contenders to compare; those of [Contenders] when nil.
	Contenders []Contender
	// Workloads to go through; all when nil.
	Workloads []Workload
	// Rounds is how often everything is measured, at least 1. Default 5.
	Rounds int
	// Window is how long one measurement takes, after its warm-up, 1 s or more.
	// Default 2.5 s.
	Window time.Duration
	// Progress gets a line for each measurement; discarded when nil.
	Progress io.Writer
	// Logger is the lab's; discarded when nil.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Contenders == nil {
		c.Contenders = Contenders()
	}
	if c.Workloads == nil {
		c.Workloads = Workloads()
	}
	if c.Rounds == 0 {
		c.Rounds = 5
	}
	if c.Window == 0 {
		c.Window = 2500 * time.Millisecond
	}
	if c.Progress == nil {
		c.Progress = io.Discard
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Validate reports everything that is wrong, joined.
func (c Config) Validate() error {
	var errs []error
	if len(c.Contenders) > lab.MaxNodes {
		errs = append(errs, fmt.Errorf("%d contenders: want at most %d", len(c.Contenders), lab.MaxNodes))
	}
	if c.Rounds < 0 {
		errs = append(errs, fmt.Errorf("%d rounds: want 1 or more", c.Rounds))
	}
	if c.Window != 0 && c.Window < time.Second {
		// Processor time is counted in hundredths of a second.
		errs = append(errs, fmt.Errorf("window of %s: want 1s or more", c.Window))
	}
	return errors.Join(errs...)
}

// The paths without a machine between: what the same work costs anyway. XDP
// contenders have one of their own, since their cables are other ones.
const (
	directName    = "direct"
	directXDPName = "direct-xdp"
)

// directIndex is the subnet number of the first cable without a machine.
const directIndex = 250

// path is one way from the client to the server that is measured.
type path struct {
	name    string
	target  netip.Addr
	sources []netip.Addr // the client's addresses on this way
	noUDP   bool
	xdp     bool

	clientIface, serverIface string
	next                     *lab.Host // who the client's frames go to, and by which interface
	nextIface                string
}

// bench is a lab with everybody in it.
type bench struct {
	cfg        Config
	lab        *lab.Lab
	client     *lab.Host
	serverHost *lab.Host
	server     *server
	sites      []*Site
	paths      []*path
	report     *Report
}

func (b *bench) close() error {
	var errs []error
	for _, s := range b.sites {
		errs = append(errs, s.close())
	}
	return errors.Join(append(errs, b.lab.Close())...)
}

// Run builds the lab, measures, and removes the lab. A contender that cannot
// be started is named in the report and left out; a measurement that fails is
// too. It needs root, and the machine to itself. When ctx ends it returns what
// it has, with an error.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("benchmark configuration: %w", err)
	}
	return run(ctx, cfg.withDefaults())
}

func run(ctx context.Context, cfg Config) (rep *Report, err error) {
	l, err := lab.New(lab.Config{
		Binary: cfg.Binary, Topology: lab.TwoLeg, Nodes: len(cfg.Contenders), Clients: 1, Endpoints: 1, Logger: cfg.Logger,
	})
	if err != nil {
		return nil, err
	}
	b := &bench{cfg: cfg, lab: l, client: l.Clients()[0], serverHost: l.Endpoints()[0], report: newReport(cfg)}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.prepareEnds(); err != nil {
		return nil, fmt.Errorf("prepare client and server: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return b.server.run(ctx) })
	g.Go(func() error {
		defer cancel()
		b.startAll(ctx)
		if err := b.watchIdle(ctx); err != nil {
			return err
		}
		return b.rounds(ctx)
	})
	return b.report, g.Wait()
}

// widePorts lets a host use nearly all ports for connections of its own.
func widePorts(h *lab.Host) error {
	return sysctl(h, "net.ipv4.ip_local_port_range", "1024 65535")
}

// prepareEnds opens the server and lays the cable without a machine.
func (b *bench) prepareEnds() error {
	if err := widePorts(b.client); err != nil {
		return err
	}
	for i, name := range []string{directName, directXDPName} {
		c := directCable(b.client, b.serverHost, directIndex+i, fmt.Sprintf("d%d", i), name == directXDPName)
		if err := c.lay(); err != nil {
			return err
		}
		b.paths = append(b.paths, &path{
			name: name, xdp: c.xdp, target: c.bAddrs[0].Addr(), sources: addrs(frontLeg, directIndex+i, clientFirst, clientAddrs),
			clientIface: c.aIface, serverIface: c.bIface, next: b.serverHost, nextIface: c.bIface,
		})
	}
	var err error
	b.server, err = newServer(b.serverHost)
	return err
}

// startAll starts every contender and keeps the ones that work.
func (b *bench) startAll(ctx context.Context) {
	works := b.paths[:0:0]
	for i, c := range b.cfg.Contenders {
		paths, err := b.start(ctx, i, c)
		if err != nil {
			b.unavailable(c.Name, err)
			continue
		}
		b.paths = append(b.paths, paths...)
	}
	for _, p := range b.paths {
		if err := b.try(ctx, p); err != nil {
			b.unavailable(p.name, err)
			continue
		}
		works = append(works, p)
	}
	isXDP := func(p *path) bool { return p.xdp && p.name != directXDPName }
	if !slices.ContainsFunc(works, isXDP) {
		works = slices.DeleteFunc(works, func(p *path) bool { return p.name == directXDPName })
	}
	b.paths = works
	for _, p := range works {
		b.report.enter(p.name, p.xdp)
	}
}

func (b *bench) unavailable(name string, err error) {
	fmt.Fprintf(b.cfg.Progress, "%s: not available: %v\n", name, err)
	b.report.Unavailable = append(b.report.Unavailable, Failure{Contender: name, Err: err})
}

// start sets one contender up.
func (b *bench) start(ctx context.Context, i int, c Contender) ([]*path, error) {
	s := &Site{Node: b.lab.Nodes()[i], Front: "front", Back: "back", index: i}
	b.sites = append(b.sites, s)
	if err := s.wire(b.client, b.serverHost, c.XDP); err != nil {
		return nil, err
	}
	targets, err := c.Start(ctx, s)
	if err != nil {
		return nil, err
	}
	var paths []*path
	for _, t := range targets {
		name := c.Name
		if t.Name != "" {
			name += " " + t.Name
		}
		paths = append(paths, &path{
			name: name, target: t.Addr, noUDP: t.NoUDP, xdp: c.XDP, sources: s.clients(),
			clientIface: s.clientIface(), serverIface: s.serverIface(), next: s.Node.Host, nextIface: s.Front,
		})
	}
	return paths, nil
}

// try waits until a connection through the path works: what was declared may
// need a moment to be carried out.
func (b *bench) try(ctx context.Context, p *path) error {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	return lab.WaitFor(ctx, "a connection by "+p.name, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		c, err := b.client.Dial(ctx, netip.AddrPortFrom(p.target, ConnPort))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(time.Second)); err != nil {
			return err
		}
		if _, err := c.Write([]byte{'?'}); err != nil {
			return err
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return err
	})
}

// watchIdle finds out what the machine does anyway, while all contenders are
// up and nobody sends: whether it was quiet enough is the reader's to judge.
func (b *bench) watchIdle(ctx context.Context) error {
	before, err := readCPU()
	if err != nil {
		return err
	}
	if err := pass(ctx, b.cfg.Window); err != nil {
		return err
	}
	after, err := readCPU()
	b.report.idle = after.since(before).busy.Seconds() / b.cfg.Window.Seconds()
	return err
}

// rounds measures everything as often as was asked for.
func (b *bench) rounds(ctx context.Context) error {
	for r := range b.cfg.Rounds {
		for _, w := range b.cfg.Workloads {
			for _, p := range b.paths {
				if w == UDP && p.noUDP {
					continue
				}
				s, err := b.sample(ctx, w, p)
				if ctx.Err() != nil {
					return fmt.Errorf("round %d: %w", r+1, context.Cause(ctx))
				}
				b.report.add(r, w, p.name, s, err)
				fmt.Fprintf(b.cfg.Progress, "round %d/%d %-6s %-20s %s\n", r+1, b.cfg.Rounds, w, p.name, progress(w, s, err))
			}
		}
	}
	return nil
}

func (b *bench) sample(ctx context.Context, w Workload, p *path) (Sample, error) {
	switch w {
	case Bulk1:
		return b.bulk(ctx, p, 1)
	case Bulk4:
		return b.bulk(ctx, p, 4)
	case Conns:
		return b.conns(ctx, p)
	case UDP:
		return b.udp(ctx, p)
	}
	return Sample{}, fmt.Errorf("workload %q is not known", w)
}

// measured is what happened in a window.
type measured struct {
	count uint64
	took  time.Duration
	cpu   cpuTime
}

// stealShare is the part of one processor the hypervisor took meanwhile.
func (m measured) stealShare() float64 { return m.cpu.steal.Seconds() / m.took.Seconds() }

// measure waits for the warm-up to pass and then sees how far the count comes
// within the window.
func (b *bench) measure(ctx context.Context, warmUp time.Duration, count func() uint64) (measured, error) {
	if err := pass(ctx, warmUp); err != nil {
		return measured{}, err
	}
	cpu, err := readCPU()
	if err != nil {
		return measured{}, err
	}
	from, began := count(), time.Now()
	if err := pass(ctx, b.cfg.Window); err != nil {
		return measured{}, err
	}
	m := measured{count: count() - from, took: time.Since(began)}
	after, err := readCPU()
	m.cpu = after.since(cpu)
	return m, err
}

// pass lets time go by.
func pass(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// linkAddr is the hardware address of an interface of h.
func linkAddr(h *lab.Host, iface string) (mac net.HardwareAddr, err error) {
	err = h.Do(func() error {
		l, err := netlink.LinkByName(iface)
		if err != nil {
			return fmt.Errorf("find %s on %s: %w", iface, h.Name(), err)
		}
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}
