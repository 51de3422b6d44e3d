package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// refsPerEntry is how many endpoint ids one entry of the selection map holds.
const refsPerEntry = len(pontoonReferences{}.Ref)

// installed is a service entry and the table it points at.
type installed struct {
	value pontoonService
	table []uint16 // endpoint ids
}

// tables is the book of what stands in the maps that Sync writes. It is read from the maps when
// they are opened, so nothing about it needs to be kept elsewhere.
type tables struct {
	maps      *pontoonMaps
	services  map[pontoonServiceKey]installed
	endpoints map[uint16]pontoonEndpoint
	leaving   map[uint16]time.Time // entries that no table names any more, and since when
	ranges    map[pontoonRangeKey]pontoonRange
	origins   map[pontoonRangeKey]uint32
	vips      map[pontoonAddr]uint32
	blocks    blocks // of the selection map, in entries
	sources   sourceLists
	traffic   *trafficBook
}

// load reads the maps.
func (t *tables) load(m *pontoonMaps) error {
	t.maps = m
	t.services = map[pontoonServiceKey]installed{}
	t.endpoints, t.leaving = map[uint16]pontoonEndpoint{}, map[uint16]time.Time{}
	t.blocks = blocks{size: m.Selection.MaxEntries()}
	t.sources = sourceLists{m: m.Sources, blocks: blocks{size: m.Sources.MaxEntries()}}
	var key pontoonServiceKey
	var value pontoonService
	entries := m.Services.Iterate()
	for entries.Next(&key, &value) {
		if err := t.loadService(key, value); err != nil {
			return err
		}
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read services: %w", err)
	}
	if err := t.loadEndpoints(); err != nil {
		return err
	}
	if err := t.traffic.open(m.Traffic, t.endpoints); err != nil {
		return err
	}
	ranges, err := readMap[pontoonRangeKey, pontoonRange](m.Ranges)
	if err != nil {
		return fmt.Errorf("read port ranges: %w", err)
	}
	t.ranges = ranges
	if t.origins, err = readMap[pontoonRangeKey, uint32](m.Origins); err != nil {
		return fmt.Errorf("read origins: %w", err)
	}
	if t.vips, err = readMap[pontoonAddr, uint32](m.Vips); err != nil {
		return fmt.Errorf("read vips: %w", err)
	}
	return nil
}

func (t *tables) loadService(key pontoonServiceKey, value pontoonService) error {
	entry := installed{value: value}
	if value.TableLen > 0 {
		block := blockOf(value)
		if !t.blocks.claim(block) {
			return fmt.Errorf("service %d: selection block overlaps another", value.Id)
		}
		entries := make([]pontoonReferences, block.length)
		for i := range entries {
			if err := t.maps.Selection.Lookup(block.base+uint32(i), &entries[i]); err != nil {
				return fmt.Errorf("read selection table of service %d: %w", value.Id, err)
			}
			entry.table = append(entry.table, entries[i].Ref[:]...)
		}
		entry.table = entry.table[:value.TableLen]
	}
	t.services[key] = entry
	return nil
}

// loadEndpoints reads the whole array: which ids are in use is written nowhere else.
func (t *tables) loadEndpoints() error {
	all := make([]pontoonEndpoint, t.maps.Endpoints.MaxEntries())
	keys := make([]uint32, len(all))
	var cursor ebpf.MapBatchCursor
	n, err := t.maps.Endpoints.BatchLookup(&cursor, keys, all, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("read endpoints: %w", err)
	}
	for i, ep := range all[:n] {
		if ep.Service == 0 {
			continue
		}
		t.endpoints[uint16(keys[i])] = ep
		if err := t.sources.adopt(span{uint32(ep.SourceBase), uint32(ep.SourceLen)}); err != nil {
			return fmt.Errorf("endpoint %d: %w", keys[i], err)
		}
	}
	return nil
}

// blockOf is the run of selection entries that a service's table takes.
func blockOf(v pontoonService) span {
	return span{v.TableBase / uint32(refsPerEntry), entriesFor(v.TableLen)}
}

func entriesFor(references uint32) uint32 {
	return (references + uint32(refsPerEntry) - 1) / uint32(refsPerEntry)
}

// roomFor says in words that a map takes no more of something.
func roomFor(what string, m *ebpf.Map, err error) error {
	if errors.Is(err, errTableFull) || errors.Is(err, errNoSpace) {
		return fmt.Errorf("the %s table is full, it takes %d", what, m.MaxEntries())
	}
	return err
}

// remove takes a service out.
func (t *tables) remove(key pontoonServiceKey, now time.Time) error {
	if err := t.maps.Services.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove service %d: %w", t.services[key].value.Id, err)
	}
	old := t.services[key].value
	if old.TableLen > 0 {
		t.blocks.release(blockOf(old), now)
	}
	delete(t.services, key)
	return nil
}

