package bpf

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// installation is what one Sync writes of endpoints, tables and services. It goes in loads of some thousand entries, so that
// it takes few calls however many services there are, and those that come first need not wait for the last. What fails of
// one service leaves that one as it was, and no other.
type installation struct {
	t        *tables
	now      time.Time
	services []Service
	errs     []error // by service
	changed  int     // services

	endpoints endpointChanges
	changes   []serviceChange // of the load
	load      uint32          // entries of the selection map that they write
	keys      []uint32        // room for writeTables
	entries   []pontoonReferences
}

type endpointChanges struct {
	ids     []uint32
	values  []pontoonEndpoint
	service []int // whose they are, by position
}

// serviceChange is a service that is to get another entry.
type serviceChange struct {
	service int // by position
	key     pontoonServiceKey
	value   pontoonService
	table   []uint16
	old     installed
	anew    bool // the table is written, too: it is another one
}

// install makes the maps say what the services do. The order is what keeps packets right: endpoints before tables that name
// them; tables into blocks that no packet looks at; then one update of each service's entry switches over. Small tables go
// first: of Maglev's a few hundred take longer than thousands of the others.
func (d *Dataplane) install(services []Service, stop func() error, now time.Time) (changed int, err error) {
	in := installation{t: &d.tables, now: now, services: services, errs: make([]error, len(services))}
	for i := range services {
		in.addEndpoints(i)
	}
	in.writeEndpoints()
	for _, large := range []bool{false, true} {
		for i := range services {
			s := &services[i]
			if in.errs[i] != nil || large != (s.Algorithm == AlgorithmMaglev) {
				continue
			}
			if err := stop(); err != nil {
				return in.changed, errors.Join(append(in.errs, err)...)
			}
			key := serviceKey(*s)
			in.addService(i, key, d.serviceValue(s), d.choices.table(key, s))
			if in.load >= batchMost {
				in.finish()
			}
		}
	}
	in.finish()
	return in.changed, errors.Join(in.errs...)
}

// finish installs the services that were gathered.
func (in *installation) finish() {
	in.placeTables()
	in.writeTables()
	in.writeServices()
	in.changes, in.load = in.changes[:0], 0
}

// fail notes what is wrong with a service; the first reason counts.
func (in *installation) fail(service int, format string, args ...any) {
	if in.errs[service] == nil {
		in.errs[service] = fmt.Errorf("service %d: %w", in.services[service].ID, fmt.Errorf(format, args...))
	}
}

// addEndpoints gathers the endpoints of a service whose entries are to change.
func (in *installation) addEndpoints(service int) {
	s := &in.services[service]
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		id := uint16(e.ID)
		value, err := in.t.endpointValue(s, e, in.now)
		old, ok := in.t.endpoints[id]
		if err == nil && ok && old == value {
			continue
		}
		if err == nil && (!ok || placeOf(&old) != placeOf(&value)) {
			err = in.t.traffic.came(id, &value)
		}
		if err != nil {
			in.fail(service, "endpoint %s: %w", e.Addr, err)
			return
		}
		c := &in.endpoints
		c.ids, c.values, c.service = append(c.ids, e.ID), append(c.values, value), append(c.service, service)
	}
}

func (in *installation) writeEndpoints() {
	c := &in.endpoints
	var failed idSet
	putAll(in.t.maps.Endpoints, c.ids, c.values, func(at int, err error) {
		failed.add(c.ids[at])
		in.fail(c.service[at], "endpoint %d: write endpoint: %w", c.ids[at], err)
	})
	for i, id := range c.ids {
		if !failed.has(id) {
			in.t.endpoints[uint16(id)] = c.values[i]
			delete(in.t.leaving, uint16(id))
		}
	}
}

// addService gathers a service if its entry or its table is to change.
func (in *installation) addService(service int, key pontoonServiceKey, value pontoonService, table []uint16) {
	old, exists := in.t.services[key]
	value.TableBase, value.TableLen = old.value.TableBase, uint32(len(table))
	if len(table) == 0 {
		value.TableBase = 0
	}
	same := exists && slices.Equal(old.table, table)
	if same && old.value == value {
		return
	}
	c := serviceChange{service: service, key: key, value: value, table: table, old: old, anew: !same}
	in.changes, in.load = append(in.changes, c), in.load+c.entries()
}

// placeTables finds blocks for the tables.
func (in *installation) placeTables() {
	lengths := make([]uint32, 0, len(in.changes))
	for i := range in.changes {
		lengths = append(lengths, in.changes[i].entries())
	}
	for i, block := range in.t.blocks.allocateAll(lengths, in.now) {
		c := &in.changes[i]
		if lengths[i] == 0 {
			continue
		}
		if block.length == 0 {
			in.fail(c.service, "the selection table is full: no room for %d of %d entries", len(c.table), in.t.blocks.size*uint32(refsPerEntry))
			continue
		}
		c.value.TableBase = block.base * uint32(refsPerEntry)
	}
	in.dropFailed()
}

// entries is how many of the selection map the change writes.
func (c *serviceChange) entries() uint32 {
	if !c.anew {
		return 0
	}
	return entriesFor(uint32(len(c.table)))
}

// dropFailed leaves out the changes of services with which something was wrong.
func (in *installation) dropFailed() {
	in.changes = slices.DeleteFunc(in.changes, func(c serviceChange) bool { return in.errs[c.service] != nil })
}

// writeTables writes the tables into their blocks.
func (in *installation) writeTables() {
	in.keys, in.entries = in.keys[:0], in.entries[:0]
	for i := range in.changes {
		c := &in.changes[i]
		base := c.value.TableBase / uint32(refsPerEntry)
		for n := range c.entries() {
			var refs pontoonReferences
			copy(refs.Ref[:], c.table[n*uint32(refsPerEntry):])
			in.keys, in.entries = append(in.keys, base+n), append(in.entries, refs)
		}
	}
	putAll(in.t.maps.Selection, in.keys, in.entries, func(at int, err error) {
		for i := range in.changes {
			if c := &in.changes[i]; c.holds(in.keys[at]) {
				in.fail(c.service, "write selection table: %w", err)
			}
		}
	})
	in.giveBack()
}

// holds tells whether the change writes this entry of the selection map.
func (c *serviceChange) holds(entry uint32) bool {
	block := blockOf(c.value)
	return c.anew && entry >= block.base && entry < block.end()
}

// giveBack releases the blocks of changes that come to nothing, and leaves those out.
func (in *installation) giveBack() {
	for i := range in.changes {
		if c := &in.changes[i]; in.errs[c.service] != nil && c.entries() > 0 {
			in.t.blocks.release(blockOf(c.value), in.now)
		}
	}
	in.dropFailed()
}

// writeServices switches over to the new tables and entries.
func (in *installation) writeServices() {
	keys := make([]pontoonServiceKey, len(in.changes))
	values := make([]pontoonService, len(in.changes))
	for i := range in.changes {
		keys[i], values[i] = in.changes[i].key, in.changes[i].value
	}
	services := in.t.maps.Services
	putAll(services, keys, values, func(at int, err error) {
		in.fail(in.changes[at].service, "write service: %w", roomFor("service", services, err))
	})
	in.giveBack()
	for i := range in.changes {
		c := &in.changes[i]
		if c.anew && c.old.value.TableLen > 0 {
			in.t.blocks.release(blockOf(c.old.value), in.now)
		}
		in.t.services[c.key] = installed{value: c.value, table: c.table}
	}
	in.changed += len(in.changes)
}
