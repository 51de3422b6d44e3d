package bpf

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// The kernel looks through the programs of a data plane for most of the time that a packet test
// takes. So a test whose data plane is like that of an earlier one gets the earlier one's maps,
// emptied, and its programs. All else is its own: pins, interfaces, links, what is kept in Go.
// Data planes that find pins are opened as in life.

// stockLimit is how many sets nobody uses are kept; each takes about 90 MB of kernel memory.
const stockLimit = 6

// smallIDs are cleared in any case: records may name what no data plane of a test was told of.
const smallIDs = 4096

// wares is the stock of this process.
var wares stock

type stock struct {
	mu   sync.Mutex
	sets []*goods          // the one longest unused first
	out  map[string]*goods // by pin folder: what is in use
}

// lent notes who has what; nil: it is back.
func (s *stock) lent(dir string, g *goods) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out == nil {
		s.out = map[string]*goods{}
	}
	s.out[dir] = g
}

// told notes what a data plane that ends knew of what it had.
func (s *stock) told(d *Dataplane) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g := s.out[d.opts.PinDir]; g != nil {
		g.note(d)
	}
}

// kind is what decides how maps are made and programs loaded.
type kind struct {
	slot                            uint8
	flows, halfOpen, events, xdpMax uint32
	bring                           uint32
	hops                            time.Duration
	xdp, generic                    bool
	without                         string
}

func kindOf(o Options) kind {
	o = o.withDefaults()
	return kind{
		slot: o.Slot, flows: o.MaxFlows, halfOpen: o.MaxHalfOpen, events: o.EventsBytes, xdpMax: o.XDPMax, bring: o.bringMax, hops: o.nextHopLife,
		xdp: o.Hook == HookXDP || o.Hook == HookXDPGeneric, generic: o.Hook == HookXDPGeneric,
		without: strings.Join(o.without, " "),
	}
}

// goods are the kernel objects of one data plane, by descriptors of the stock's own.
type goods struct {
	kind     kind
	spec     *ebpf.CollectionSpec
	clock    clock
	doomer   doomer
	finder   *finder // without shared memory: each data plane that it is lent to makes its own
	maps     map[string]*ebpf.Map
	own      []*ebpf.Map // of the programs alone: what they remember between packets
	programs programs
	seed     uint32          // of the half-open table, which the programs know
	tails    int             // programs that are jumped to
	ids      map[uint32]bool // of services and endpoints that may stand in the maps
}

// suits tells whether the data plane may come out of the stock, or go into it: a plain one that
// finds nothing of an earlier life.
func (s *stock) suits(tb testing.TB, o Options) bool {
	_, benchmark := tb.(*testing.B)
	_, err := os.Stat(o.PinDir)
	return !benchmark && o.objects == nil && os.IsNotExist(err) && kindOf(o).flows+kindOf(o).halfOpen <= 1<<17
}

// take returns nil when there is nothing of that kind.
func (s *stock) take(k kind) *goods {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, g := range s.sets {
		if g.kind == k {
			s.sets = append(s.sets[:i:i], s.sets[i+1:]...)
			return g
		}
	}
	return nil
}

