package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ImportResult counts what became of imported records.
type ImportResult struct {
	Written  int // connections written as replicas
	HalfOpen int // of connections that are being established
	Clients  int // of which it is known now which endpoint they are with
	Orphans  int // of those written: nobody answers for them
	Kept     int // the local entry is newer, or the owner's own word is here
	Deleted  int // replicas removed on request
	Invalid  int // records that no data plane writes
	Failed   int // the flow table is full
}

// importWindow is how many records are looked at together: what the table holds about them is
// asked with one system call and written with one or two more.
const importWindow = 256

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
	in := &d.importer
	in.begin(d, now)
	for at := 0; at < len(records) && err == nil; at += RecordSize {
		if len(in.items) == importWindow || len(in.arrivals) == arrivalWindow {
			if err = errors.Join(ctx.Err(), in.settle()); err != nil {
				break
			}
		}
		err = in.record(records[at : at+RecordSize])
	}
	if err == nil {
		err = in.settle()
	}
	if err != nil {
		return in.result, fmt.Errorf("import flows: %w", err)
	}
	return in.result, nil
}

// importer is one import. Its room is used again by the next; guarded by flowMu.
type importer struct {
	d      *Dataplane
	now    instant
	result ImportResult

	// The window: no two of its items are about the same tuple, so their order does not matter.
	items   []importItem
	keys    []pontoonFlowKey // what the table is asked about them
	halves  []*pontoonFlow   // for each of keys: what to put in at once if its tuple is free, or nil
	drafts  []connection     // the halves' own
	claimed hashSet          // of keys
	writes  importBatch
	seen    []pontoonFlowKey // forward halves that stay, and were seen elsewhere
	stamps  []uint32         // then
	gone    removal
	learned []lesson      // by connections that stay, of what other nodes have seen of them
	hard    []*importItem // that other connections are in the way of

	arrivals []connection // half-open ones

	words []byte // what the other nodes are to be told

	unknown bool // most of what the last snapshot's records were about was new here
}

// importItem is one record about a connection, and what the table says about its tuples.
type importItem struct {
	c          connection
	op, reason uint8
	epoch      uint32

	was, held pontoonFlow // under the client's tuple, and under that of the reply half
	existed   bool        // was
	occupied  bool        // held
	put       bool        // the tuples were free, and both halves are there now
}

// importBatch is what one system call writes.
type importBatch struct {
	keys   []pontoonFlowKey
	values []pontoonFlow
	items  []*importItem
}

func (in *importer) begin(d *Dataplane, now instant) {
	in.d, in.now, in.result = d, now, ImportResult{}
	if in.items == nil {
		in.items, in.drafts = make([]importItem, 0, importWindow), make([]connection, 0, importWindow)
	}
	in.clear()
}

// clear begins a new window.
func (in *importer) clear() {
	in.halves, in.drafts = in.halves[:0], in.drafts[:0]
	in.items, in.keys, in.hard, in.arrivals = in.items[:0], in.keys[:0], in.hard[:0], in.arrivals[:0]
	in.gone.forwards, in.gone.replies = in.gone.forwards[:0], in.gone.replies[:0]
	in.seen, in.stamps, in.words, in.learned = in.seen[:0], in.stamps[:0], nil, in.learned[:0]
	in.writes.clear()
	in.claimed.reset()
}

func (b *importBatch) clear() { b.keys, b.values, b.items = b.keys[:0], b.values[:0], b.items[:0] }

// record takes one record into the window.
func (in *importer) record(b []byte) error {
	r, err := parseRecord(b)
	if err != nil {
		in.result.Invalid++
		return nil
	}
	if r.Op == opAffinity {
		in.result.Clients++
		return in.d.remember(r.Client, r.Service, r.EndpointId, time.Duration(r.IdleMs)*time.Millisecond, in.now)
	}
	if r.halfOpen() {
		return in.arrive(&r)
	}
	c := recordConnection(&r, in.now)
	if r.Op == opUpdate && !in.place(&c, r.Reason, r.Epoch) {
		in.result.Kept++
		return nil
	}
	other := otherKey(&c.key, &c.forward)
	first, second := c.key.hash(0), other.hash(0)
	if in.claimed.has(first) || in.claimed.has(second) {
		if err := in.settle(); err != nil {
			return err
		}
	}
	in.claimed.add(first)
	in.keys = append(in.keys, c.key)
	in.items = append(in.items, importItem{c: c, op: r.Op, reason: r.Reason, epoch: r.Epoch})
	forward, reply := in.fresh(&in.items[len(in.items)-1])
	in.halves = append(in.halves, forward)
	if !c.forward.oneHalf() {
		in.claimed.add(second)
		in.keys, in.halves = append(in.keys, other), append(in.halves, reply)
	}
	if r.Op != opUpdate || r.Reason != reasonNew { // a snapshot says by itself who stays with whom
		return nil
	}
	return in.d.remember(r.Client, r.Service, r.EndpointId, time.Duration(r.AgeMs)*time.Millisecond, in.now)
}

