package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// ErrTraceBusy says that another session traces packets now: there is one at a time.
var ErrTraceBusy = errors.New("packets are being traced already: one session at a time")

const (
	// traceRing is the memory of the ring of a session, in bytes: about a thousand packets.
	traceRing = 1 << 20
	// traceGrace is how long a set of programs outlives its replacement: a packet that entered
	// it in the last moment must find the programs it jumps to.
	traceGrace = 50 * time.Millisecond
)

// TraceFilter chooses packets. At least one of Client and Service must be set.
type TraceFilter struct {
	// Client is at either end of the packet, or of the connection the packet belongs to; invalid: any.
	Client netip.Prefix
	// ClientPort is the port at that end; 0: any.
	ClientPort uint16
	// Service is the replicated id of the service the packet is for or belongs to; 0: any.
	Service uint32
}

// Validate reports everything that is wrong, joined.
func (f TraceFilter) Validate() error {
	var errs []error
	if !f.Client.IsValid() && f.Service == 0 {
		errs = append(errs, errors.New("neither client nor service is set"))
	}
	if !f.Client.IsValid() && f.ClientPort != 0 {
		errs = append(errs, errors.New("a client's port without its address"))
	}
	if f.Service > 65535 {
		errs = append(errs, fmt.Errorf("service id %d is above 65535", f.Service))
	}
	return errors.Join(errs...)
}

// TraceNames gives names to the numbers the data plane knows; either may be nil.
type TraceNames struct {
	Service func(id uint32) string // of a service
	Node    func(slot uint8) string
}

// TraceSummary is what a session saw.
type TraceSummary struct {
	Packets uint64 // that were given to emit
	Lost    uint64 // that matched and found no room on their way to user space
}

// Trace follows matching packets through the data plane and calls emit with each of them, from
// one goroutine, until ctx ends or Close is called (nil) or emit fails (its error). While it lasts the interfaces
// carry a second set of programs, which works on the same maps and says what it decides; it is
// put in place and taken out again without a packet being lost, and when this process dies in
// between, the next Open does that. Nothing of it is left when no session runs. started, unless
// nil, is called when packets are traced. A second session at the same time gets ErrTraceBusy.
func (d *Dataplane) Trace(ctx context.Context, f TraceFilter, names TraceNames, started func(), emit func(TraceEvent) error) (TraceSummary, error) {
	if err := f.Validate(); err != nil {
		return TraceSummary{}, fmt.Errorf("trace packets: %w", err)
	}
	if !d.tracing.TryLock() {
		return TraceSummary{}, ErrTraceBusy
	}
	defer d.tracing.Unlock()
	s := session{d: d, names: names, emit: emit, interfaces: map[uint32]string{}}
	err := s.run(ctx, f, started)
	if err != nil {
		err = fmt.Errorf("trace packets: %w", err)
	}
	return s.summary, err
}

// session is one run of Trace.
type session struct {
	d          *Dataplane
	names      TraceNames
	emit       func(TraceEvent) error
	set        programs
	boot       time.Time         // when the kernel's clock read zero
	interfaces map[uint32]string // names by index
	summary    TraceSummary
}

func (s *session) run(ctx context.Context, f TraceFilter, started func()) (err error) {
	if s.boot, err = bootTime(); err != nil {
		return err
	}
	if s.set, err = s.d.loadTraced(f); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.set.close()) }()
	reader, err := ringbuf.NewReader(s.set.traces)
	if err != nil {
		return errors.Join(fmt.Errorf("open ring: %w", err), s.set.unpin())
	}
	s.d.hooks.use(s.set)
	if started != nil {
		started()
	}
	err = s.read(ctx, reader)
	settled := s.d.hooks.use(s.d.programs)
	grace := time.NewTimer(traceGrace)
	defer grace.Stop()
	<-grace.C
	s.countLost()
	if !settled { // Run unpins them when the last interface is rid of them
		s.d.leftover = true
		return err
	}
	return errors.Join(err, s.set.unpin())
}

// loadTraced loads a set of programs that traces what the filter lets through.
func (d *Dataplane) loadTraced(f TraceFilter) (programs, error) {
	spec := d.spec.Copy()
	client, mask := traceClient(f.Client)
	settings := map[string]any{
		pontoonVarCfgTrace:        uint8(1),
		pontoonVarCfgTraceClient:  client,
		pontoonVarCfgTraceMask:    mask,
		pontoonVarCfgTracePort:    swap16(f.ClientPort),
		pontoonVarCfgTraceService: uint16(f.Service),
	}
	for name, value := range settings {
		if err := spec.Variables[name].Set(value); err != nil {
			return programs{}, fmt.Errorf("set %s: %w", name, err)
		}
	}
	spec.Maps[pontoonMapTraces].MaxEntries = traceRing
	return loadPrograms(spec, d.byName, d.programDir(), pontoonProgPontoonTraced, d.programs.xdp != nil)
}

// traceClient is a prefix in the form of the tables: address and mask, both zero for any.
func traceClient(p netip.Prefix) (client, mask pontoonAddr) {
	if !p.IsValid() {
		return client, mask
	}
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	client = toAddr(p.Addr())
	for i := range mask.B {
		ones := min(max(bits-8*i, 0), 8)
		mask.B[i] = ^byte(0xff >> ones)
		client.B[i] &= mask.B[i]
	}
	return client, mask
}

// read hands events to emit until ctx ends or emit fails.
func (s *session) read(ctx context.Context, reader *ringbuf.Reader) error {
	group, inner := errgroup.WithContext(ctx)
	group.Go(func() error {
		select {
		case <-inner.Done():
		case <-s.d.closing:
		}
		return reader.Close()
	})
	group.Go(func() error {
		var record ringbuf.Record
		for {
			err := reader.ReadInto(&record)
			if errors.Is(err, ringbuf.ErrClosed) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("read ring: %w", err)
			}
			if err := s.take(record.RawSample); err != nil {
				return err
			}
			if inner.Err() != nil {
				return nil
			}
		}
	})
	return group.Wait()
}

func (s *session) take(raw []byte) error {
	var t pontoonTrace
	if _, err := binary.Decode(raw, binary.NativeEndian, &t); err != nil {
		return fmt.Errorf("%w: %d bytes in the tracer's ring", ErrRecord, len(raw))
	}
	s.summary.Packets++
	return s.emit(s.event(&t))
}

// countLost adds up what the CPUs could not deliver.
func (s *session) countLost() {
	var perCPU []pontoonTrace
	if err := s.set.buffer.Lookup(uint32(0), &perCPU); err != nil {
		s.d.log.Warn("tracer's losses not read", "err", err)
		return
	}
	for _, t := range perCPU {
		s.summary.Lost += t.Lost
	}
}

// interfaceName names an interface of the data plane's namespace.
func (s *session) interfaceName(index uint32) string {
	if index == 0 {
		return ""
	}
	name, known := s.interfaces[index]
	if !known {
		name = fmt.Sprintf("interface %d", index)
		if l, err := s.d.hooks.nl.LinkByIndex(int(index)); err == nil {
			name = l.Attrs().Name
		}
		s.interfaces[index] = name
	}
	return name
}

// endpoint is where the endpoint of an id is; invalid when there is none.
func (s *session) endpoint(id uint16) netip.AddrPort {
	var e pontoonEndpoint
	if id == 0 || s.d.maps.Endpoints.Lookup(uint32(id), &e) != nil || e.Service == 0 {
		return netip.AddrPort{}
	}
	return addrPort(e.Addr, e.Port)
}

func bootTime() (time.Time, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	return time.Now().Add(-time.Duration(now.Nano())).Round(0), nil
}