// put takes back what is as it was, emptied.
func (s *stock) put(g *goods) error {
	if len(g.jumps()) != g.tails { // a test has taken programs out
		return g.close()
	}
	if err := g.clear(); err != nil {
		return errors.Join(err, g.close())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sets = append(s.sets, g)
	if len(s.sets) <= stockLimit {
		return nil
	}
	oldest := s.sets[0]
	s.sets = s.sets[1:]
	return oldest.close()
}

// goodsOf holds what d has in the kernel; nil when its programs are not those of its kind.
func goodsOf(d *Dataplane) (*goods, error) {
	g := &goods{kind: kindOf(d.opts), spec: d.spec, maps: map[string]*ebpf.Map{}, ids: map[uint32]bool{}}
	if g.kind.xdp != (d.programs.xdp != nil) {
		return nil, nil
	}
	c := cloner{}
	for name, m := range d.byName {
		g.maps[name] = c.table(m)
	}
	g.programs, g.clock, g.doomer = c.set(d.programs), c.clock(*d.clock), doomer{c.program(d.doomer.program)}
	g.finder, g.tails, g.seed = c.finder(d.finder), len(g.jumps()), d.half.seed
	own, err := g.ownMaps()
	g.own = own
	return g, errors.Join(c.err, err)
}

// ownMaps finds the maps that no data plane holds, only its programs.
func (g *goods) ownMaps() ([]*ebpf.Map, error) {
	found := map[ebpf.MapID]bool{}
	note := func(p *ebpf.Program) error {
		info, err := p.Info()
		if err != nil {
			return err
		}
		of, _ := info.MapIDs()
		for _, id := range of {
			found[id] = true
		}
		return nil
	}
	errs := []error{note(g.programs.entry)}
	if g.programs.xdp != nil {
		errs = append(errs, note(g.programs.xdp))
	}
	for _, id := range g.jumps() {
		p, err := ebpf.NewProgramFromID(id)
		if err != nil {
			return nil, err
		}
		errs = append(errs, note(p), p.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	for _, m := range g.maps {
		info, err := m.Info()
		if err != nil {
			return nil, err
		}
		id, _ := info.ID()
		delete(found, id)
	}
	var own []*ebpf.Map
	for id := range found {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		if m.Type() != ebpf.PerCPUArray { // constants, programs
			_ = m.Close()
			continue
		}
		own = append(own, m)
	}
	return own, nil
}

// lend gives d what it would otherwise make (Options.objects).
func (g *goods) lend(d *Dataplane) error {
	if err := g.empty(); err != nil {
		return err
	}
	c := cloner{}
	d.byName = map[string]*ebpf.Map{}
	for name, m := range g.maps {
		d.byName[name] = c.table(m)
	}
	lent := c.clock(g.clock)
	d.spec, d.clock, d.doomer, d.programs = g.spec, &lent, &doomer{c.program(g.doomer.program)}, c.set(g.programs)
	d.finder = c.finder(g.finder)
	if c.err != nil {
		return c.err
	}
	if err := d.finder.share(); err != nil {
		return err
	}
	d.maps.take(d.byName)
	errs := []error{d.maps.Control.Put(uint32(0), pontoonControlBlock{HalfSeed: g.seed}), d.half.open(d.maps.HalfOpen, g.seed)}
	for name, m := range d.byName {
		errs = append(errs, m.Pin(filepath.Join(d.mapDir(), name)))
	}
	id, err := identity(g.spec, d.byName, pontoonProgPontoonIngress, g.kind.xdp)
	if err != nil {
		return err
	}
	d.programs.pin = pinName(d.programDir(), "lent", id)
	errs = append(errs, d.programs.pinAll())
	return errors.Join(errs...)
}

func (g *goods) close() error {
	errs := []error{g.programs.close()}
	for _, m := range append(slices.Collect(maps.Values(g.maps)), g.own...) {
		errs = append(errs, m.Close())
	}
	g.clock.close()
	g.doomer.close()
	return errors.Join(append(errs, g.finder.close())...)
}

// jumps are the programs that are jumped to.
func (g *goods) jumps() []ebpf.ProgramID {
	var all []ebpf.ProgramID
	for _, m := range []*ebpf.Map{g.programs.tails, g.programs.xdpTails} {
		if m == nil {
			continue
		}
		for i := range m.MaxEntries() {
			var id uint32
			if m.Lookup(i, &id) == nil {
				all = append(all, ebpf.ProgramID(id))
			}
		}
	}
	return all
}

// clear makes the maps what they are when they are new, but for what nobody reads before it is
// written, in life as here: selection tables, source lists, and the figures of endpoints that no data plane
// of the test was told of.
func (g *goods) clear() error {
	for id := range uint32(smallIDs) {
		g.ids[id] = true
	}
	for name, m := range g.maps {
		var err error
		switch name {
		case pontoonMapSelection, pontoonMapSources:
		case pontoonMapActive:
			var a accounts
			if err = a.open(m, nil); err == nil {
				clear(a.counts)
				err = a.close()
			}
		case pontoonMapHalfOpen:
			var t halfTable
			if err = t.open(m, g.seed); err == nil {
				clear(t.buckets)
				err = t.close()
			}
		case pontoonMapEndpoints, pontoonMapWork, pontoonMapTraffic:
			err = zero(m, slices.Collect(maps.Keys(g.ids)))
		case pontoonMapSynMarks:
			if n, _ := counter(g.maps[pontoonMapCounters], pontoonCounterDROP_FLOOD); n > 0 {
				err = zero(m, allOf(m))
			}
		case pontoonMapCounters, pontoonMapControl, pontoonMapStations, pontoonMapTerms, pontoonMapPredecessors,
			pontoonMapPeers, pontoonMapLiving:
			err = zero(m, allOf(m))
		case pontoonMapEvents:
			err = drain(m)
		default:
			err = removeAll(m)
		}
		if err != nil {
			return fmt.Errorf("clear %s: %w", name, err)
		}
	}
	for _, m := range g.own {
		if err := zero(m, allOf(m)); err != nil {
			return fmt.Errorf("clear %s: %w", m, err)
		}
	}
	clear(g.ids)
	return nil
}

// note remembers the numbers that d was told of: what their entries hold must go.
func (g *goods) note(d *Dataplane) {
	d.traffic.mu.Lock()
	defer d.traffic.mu.Unlock()
	for _, known := range []map[uint16]trafficPlace{d.traffic.live, d.traffic.past} {
		for id, at := range known {
			g.ids[uint32(id)], g.ids[uint32(at.service)] = true, true
		}
	}
	for _, s := range d.tables.services {
		g.ids[uint32(s.value.Id)] = true
	}
}

// allOf returns every index of an array.
func allOf(m *ebpf.Map) []uint32 {
	all := make([]uint32, m.MaxEntries())
	for i := range all {
		all[i] = uint32(i)
	}
	return all
}

func removeAll(m *ebpf.Map) error {
	var keys [][]byte
	key, err := m.NextKeyBytes(nil)
	for ; err == nil && key != nil; key, err = m.NextKeyBytes(key) {
		keys = append(keys, key)
	}
	for _, key := range keys {
		if gone := m.Delete(key); !errors.Is(gone, ebpf.ErrKeyNotExist) { // an LRU may have been quicker
			err = errors.Join(err, gone)
		}
	}
	return err
}

// zero overwrites entries of an array. The library would look at every byte of the values on their
// way, which takes too long for every test.
func zero(m *ebpf.Map, keys []uint32) error {
	if len(keys) == 0 {
		return nil
	}
	size := int(m.ValueSize()+7) / 8
	if m.Type() == ebpf.PerCPUArray {
		size *= ebpf.MustPossibleCPU()
	}
	zeros := make([]uint64, len(keys)*size)
	batch := struct { // of union bpf_attr (linux/bpf.h)
		in, out           uint64
		keys, values      unsafe.Pointer
		count, fd         uint32
		elemFlags, noflag uint64
	}{keys: unsafe.Pointer(&keys[0]), values: unsafe.Pointer(&zeros[0]), count: uint32(len(keys)), fd: uint32(m.FD())}
	_, _, errno := unix.Syscall(unix.SYS_BPF, unix.BPF_MAP_UPDATE_BATCH, uintptr(unsafe.Pointer(&batch)), unsafe.Sizeof(batch))
	runtime.KeepAlive(m)
	if errno != 0 {
		return errno
	}
	return nil
}

// drain reads the ring to its end.
func drain(m *ebpf.Map) error {
	reader, err := ringbuf.NewReader(m)
	if err != nil {
		return err
	}
	defer reader.Close()
	var record ringbuf.Record
	for reader.AvailableBytes() > 0 {
		if err := reader.ReadInto(&record); err != nil {
			return err
		}
	}
	return nil
}

// empty is what every test may rely on at its start.
func (g *goods) empty() error {
	for name, m := range g.maps {
		switch m.Type() {
		case ebpf.Hash, ebpf.LRUHash, ebpf.LPMTrie:
			if key, err := m.NextKeyBytes(nil); err != nil || key != nil {
				return fmt.Errorf("%s is not empty: %x, %w", name, key, err)
			}
		}
	}
	for i := range g.maps[pontoonMapCounters].MaxEntries() {
		if n, err := counter(g.maps[pontoonMapCounters], pontoonCounter(i)); err != nil || n != 0 {
			return fmt.Errorf("counter %d is %d, %w", i, n, err)
		}
	}
	var connections uint64
	if err := g.maps[pontoonMapActive].Lookup(uint32(0), &connections); err != nil || connections != 0 {
		return fmt.Errorf("%d connections, %w", connections, err)
	}
	return nil
}

// cloner makes second descriptors and keeps the first error.
type cloner struct{ err error }

func (c *cloner) table(m *ebpf.Map) *ebpf.Map {
	if m == nil {
		return nil
	}
	out, err := m.Clone()
	c.err = errors.Join(c.err, err)
	return out
}

func (c *cloner) program(p *ebpf.Program) *ebpf.Program {
	if p == nil {
		return nil
	}
	out, err := p.Clone()
	c.err = errors.Join(c.err, err)
	return out
}

func (c *cloner) set(p programs) programs {
	return programs{
		entry: c.program(p.entry), xdp: c.program(p.xdp), tails: c.table(p.tails), xdpTails: c.table(p.xdpTails),
		traces: c.table(p.traces), buffer: c.table(p.buffer),
	}
}

func (c *cloner) finder(from *finder) *finder {
	return &finder{program: c.program(from.program), asked: c.table(from.asked)}
}

func (c *cloner) clock(from clock) clock {
	return clock{program: c.program(from.program), values: c.table(from.values), hz: from.hz}
}

// A data plane out of the stock has nothing of the test before.
func TestStockIsEmptyForTheNextTest(t *testing.T) {
	first := newBench(t, func(o *Options) { o.Slot = 7 })
	s := service(ModeFullNAT, endpoint1, endpoint2)
	s.Affinity = defaultTCPIdle
	first.sync(s)
	first.talk(clientPort, vipPort)
	g, err := goodsOf(first.Dataplane)
	if err != nil || g == nil {
		t.Fatal(g, err)
	}
	defer g.close()
	if err := g.empty(); err == nil {
		t.Fatal("a table in use passes for empty")
	}
	g.note(first.Dataplane)
	if err := g.clear(); err != nil {
		t.Fatal(err)
	}
	if err := g.empty(); err != nil {
		t.Error(err)
	}
	for name, m := range g.maps {
		if t := m.Type(); t != ebpf.Array && t != ebpf.PerCPUArray || name == pontoonMapSelection || name == pontoonMapSources {
			continue
		}
		for key := range min(m.MaxEntries(), 1<<12) {
			value, err := m.LookupBytes(key)
			if err != nil || strings.Trim(string(value), "\x00") != "" {
				t.Fatalf("%s[%d] is %x, %v", name, key, value, err)
			}
		}
	}
}