// endpointValue is the entry of e, and a run of sources for it.
func (t *tables) endpointValue(s *Service, e *Endpoint, now time.Time) (pontoonEndpoint, error) {
	run, err := t.sources.find(e.Sources, now)
	if err != nil {
		return pontoonEndpoint{}, err
	}
	value := pontoonEndpoint{
		Addr: vipKey(e.Addr.Addr()), Port: swap16(e.Addr.Port()), Service: uint16(s.ID),
		SourceBase: uint16(run.base), SourceLen: uint16(run.length), Weight: e.Weight,
	}
	if e.takesNew() {
		value.Flags = uint8(pontoonEndpointFlagENDPOINT_F_NEW)
	}
	if s.Replicate == ReplicateNone || s.ReplicateMinAge > 0 {
		value.Flags |= uint8(pontoonEndpointFlagENDPOINT_F_QUIET)
	} else if s.Replicate == ReplicateAll {
		value.Flags |= uint8(pontoonEndpointFlagENDPOINT_F_EARLY)
	}
	if s.Shared {
		value.Flags |= uint8(pontoonEndpointFlagENDPOINT_F_SHARED)
	}
	return value, nil
}

// removeEndpoints takes out the entries whose id is not wanted, after no table names them. A packet that
// has read the old table may still look for them: like its block they stay for a while, but for the
// clients that were with them, and are emptied by a later call. One that a table still names, because what
// was to take its place could not be installed, stays until that has been done.
func (t *tables) removeEndpoints(wanted *idSet, now time.Time) error {
	var errs []error
	for id, value := range t.endpoints {
		if wanted.has(uint32(id)) {
			continue
		}
		value.Flags &^= uint8(pontoonEndpointFlagENDPOINT_F_NEW)
		if err := t.maps.Endpoints.Put(uint32(id), value); err != nil {
			errs = append(errs, fmt.Errorf("remove endpoint %d: %w", id, err))
			continue
		}
		delete(t.endpoints, id)
		t.leaving[id] = now
		t.traffic.went(id)
	}
	var named map[uint16]bool
	for id, since := range t.leaving {
		if now.Sub(since) < blockGrace {
			continue
		}
		if named == nil {
			named = t.named()
		}
		if named[id] {
			t.leaving[id] = now // packets read the table up to now
			continue
		}
		if err := t.maps.Endpoints.Put(uint32(id), pontoonEndpoint{}); err != nil {
			errs = append(errs, fmt.Errorf("remove endpoint %d: %w", id, err))
			continue
		}
		delete(t.leaving, id)
	}
	t.sources.collect(t.endpoints, now)
	return errors.Join(errs...)
}

// named returns the endpoints that are in a table of a service.
func (t *tables) named() map[uint16]bool {
	all := map[uint16]bool{}
	for _, s := range t.services {
		for _, id := range s.table {
			all[id] = true
		}
	}
	return all
}

// sourceLists hands out runs of the sources map: equal lists share one.
type sourceLists struct {
	m      *ebpf.Map
	blocks blocks
	lists  []sourceList
}

type sourceList struct {
	addrs []pontoonAddr
	run   span
}

// adopt takes over a run that an endpoint found in the maps names.
func (l *sourceLists) adopt(run span) error {
	if run.length == 0 || !l.blocks.claim(run) {
		return nil // none, or named by another endpoint already
	}
	list := sourceList{addrs: make([]pontoonAddr, run.length), run: run}
	for i := range list.addrs {
		if err := l.m.Lookup(run.base+uint32(i), &list.addrs[i]); err != nil {
			return fmt.Errorf("read SNAT sources: %w", err)
		}
	}
	l.lists = append(l.lists, list)
	return nil
}

// find returns a run that holds exactly these addresses, writing one if there is none.
func (l *sourceLists) find(addrs []netip.Addr, now time.Time) (span, error) {
	if len(addrs) == 0 {
		return span{}, nil
	}
	keys := make([]pontoonAddr, len(addrs))
	for i, a := range addrs {
		keys[i] = vipKey(a)
	}
	for _, list := range l.lists {
		if slices.Equal(list.addrs, keys) {
			return list.run, nil
		}
	}
	run, ok := l.blocks.allocate(uint32(len(keys)), now)
	if !ok {
		return span{}, fmt.Errorf("the table of SNAT sources is full, it takes %d", l.blocks.size)
	}
	for i := range keys {
		if err := l.m.Put(run.base+uint32(i), keys[i]); err != nil {
			l.blocks.release(run, now)
			return span{}, fmt.Errorf("write SNAT source: %w", err)
		}
	}
	l.lists = append(l.lists, sourceList{addrs: keys, run: run})
	return run, nil
}

// collect releases the runs that no endpoint names any more.
func (l *sourceLists) collect(endpoints map[uint16]pontoonEndpoint, now time.Time) {
	named := map[uint32]bool{}
	for _, ep := range endpoints {
		if ep.SourceLen > 0 {
			named[uint32(ep.SourceBase)] = true
		}
	}
	l.lists = slices.DeleteFunc(l.lists, func(list sourceList) bool {
		if named[list.run.base] {
			return false
		}
		l.blocks.release(list.run, now)
		return true
	})
}

// readMap returns all that is in a small map.
func readMap[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	var key K
	var value V
	all := map[K]V{}
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		all[key] = value
	}
	return all, entries.Err()
}