// fresh returns the halves, stamped, of an item that is probably unknown here and may be written if it is.
// The item itself stays as it was told: if it is known after all, its stamp counts in the decision.
func (in *importer) fresh(it *importItem) (forward, reply *pontoonFlow) {
	if it.op != opUpdate || it.bequeathed() || it.reason != reasonNew && (it.reason != reasonSnapshot || !in.unknown) {
		return nil, nil
	}
	in.drafts = append(in.drafts, it.c)
	draft := &in.drafts[len(in.drafts)-1]
	in.stamp(draft, it.reason)
	return &draft.forward, &draft.reply
}

// settle decides about the window by what the table says and carries it out.
func (in *importer) settle() error {
	defer in.clear()
	if len(in.items) > 0 {
		if err := in.connections(); err != nil {
			return err
		}
	}
	return in.enter()
}

// connections decides about those of the window that are established.
func (in *importer) connections() error {
	if err := in.ask(); err != nil {
		return err
	}
	named, known := 0, 0
	for i := range in.items {
		it := &in.items[i]
		if it.reason == reasonSnapshot {
			named++
		}
		if it.reason == reasonSnapshot && it.existed {
			known++
		}
		in.decide(it)
	}
	if named > 0 {
		in.unknown = known < named/2
	}
	err := errors.Join(in.write(), in.d.finder.stamp(in.seen, in.stamps), in.d.remove(in.d.flowTable(), in.gone), in.learn())
	for _, it := range in.hard {
		if err != nil {
			return err
		}
		err = in.contend(it)
	}
	in.d.emit(in.words)
	return err
}

// ask fills in what stands under the tuples of the window.
func (in *importer) ask() error {
	at, second := 0, false
	return in.d.finder.findOrPut(in.keys, in.halves, func(_ int, found *pontoonFlow, put bool) {
		it := &in.items[at]
		switch {
		case put:
			it.put = true
		case found == nil:
		case second:
			it.held, it.occupied = *found, true
		default:
			it.was, it.existed = *found, true
		}
		second = !second && !it.c.forward.oneHalf()
		if !second {
			at++
		}
	})
}

// decide says what becomes of one item.
func (in *importer) decide(it *importItem) {
	if it.put {
		in.written(it)
		in.result.Written++
		return
	}
	if it.op == opDelete {
		in.delete(it)
		return
	}
	c := &it.c
	if !it.existed && it.reason == reasonCounters { // it may have ended since, or be told of by its owner at once
		in.result.Kept++
		return
	}
	if it.bequeathed() && in.bequeath(it) {
		return
	}
	if !it.existed && !it.occupied {
		in.add(it)
		return
	}
	other := otherKey(&c.key, &c.forward)
	same := it.existed && !it.was.reply() && samePair(&c.key, &it.was, &c.forward)
	paired := same && it.occupied && mirrored(&c.key, &it.was, &other, &it.held)
	if !same || it.occupied && !paired {
		in.hard = append(in.hard, it)
		return
	}
	l := connection{key: c.key, forward: it.was, reply: it.held}
	if !paired {
		l.reply = pontoonFlow{LastSeen: it.was.LastSeen}
	}
	if in.stands(&l, it) {
		in.stay(it, &l)
		return
	}
	c.inherit(&l)
	if it.reason == reasonCounters {
		c.advance(&l)
	} else if in.speaksOf(it, &l) {
		c.keepFins(&l)
	}
	in.add(it)
}

