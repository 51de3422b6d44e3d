package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// installed is a service entry and the table it points at.
type installed struct {
	value pontoonService
	table []uint32 // endpoint indexes
}

// endpointValue is what identifies an entry of the endpoints map.
type endpointValue = pontoonEndpoint

// tables is the book of what stands in the services, selection and endpoints maps. It is read
// from the maps when they are opened, so nothing about it needs to be kept elsewhere.
type tables struct {
	maps     *pontoonMaps
	services map[pontoonServiceKey]installed
	blocks   blocks // of the selection map
	slots    blocks // of the endpoints map
	index    map[endpointValue]uint32
}

// load reads the maps.
func (t *tables) load(m *pontoonMaps) error {
	t.maps = m
	t.services = map[pontoonServiceKey]installed{}
	t.index = map[endpointValue]uint32{}
	t.blocks = blocks{size: m.Selection.MaxEntries()}
	t.slots = blocks{size: m.Endpoints.MaxEntries()}
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
	return nil
}

func (t *tables) loadService(key pontoonServiceKey, value pontoonService) error {
	entry := installed{value: value}
	if value.TableLen > 0 {
		if !t.blocks.claim(span{value.TableBase, value.TableLen}) {
			return fmt.Errorf("service %d: selection block overlaps another", value.Id)
		}
		entry.table = make([]uint32, value.TableLen)
	}
	for i := range entry.table {
		if err := t.maps.Selection.Lookup(value.TableBase+uint32(i), &entry.table[i]); err != nil {
			return fmt.Errorf("read selection table of service %d: %w", value.Id, err)
		}
	}
	for _, index := range distinct(entry.table) {
		var ep pontoonEndpoint
		if err := t.maps.Endpoints.Lookup(index, &ep); err != nil {
			return fmt.Errorf("read endpoint %d: %w", index, err)
		}
		if t.slots.claim(span{index, 1}) {
			t.index[ep] = index
		}
	}
	t.services[key] = entry
	return nil
}

func distinct(table []uint32) []uint32 {
	out := slices.Clone(table)
	slices.Sort(out)
	return slices.Compact(out)
}

// install makes key lead to the wanted value and table. The table goes into a block that no
// packet looks at, then one update of the service entry switches over.
func (t *tables) install(key pontoonServiceKey, value pontoonService, table []uint32, now time.Time) (bool, error) {
	old, exists := t.services[key]
	value.TableBase, value.TableLen = old.value.TableBase, uint32(len(table))
	same := exists && slices.Equal(old.table, table)
	if same && old.value == value {
		return false, nil
	}
	if !same && len(table) > 0 {
		block, ok := t.blocks.allocate(uint32(len(table)), now)
		if !ok {
			return false, fmt.Errorf("the selection table is full: no room for %d of %d entries", len(table), t.blocks.size)
		}
		value.TableBase = block.base
		if err := t.writeBlock(block.base, table); err != nil {
			t.blocks.release(block, now)
			return false, err
		}
	}
	if len(table) == 0 {
		value.TableBase = 0
	}
	if err := t.maps.Services.Put(key, value); err != nil {
		if !same && len(table) > 0 {
			t.blocks.release(span{value.TableBase, value.TableLen}, now)
		}
		return false, fmt.Errorf("write service %d: %w", value.Id, roomFor("service", t.maps.Services, err))
	}
	if !same && old.value.TableLen > 0 {
		t.blocks.release(span{old.value.TableBase, old.value.TableLen}, now)
	}
	t.services[key] = installed{value: value, table: table}
	return true, nil
}

// roomFor says in words that a map takes no more of something.
func roomFor(what string, m *ebpf.Map, err error) error {
	if errors.Is(err, errTableFull) {
		return fmt.Errorf("the %s table is full, it takes %d", what, m.MaxEntries())
	}
	return err
}

func (t *tables) writeBlock(base uint32, table []uint32) error {
	const chunk = 4096
	for at := 0; at < len(table); at += chunk {
		part := table[at:min(at+chunk, len(table))]
		keys := make([]uint32, len(part))
		for i := range keys {
			keys[i] = base + uint32(at+i)
		}
		if _, err := t.maps.Selection.BatchUpdate(keys, part, nil); err != nil {
			return fmt.Errorf("write selection table: %w", err)
		}
	}
	return nil
}

// remove takes a service out.
func (t *tables) remove(key pontoonServiceKey, now time.Time) error {
	if err := t.maps.Services.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove service %d: %w", t.services[key].value.Id, err)
	}
	old := t.services[key].value
	if old.TableLen > 0 {
		t.blocks.release(span{old.TableBase, old.TableLen}, now)
	}
	delete(t.services, key)
	return nil
}

// endpoint returns the index of an entry that says ep, writing one if there is none.
func (t *tables) endpoint(ep pontoonEndpoint, now time.Time) (uint32, error) {
	if index, ok := t.index[ep]; ok {
		return index, nil
	}
	slot, ok := t.slots.allocate(1, now)
	if !ok {
		return 0, fmt.Errorf("the endpoint table is full, it takes %d", t.slots.size)
	}
	if err := t.maps.Endpoints.Put(slot.base, ep); err != nil {
		t.slots.release(slot, now)
		return 0, fmt.Errorf("write endpoint: %w", err)
	}
	t.index[ep] = slot.base
	return slot.base, nil
}

// collect releases endpoint entries that no table names any more.
func (t *tables) collect(now time.Time) {
	named := map[uint32]bool{}
	for _, entry := range t.services {
		for _, index := range entry.table {
			named[index] = true
		}
	}
	for ep, index := range t.index {
		if !named[index] {
			delete(t.index, ep)
			t.slots.release(span{index, 1}, now)
		}
	}
}
