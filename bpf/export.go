package bpf

import (
	"context"
	"fmt"
	"iter"
)

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

// recordsOf makes records of the connections whose forward half is in the part.
func (d *Dataplane) recordsOf(part chunk) ([]byte, error) {
	return d.recordsWhere(part, func(*pontoonFlowKey, *pontoonFlow) bool { return true })
}

// recordsWhere makes records of those that are wanted and that others are told of.
func (d *Dataplane) recordsWhere(part chunk, wanted func(*pontoonFlowKey, *pontoonFlow) bool) ([]byte, error) {
	now, err := d.clock.now()
	if err != nil {
		return nil, err
	}
	var records []byte
	err = d.pairs(part, func(key *pontoonFlowKey, f *pontoonFlow) bool {
		return !d.silent(f) && wanted(key, f)
	}, func(c *connection) {
		if records == nil {
			records = make([]byte, 0, len(part.keys)/2*RecordSize)
		}
		records = c.appendRecord(records, now, opUpdate, d.standing(&c.forward, now))
	})
	d.finish(records)
	return records, err
}

// pairs calls each with every wanted connection whose forward half is in the part of the flow table, as far as
// its reply half is there. The connection is valid until each returns.
func (d *Dataplane) pairs(part chunk, wanted func(*pontoonFlowKey, *pontoonFlow) bool, each func(*connection)) error {
	forwards := make([]int, 0, len(part.keys))
	others := make([]pontoonFlowKey, 0, len(part.keys))
	for i := range part.keys {
		if f := &part.values[i]; !f.reply() && wanted(&part.keys[i], f) {
			forwards, others = append(forwards, i), append(others, otherKey(&part.keys[i], f))
		}
	}
	var c connection
	return d.finder.find(others, func(n int, found *pontoonFlow) {
		i := forwards[n]
		c.key, c.forward = part.keys[i], part.values[i]
		if found == nil || !mirrored(&c.key, &c.forward, &others[n], found) {
			c.reply = pontoonFlow{LastSeen: c.forward.LastSeen}
		} else {
			c.reply = *found
		}
		each(&c)
	})
}

// silent says whether the other nodes are not told of f: not yet, or because its service wants none of it.
// Of its end they are told if they have ever been told of it, whatever the service wants by now:
// their replicas do not age while this node lives.
func (d *Dataplane) silent(f *pontoonFlow) bool {
	r, _, _ := d.idle.rules(uint32(f.Service))
	return f.quiet() || r.replicate == ReplicateNone
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
