package bpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cilium/ebpf"
)

// ImportResult counts what became of imported records.
type ImportResult struct {
	Written int // connections written as replicas
	Clients int // of which it is known now which endpoint they are with
	Kept    int // the local entry is newer, or the owner's own word is here
	Deleted int // replicas removed on request
	Invalid int // records that no data plane writes
	Failed  int // the flow table is full
}

// Records yields every connection of the flow table, owned and replica alike, and every client that
// stays with an endpoint, as records: what a snapshot is made of. Each part is what one look at the table found, up to some thousand records,
// and the caller may keep it. Nothing is read ahead of a yield, so that a change the caller hears
// of between two parts is not undone by the next. It ends after yielding an error.
func (d *Dataplane) Records(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for part, err := range dump(ctx, d.maps.Flows) {
			var records []byte
			if err == nil {
				records, err = d.recordsOf(part)
			}
			if err != nil {
				yield(nil, fmt.Errorf("dump records: %w", err))
				return
			}
			if len(records) > 0 && !yield(records, nil) {
				return
			}
		}
		for records, err := range d.affinityRecords(ctx) {
			if err != nil {
				yield(nil, fmt.Errorf("dump records: %w", err))
				return
			}
			if !yield(records, nil) {
				return
			}
		}
	}
}

func (d *Dataplane) recordsOf(part chunk) ([]byte, error) {
	now, err := d.clock.now()
	if err != nil {
		return nil, err
	}
	records := make([]byte, 0, len(part.keys)*RecordSize)
	for c, err := range part.connections(d.flowTable()) {
		if err != nil {
			return nil, err
		}
		records = c.appendRecord(records, now, opUpdate, d.standing(&c.forward, now))
	}
	return records, nil
}

// answersFor says whether the end of f is this node's to tell.
func (d *Dataplane) answersFor(f *pontoonFlow) bool {
	return !f.replica() || f.OwnerSlot == d.opts.Slot
}

// standing is the reason for which f is in a snapshot: how much this node's word about it counts.
func (d *Dataplane) standing(f *pontoonFlow, now instant) uint8 {
	switch {
	case d.answersFor(f):
		return reasonSnapshot
	case d.owners.orphan(f, now):
		return reasonOrphan
	}
	return reasonHearsay
}

// Import writes connections of other nodes into the flow table, as replicas: both halves, in
// batches. The owner's own word stands over what is a replica of that owner here. Otherwise the
// side with the younger last packet is right, and nobody takes from us what is ours by repeating
// what we said. A DELETE never removes a connection that is owned here. The records are handled in
// order. Malformed records are counted and left out; an error means that bytes are not whole
// records or that the kernel refused, and the result says how far it went.
func (d *Dataplane) Import(ctx context.Context, records []byte) (ImportResult, error) {
	var result ImportResult
	if len(records)%RecordSize != 0 {
		return result, fmt.Errorf("import flows: %w: %d bytes", ErrRecord, len(records))
	}
	now, err := d.clock.now()
	if err != nil {
		return result, fmt.Errorf("import flows: %w", err)
	}
	d.flowMu.Lock()
	defer d.flowMu.Unlock()
	in := importer{d: d, now: now, result: &result, waiting: map[pontoonFlowKey]bool{}}
	for at := 0; at < len(records); at += RecordSize {
		r, err := parseRecord(records[at : at+RecordSize])
		if err != nil {
			result.Invalid++
			continue
		}
		if err := in.record(&r); err != nil {
			return result, fmt.Errorf("import flows: %w", err)
		}
		if len(in.keys) >= dumpChunk {
			if err := errors.Join(ctx.Err(), in.flush()); err != nil {
				return result, fmt.Errorf("import flows: %w", err)
			}
		}
	}
	if err := in.flush(); err != nil {
		return result, fmt.Errorf("import flows: %w", err)
	}
	return result, nil
}

// importer gathers writes so that they go to the kernel in batches.
type importer struct {
	d       *Dataplane
	now     instant
	result  *ImportResult
	writes  []write
	keys    []pontoonFlowKey
	values  []pontoonFlow
	waiting map[pontoonFlowKey]bool // keys that are in keys
}

// write is one connection that waits to be written, and what it is written over.
type write struct {
	key     pontoonFlowKey
	forward pontoonFlow
	was     pontoonFlow
	existed bool
	halves  int
}

