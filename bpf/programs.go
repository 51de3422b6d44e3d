package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// tailPrograms are the programs that the entry program of the TC hook jumps to.
var tailPrograms = map[pontoonTail]string{
	pontoonTailTAIL_PARSE:     pontoonProgPontoonParse,
	pontoonTailTAIL_SLOW:      pontoonProgPontoonSlow,
	pontoonTailTAIL_NEW:       pontoonProgPontoonNew,
	pontoonTailTAIL_ANSWER:    pontoonProgPontoonAnswer,
	pontoonTailTAIL_XLAT:      pontoonProgPontoonXlat,
	pontoonTailTAIL_XLAT_ICMP: pontoonProgPontoonXlatIcmp,
	pontoonTailTAIL_TUNNEL:    pontoonProgPontoonTunnel,
	pontoonTailTAIL_ICMP:      pontoonProgPontoonIcmp,
	pontoonTailTAIL_GATE:      pontoonProgPontoonGate,
	pontoonTailTAIL_BACK:      pontoonProgPontoonBack,
	pontoonTailTAIL_BRING:     pontoonProgPontoonBring,
}

// xdpTailPrograms are those of the XDP hook.
var xdpTailPrograms = map[pontoonTail]string{
	pontoonTailTAIL_SLOW: pontoonProgPontoonXdpSlow,
	pontoonTailTAIL_NEW:  pontoonProgPontoonXdpNew,
}

// programs is one set: for each hook the program that is attached, and the array of those it
// jumps to. The kernel empties such an array when nobody holds it any more, so a set is pinned as
// long as it is in use, under a name of its own: sets replace each other in one step.
type programs struct {
	entry    *ebpf.Program // of the TC hook
	tails    *ebpf.Map
	xdp      *ebpf.Program // nil: not loaded
	xdpTails *ebpf.Map
	traces   *ebpf.Map // what the tracer tells
	buffer   *ebpf.Map // in which it gathers that
	pin      string
}

// loadPrograms loads the programs of spec, which work on the given maps, and pins them
// below dir. One of the entry programs is loaded, the named one; those of the XDP hook when xdp
// is set. A set that is pinned there and would be the same is opened instead, but for one that traces.
func loadPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, dir, entry string, xdp bool) (programs, error) {
	id, err := identity(spec, maps, entry, xdp)
	if err != nil {
		return programs{}, err
	}
	if entry == pontoonProgPontoonIngress { // in the ring of a tracing set stands what an earlier session was told
		if p, found := reuse(spec, dir, id, xdp); found {
			return p, nil
		}
	}
	p, err := verifyPrograms(spec, maps, entry, xdp)
	if err != nil {
		return programs{}, err
	}
	p.pin = pinName(dir, strconv.FormatInt(time.Now().UnixNano(), 36), id)
	if err := p.pinAll(); err != nil {
		return programs{}, errors.Join(err, p.unpin(), p.close())
	}
	return p, nil
}

// verifyPrograms has the kernel look through the programs and take them.
func verifyPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, entry string, xdp bool) (programs, error) {
	for _, name := range []string{pontoonProgPontoonIngress, pontoonProgPontoonTraced} {
		if name != entry {
			delete(spec.Programs, name)
		}
	}
	delete(spec.Programs, pontoonProgPontoonEnter)
	delete(spec.Maps, pontoonMapArrivals)
	if !xdp {
		withoutXDP(spec)
	}
	own, err := makeOwnMaps(spec, maps)
	if err != nil {
		return programs{}, fmt.Errorf("load programs: %w", err)
	}
	defer own.Close()
	loaded, err := verifyAll(spec.Programs, func(name string) *ebpf.Map {
		if m := maps[name]; m != nil {
			return m
		}
		return own.Maps[name]
	})
	if err != nil {
		return programs{}, fmt.Errorf("load programs: %w", err)
	}
	defer closePrograms(loaded)
	errs := []error{fillArray(own.Maps[pontoonMapTails], contents(spec, tailPrograms), loaded)}
	if xdp {
		errs = append(errs, fillArray(own.Maps[pontoonMapXdpTails], contents(spec, xdpTailPrograms), loaded))
	}
	if err := errors.Join(errs...); err != nil {
		return programs{}, fmt.Errorf("load programs: %w", err)
	}
	p := programs{
		entry:  loaded[entry],
		tails:  own.DetachMap(pontoonMapTails),
		traces: own.DetachMap(pontoonMapTraces),
		buffer: own.DetachMap(pontoonMapTraceBuffer),
	}
	delete(loaded, entry)
	if xdp {
		p.xdp, p.xdpTails = loaded[pontoonProgPontoonXdp], own.DetachMap(pontoonMapXdpTails)
		delete(loaded, pontoonProgPontoonXdp)
	}
	return p, nil
}

