package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/cilium/ebpf"
)

// tailPrograms are the programs that the entry program of the TC hook jumps to.
var tailPrograms = map[pontoonTail]string{
	pontoonTailTAIL_PARSE:  pontoonProgPontoonParse,
	pontoonTailTAIL_SLOW:   pontoonProgPontoonSlow,
	pontoonTailTAIL_ANSWER: pontoonProgPontoonAnswer,
	pontoonTailTAIL_XLAT:   pontoonProgPontoonXlat,
	pontoonTailTAIL_TUNNEL: pontoonProgPontoonTunnel,
	pontoonTailTAIL_ICMP:   pontoonProgPontoonIcmp,
}

// programs is one set: the program that is attached, and the array of those it jumps to. The
// kernel empties such an array when nobody holds it any more, so it is pinned as long as the
// set is in use, under a name of its own: sets replace each other in one step.
type programs struct {
	entry  *ebpf.Program
	tails  *ebpf.Map
	traces *ebpf.Map // what the tracer tells
	buffer *ebpf.Map // in which it gathers that
	pin    string
}

// loadPrograms loads the programs of spec, which work on the given maps, and pins their array
// below dir. One of the entry programs is loaded, the named one.
func loadPrograms(spec *ebpf.CollectionSpec, maps map[string]*ebpf.Map, dir, entry string) (programs, error) {
	for _, name := range []string{pontoonProgPontoonIngress, pontoonProgPontoonTraced} {
		if name != entry {
			delete(spec.Programs, name)
		}
	}
	contents := make([]ebpf.MapKV, 0, len(tailPrograms))
	for index, name := range tailPrograms {
		contents = append(contents, ebpf.MapKV{Key: uint32(index), Value: name})
	}
	spec.Maps[pontoonMapTails].Contents = contents
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: maps})
	if err != nil {
		return programs{}, fmt.Errorf("load programs: %w", err)
	}
	defer collection.Close()
	p := programs{
		entry:  collection.DetachProgram(entry),
		tails:  collection.DetachMap(pontoonMapTails),
		traces: collection.DetachMap(pontoonMapTraces),
		buffer: collection.DetachMap(pontoonMapTraceBuffer),
		pin:    filepath.Join(dir, strconv.FormatInt(time.Now().UnixNano(), 36)),
	}
	if err := p.tails.Pin(p.pin); err != nil {
		return programs{}, errors.Join(fmt.Errorf("pin program array: %w", err), p.close())
	}
	return p, nil
}

func (p programs) close() error {
	var errs []error
	if p.entry != nil {
		errs = append(errs, p.entry.Close())
	}
	for _, m := range []*ebpf.Map{p.tails, p.traces, p.buffer} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// removeOthers unpins the arrays of earlier sets, which no interface uses any more.
func (p programs) removeOthers(dir string) error {
	pins, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list pinned program arrays: %w", err)
	}
	var errs []error
	for _, pin := range pins {
		path := filepath.Join(dir, pin.Name())
		if path == p.pin {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("unpin program array: %w", err))
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
	m.NextHops = by[pontoonMapNextHops]
	m.Ranges = by[pontoonMapRanges]
	m.Selection = by[pontoonMapSelection]
	m.Services = by[pontoonMapServices]
	m.Sources = by[pontoonMapSources]
	m.SynMarks = by[pontoonMapSynMarks]
	m.Traffic = by[pontoonMapTraffic]
	m.Vips = by[pontoonMapVips]
	m.Work = by[pontoonMapWork]
}