// record handles one record.
func (in *importer) record(r *pontoonFlowRecord) error {
	if r.Op == opAffinity {
		in.result.Clients++
		return in.d.remember(r.Client, r.Service, r.EndpointId, time.Duration(r.IdleMs)*time.Millisecond, in.now)
	}
	c := recordConnection(r, in.now)
	if r.Op == opDelete {
		return in.remove(&c)
	}
	if !in.place(&c, r.Reason) {
		in.result.Kept++
		return nil
	}
	if err := in.settled(&c); err != nil {
		return err
	}
	w := write{key: c.key}
	var err error
	if w.existed, err = lookup(in.d.maps.Flows, c.key, &w.was); err != nil {
		return err
	}
	if w.existed && w.was.reply() { // the tuple is the reply tuple of another connection
		w.existed = false
		if keep, err := in.evict(&c, c.key); keep || err != nil {
			return err
		}
	}
	if w.existed {
		if keep, err := in.replace(&c, &w.was, r.Reason); keep || err != nil {
			return err
		}
	}
	if !c.forward.oneHalf() && !(w.existed && samePair(&c.key, &w.was, &c.forward)) {
		if keep, err := in.evict(&c, otherKey(&c.key, &c.forward)); keep || err != nil {
			return err
		}
	}
	in.settle(&c, r.Reason)
	in.add(w, &c)
	if r.Reason == reasonNew { // a snapshot says by itself who stays with whom
		return in.d.remember(r.Client, r.Service, r.EndpointId, time.Duration(r.AgeMs)*time.Millisecond, in.now)
	}
	return nil
}

// settled writes what waits when c is about the same tuples: what is decided about c is decided by
// what the maps say.
func (in *importer) settled(c *connection) error {
	if in.waiting[c.key] || !c.forward.oneHalf() && in.waiting[otherKey(&c.key, &c.forward)] {
		return in.flush()
	}
	return nil
}

// add queues c.
func (in *importer) add(w write, c *connection) {
	w.forward, w.halves = c.forward, 1
	in.keys, in.values = append(in.keys, c.key), append(in.values, c.forward)
	if !c.forward.oneHalf() {
		w.halves = 2
		in.keys, in.values = append(in.keys, otherKey(&c.key, &c.forward)), append(in.values, c.reply)
	}
	for _, key := range in.keys[len(in.keys)-w.halves:] {
		in.waiting[key] = true
	}
	in.writes = append(in.writes, w)
}

// place decides whose c is by the standing of the record; false: it is no news.
func (in *importer) place(c *connection, reason uint8) bool {
	owner := c.forward.OwnerSlot
	switch {
	case owner == in.d.opts.Slot:
	case reason == reasonOrphan || owner == nobody:
		c.forward.OwnerSlot, c.reply.OwnerSlot = nobody, nobody
	case reason == reasonHearsay:
		return !in.d.owners.toldAll(owner)
	default:
		in.d.snaps.seen(owner, &c.key)
	}
	return true
}

// settle stamps c, which is about to be written. When the last packet of a connection was that
// nobody answers for, or that this node has forgotten, is not known: it ages from now on.
func (in *importer) settle(c *connection, reason uint8) {
	switch owner := c.forward.OwnerSlot; {
	case owner == in.d.opts.Slot || owner == nobody:
		c.forward.LastSeen, c.reply.LastSeen = uint32(in.now.jiffies), uint32(in.now.jiffies)
	case reason != reasonHearsay:
		in.d.owners.vouch(c, in.now)
	}
}

// stands says whether the local connection l is to stay although a record says c.
func (in *importer) stands(l, c *connection, reason uint8) bool {
	mine, owner := l.forward.OwnerSlot, c.forward.OwnerSlot
	if owner == in.d.opts.Slot && mine == owner {
		return true
	}
	ownWord := reason != reasonHearsay && reason != reasonOrphan
	if l.forward.replica() && ownWord && (mine == owner || mine == nobody) {
		return false
	}
	if ownWord {
		return l.idle(in.now)+doubt < c.idle(in.now)
	}
	return l.idle(in.now) < c.idle(in.now)
}

// doubt is by how much a connection's last packet here must be the younger one before another
// node's claim to it is taken for old. Stamps are as coarse as a jiffy and records travel; who
// wrongly gives a connection up adopts it with its next packet, but who wrongly keeps it lets it
// age although the other forwards it.
const doubt = 100 * time.Millisecond