func contents(spec *ebpf.CollectionSpec, tails map[pontoonTail]string) []ebpf.MapKV {
	var out []ebpf.MapKV
	for index, name := range tails {
		if spec.Programs[name] != nil {
			out = append(out, ebpf.MapKV{Key: uint32(index), Value: name})
		}
	}
	return out
}

// withoutXDP leaves in spec what the TC hook needs.
func withoutXDP(spec *ebpf.CollectionSpec) {
	delete(spec.Maps, pontoonMapXdpTails)
	for name, p := range spec.Programs {
		if p.Type == ebpf.XDP {
			delete(spec.Programs, name)
		}
	}
}

func (p programs) close() error {
	var errs []error
	for _, program := range []*ebpf.Program{p.entry, p.xdp} {
		if program != nil {
			errs = append(errs, program.Close())
		}
	}
	for _, m := range []*ebpf.Map{p.tails, p.xdpTails, p.traces, p.buffer} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// unpin lets the kernel empty the arrays once nothing runs the programs any more.
func (p programs) unpin() error {
	dir, name := filepath.Split(p.pin)
	return removePins(dir, func(pin string) bool { return strings.HasPrefix(pin, name) })
}

// removeOthers unpins the earlier sets, which no interface uses any more.
func (p programs) removeOthers(dir string) error {
	mine := filepath.Base(p.pin)
	return removePins(dir, func(pin string) bool { return !strings.HasPrefix(pin, mine) })
}

func removePins(dir string, which func(name string) bool) error {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list pinned programs: %w", err)
	}
	var errs []error
	for _, pin := range pins {
		if !which(pin.Name()) {
			continue
		}
		if err := os.Remove(filepath.Join(dir, pin.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin program: %w", err))
		}
	}
	return errors.Join(errs...)
}

// take sets the fields of the maps that outlive a set of programs.
func (m *pontoonMaps) take(by map[string]*ebpf.Map) {
	m.Active = by[pontoonMapActive]
	m.Affinities = by[pontoonMapAffinities]
	m.Control = by[pontoonMapControl]
	m.Counters = by[pontoonMapCounters]
	m.Endpoints = by[pontoonMapEndpoints]
	m.Events = by[pontoonMapEvents]
	m.Flows = by[pontoonMapFlows]
	m.Fragments = by[pontoonMapFragments]
	m.HalfOpen = by[pontoonMapHalfOpen]
	m.Leases = by[pontoonMapLeases]
	m.NextHops = by[pontoonMapNextHops]
	m.Living = by[pontoonMapLiving]
	m.Origins = by[pontoonMapOrigins]
	m.Peers = by[pontoonMapPeers]
	m.Predecessors = by[pontoonMapPredecessors]
	m.Ranges = by[pontoonMapRanges]
	m.Selection = by[pontoonMapSelection]
	m.Services = by[pontoonMapServices]
	m.Sources = by[pontoonMapSources]
	m.Stations = by[pontoonMapStations]
	m.SynMarks = by[pontoonMapSynMarks]
	m.Terms = by[pontoonMapTerms]
	m.Traffic = by[pontoonMapTraffic]
	m.Vips = by[pontoonMapVips]
	m.Work = by[pontoonMapWork]
}