// stay keeps the local connection. When another node has forwarded a younger packet of one that
// this node goes on to own, it lives by that: it must not idle out here while it is in use there.
func (in *importer) stay(it *importItem, l *connection) {
	in.result.Kept++
	in.teach(it, l)
	if it.op != opUpdate || l.forward.replica() || it.reason == reasonHearsay || it.reason == reasonOrphan ||
		it.c.idle(in.now)+doubt >= l.idle(in.now) {
		return
	}
	in.seen, in.stamps = append(in.seen, it.c.key), append(in.stamps, it.c.forward.LastSeen)
}

// advance keeps how far the connection has come here: the counters of a flow may be told after its
// end.
func (c *connection) advance(l *connection) {
	c.forward.Flags |= l.forward.Flags & (flagOwn | flagPeer)
	c.reply.Flags |= l.reply.Flags & (flagOwn | flagPeer)
	if l.forward.State > c.forward.State {
		c.forward.State, c.reply.State = l.forward.State, l.forward.State
	}
}

// inherit keeps the higher counts of the two.
func (c *connection) inherit(l *connection) {
	c.forward.setCounters(max(c.forward.packets(), l.forward.packets()), max(c.forward.bytes(), l.forward.bytes()))
	c.reply.setCounters(max(c.reply.packets(), l.reply.packets()), max(c.reply.bytes(), l.reply.bytes()))
}

// delete handles a DELETE record.
func (in *importer) delete(it *importItem) {
	c, local := &it.c, &it.was
	if !it.existed || local.reply() || !samePair(&c.key, local, &c.forward) {
		in.buried(c)
		return
	}
	if c.forward.OwnerSlot == nobody && !(in.d.owners.orphan(local, in.now) && in.endedBy(local, c.forward.LastSeen)) {
		in.result.Kept++
		return
	}
	// Who held the connection before another adopted it has no say in its end.
	l := connection{key: c.key, forward: *local, reply: *local}
	another := c.forward.OwnerSlot != nobody && local.OwnerSlot != c.forward.OwnerSlot
	former := another && (l.idle(in.now) < c.idle(in.now) || in.bornApart(c, &l) < 0)
	if !local.replica() || former {
		in.result.Kept++
		return
	}
	in.result.Deleted++
	in.buried(c)
	in.gone.add(c.key, local)
}

// buried takes note that c has ended.
func (in *importer) buried(c *connection) {
	in.d.tombs.note(&c.key, in.now.stamp(c.idle(in.now)), in.now)
}

// add queues both halves of the item.
func (in *importer) add(it *importItem) {
	b, c := &in.writes, &it.c
	in.stamp(c, it.reason)
	b.items, b.keys, b.values = append(b.items, it), append(b.keys, c.key), append(b.values, c.forward)
	if !c.forward.oneHalf() {
		b.keys, b.values = append(b.keys, otherKey(&c.key, &c.forward)), append(b.values, c.reply)
	}
}

func (it *importItem) halves() int {
	if it.c.forward.oneHalf() {
		return 1
	}
	return 2
}

// write writes what was queued. What finds no room is counted, not an error: the connections
// that did, and those that are there already, are worth having.
func (in *importer) write() error {
	keys, values, items := in.writes.keys, in.writes.values, in.writes.items
	defer in.writes.clear()
	for len(items) > 0 {
		n, err := in.d.maps.Flows.BatchUpdate(keys, values, nil)
		if err != nil && n == len(keys) {
			n = 0 // refused as a whole: the kernel has not said how far it came
		}
		for len(items) > 0 && n >= items[0].halves() {
			in.written(items[0])
			in.result.Written++
			halves := items[0].halves()
			n -= halves
			keys, values, items = keys[halves:], values[halves:], items[1:]
		}
		if len(items) == 0 {
			return nil
		}
		stopped := items[0]
		if n > 0 { // half a connection is of no use
			in.written(stopped)
			if derr := in.d.removeForward(stopped.c.key); derr != nil {
				return derr
			}
		}
		if !errors.Is(err, errTableFull) {
			in.result.Failed += len(items)
			return fmt.Errorf("write flows: %w", err)
		}
		in.result.Failed++
		keys, values, items = keys[stopped.halves():], values[stopped.halves():], items[1:]
	}
	return nil
}

// written counts a forward half that has been written.
func (in *importer) written(it *importItem) {
	in.d.owners.entered(it.c.forward.OwnerSlot)
	if it.bequeathed() {
		in.result.Orphans++
	}
	if it.existed {
		in.d.accounts.turned(&it.was, &it.c.forward)
		return
	}
	in.d.accounts.came(&it.c.forward)
	in.established(&it.c)
}