// replace prepares for writing over the local entry of the same client tuple; true: it stays.
func (in *importer) replace(c *connection, local *pontoonFlow, reason uint8) (bool, error) {
	l := connection{key: c.key, forward: *local}
	paired, err := partner(in.d.flowTable(), &c.key, local, &l.reply)
	if err != nil {
		return false, err
	}
	if !paired {
		l.reply = pontoonFlow{LastSeen: local.LastSeen}
	}
	if in.stands(&l, c, reason) {
		in.result.Kept++
		return true, nil
	}
	if !samePair(&c.key, local, &c.forward) {
		if !paired {
			return false, nil
		}
		return false, in.take(removal{replies: []pontoonFlowKey{otherKey(&c.key, local)}})
	}
	c.forward.setCounters(max(c.forward.packets(), local.packets()), max(c.forward.bytes(), local.bytes()))
	c.reply.setCounters(max(c.reply.packets(), l.reply.packets()), max(c.reply.bytes(), l.reply.bytes()))
	return false, nil
}

// evict looks whether a tuple of c belongs to another connection here. Tuples are unique in the
// cluster, so one of the two is out of date; true: the local one stays.
func (in *importer) evict(c *connection, key pontoonFlowKey) (bool, error) {
	var held pontoonFlow
	found, err := lookup(in.d.maps.Flows, key, &held)
	if err != nil || !found {
		return false, err
	}
	if !held.oneHalf() && otherKey(&key, &held) == c.key {
		return false, nil
	}
	if !held.replica() && FlowState(held.State) != StateClosed && in.now.idle(held.LastSeen) < c.idle(in.now) {
		in.result.Kept++
		return true, nil
	}
	var gone removal
	var forward pontoonFlow
	paired, err := partner(in.d.flowTable(), &key, &held, &forward)
	switch {
	case err != nil:
		return false, err
	case !held.reply():
		gone.add(key, &held)
	case paired:
		gone.add(otherKey(&key, &held), &forward)
	default:
		gone.replies = []pontoonFlowKey{key}
	}
	return false, in.take(gone)
}

// remove handles a DELETE record.
func (in *importer) remove(c *connection) error {
	if err := in.flush(); err != nil {
		return err
	}
	var local pontoonFlow
	found, err := lookup(in.d.maps.Flows, c.key, &local)
	if err != nil || !found || local.reply() || !samePair(&c.key, &local, &c.forward) {
		return err
	}
	// Who held the connection before another adopted it has no say in its end.
	l := connection{key: c.key, forward: local, reply: local}
	former := local.OwnerSlot != c.forward.OwnerSlot && l.idle(in.now) < c.idle(in.now)
	if !local.replica() || former {
		in.result.Kept++
		return nil
	}
	in.result.Deleted++
	var gone removal
	gone.add(c.key, &local)
	return in.d.remove(in.d.flowTable(), gone)
}

// take deletes, after what waits has been written.
func (in *importer) take(gone removal) error {
	if err := in.flush(); err != nil {
		return err
	}
	return in.d.remove(in.d.flowTable(), gone)
}

// flush writes what was gathered. What finds no room is counted, not an error: the connections
// that did, and those that are there already, are worth having.
func (in *importer) flush() error {
	keys, values, writes := in.keys, in.values, in.writes
	in.keys, in.values, in.writes = keys[:0], values[:0], writes[:0]
	clear(in.waiting)
	for len(keys) > 0 {
		n, err := in.d.maps.Flows.BatchUpdate(keys, values, nil)
		for len(writes) > 0 && n >= writes[0].halves {
			in.written(&writes[0])
			in.result.Written++
			n -= writes[0].halves
			keys, values, writes = keys[writes[0].halves:], values[writes[0].halves:], writes[1:]
		}
		if len(writes) == 0 {
			return nil
		}
		if n > 0 { // half a connection is of no use
			in.written(&writes[0])
			if derr := in.d.removeForward(writes[0].key); derr != nil {
				return derr
			}
		}
		if !errors.Is(err, errTableFull) {
			in.result.Failed += len(writes)
			return fmt.Errorf("write flows: %w", err)
		}
		in.result.Failed++
		keys, values, writes = keys[writes[0].halves:], values[writes[0].halves:], writes[1:]
	}
	return nil
}

// written counts a forward half that has been written.
func (in *importer) written(w *write) {
	if w.existed {
		in.d.accounts.turned(&w.was, &w.forward)
	} else {
		in.d.accounts.came(&w.forward)
	}
}

// lookup passes the key by reference: that spares the library's slow way of writing structs.
func lookup(m *ebpf.Map, key pontoonFlowKey, value *pontoonFlow) (bool, error) {
	err := m.Lookup(&key, value)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look up flow: %w", err)
	}
	return true, nil
}
