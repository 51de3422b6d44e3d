package bpf

import (
	"context"
	"fmt"
	"iter"
	"time"
)

// Orphans is a digest of the replicas that nobody answers for.
type Orphans struct {
	View    uint64 // which nodes lived when it was made; see OrphanView
	Records uint64
	Sums    []uint64 // one for each of DigestBuckets
}

// OrphanView names the nodes that live, as SetOwnersAlive said last: a bit for each slot; all bits
// while nobody has said. It takes no lock for longer than a look.
func (d *Dataplane) OrphanView() uint64 { return d.owners.view() }

// OrphanDigest is Digest for the replicas of owners that have died which nobody has adopted, whoever
// they belonged to: a node that heard of one late does not know. No age is left out, since nothing of
// a dead owner is under way for long. When the table held none at the last look and none has come
// since it is not looked at.
func (d *Dataplane) OrphanDigest(ctx context.Context) (Orphans, error) {
	o := Orphans{View: d.owners.view(), Sums: make([]uint64, DigestBuckets)}
	news := d.owners.news.Load()
	if d.owners.none.Load() == news+1 {
		return o, nil
	}
	now, err := d.clock.now()
	if err != nil {
		return o, fmt.Errorf("digest of orphans: %w", err)
	}
	for part, err := range dump(ctx, d.maps.Flows) {
		if err != nil {
			return o, fmt.Errorf("digest of orphans: %w", err)
		}
		for i := range part.keys {
			c := connection{key: part.keys[i], forward: part.values[i]}
			if f := &c.forward; f.reply() || FlowState(f.State) == StateClosed || !d.bequeathable(f, now) {
				continue
			}
			o.Records++
			o.Sums[c.key.bucket()] ^= c.digest()
		}
	}
	if o.Records == 0 {
		d.owners.none.Store(news + 1)
	}
	return o, nil
}

// bequeathable says whether f is an orphan that other nodes are to have, too.
func (d *Dataplane) bequeathable(f *pontoonFlow, now instant) bool {
	return f.replica() && !f.doomed() && !d.silent(f) && !d.answersFor(f) && d.owners.orphan(f, now)
}

// OrphanRecordsOf is RecordsOf for the orphans in the given buckets. Those that are closed are among
// it: elsewhere they may still count as open.
func (d *Dataplane) OrphanRecordsOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	wanted := bucketsOf(buckets)
	return func(yield func([]byte, error) bool) {
		for part, err := range dump(ctx, d.maps.Flows) {
			var records []byte
			var now instant
			if err == nil {
				now, err = d.clock.now()
			}
			if err == nil {
				records, err = d.recordsWhere(part, func(key *pontoonFlowKey, f *pontoonFlow) bool {
					return wanted.has(key.bucket()) && d.bequeathable(f, now)
				})
			}
			if err != nil {
				yield(nil, fmt.Errorf("dump orphans of %d buckets: %w", len(buckets), err))
				return
			}
			if len(records) > 0 && !yield(records, nil) {
				return
			}
		}
	}
}

// bequeathed says whether the item is another node's copy of what nobody answers for.
func (it *importItem) bequeathed() bool {
	return it.reason == reasonOrphan || it.c.forward.OwnerSlot == nobody
}

// bequeath decides about such an item as far as it can alone. Whatever the order in which survivors
// give each other what they hold, they end up with the same: a connection that one of them knows is
// known to all, in the later of the states that it is known in, unless somebody knows that it has ended.
// What was adopted is never touched.
func (in *importer) bequeath(it *importItem) (decided bool) {
	c, local := &it.c, &it.was
	if it.existed && !local.reply() && samePair(&c.key, local, &c.forward) {
		if !local.replica() || !in.d.owners.orphan(local, in.now) || c.forward.State <= local.State {
			in.result.Kept++
			return true
		}
		in.join(it)
		return true
	}
	if at, ended := in.d.tombs.of(&c.key, in.now); ended && in.endedBy(&c.forward, at) {
		in.result.Kept++
		in.contradict(c, at)
		return true
	}
	if c.forward.OwnerSlot == in.d.opts.Slot { // it was this node's own before it forgot
		return false
	}
	limit, known := in.d.idle.limit(c.key.Proto, &c.forward, in.now)
	idle, ages := in.d.owners.idle(&c.forward, in.d.opts.Slot, in.now)
	if known && ages && idle > limit {
		in.result.Kept++
		return true
	}
	return false
}

// join takes over the state of an item that is further than the orphan here, and nothing else of it but
// the higher counts.
func (in *importer) join(it *importItem) {
	c := &it.c
	l := connection{key: c.key, forward: it.was, reply: it.was}
	if it.occupied {
		l.reply = it.held
	}
	c.inherit(&l)
	c.advance(&l)
	c.forward.OwnerSlot, c.forward.LastSeen = l.forward.OwnerSlot, l.forward.LastSeen
	c.reply.OwnerSlot, c.reply.LastSeen = l.forward.OwnerSlot, l.reply.LastSeen
	in.add(it)
}

// endedBy says whether f was there already when the connection of its tuple ended at the given stamp.
// How old a connection is is known to the unit in which that is counted, and records travel.
func (in *importer) endedBy(f *pontoonFlow, ended uint32) bool {
	return in.now.age(f.Created) > in.now.idle(ended)+in.now.duration(1<<createdShift)+doubt
}

// contradict has all told that the connection c, which another node still holds, has ended. It is
// nobody's word, and touches orphans only. When the consumer is behind it can wait for the next time.
func (in *importer) contradict(c *connection, ended uint32) {
	if len(in.d.events) >= cap(in.d.events)/2 {
		return
	}
	end := *c
	end.forward.OwnerSlot, end.forward.LastSeen, end.reply.LastSeen = nobody, ended, ended
	in.words = end.appendRecord(in.words, in.now, opDelete, reasonExpire)
}

// holds says whether the local connection under key, of which f is a half, keeps a tuple that the
// orphan c claims as well. Of two orphans the one that began later is right, since a tuple is given out again only when
// the earlier has ended; of two that began at about the same time both survivors choose the same.
func (in *importer) holds(key *pontoonFlowKey, f *pontoonFlow, c *connection) bool {
	if !f.replica() || !in.d.owners.orphan(f, in.now) {
		return true
	}
	mine, theirs := in.now.age(f.Created), in.now.age(c.forward.Created)
	switch {
	case mine+time.Second < theirs:
		return true
	case theirs+time.Second < mine:
		return false
	}
	return pairHash(key, f) < pairHash(&c.key, &c.forward)
}

// pairHash is the same for both halves of a connection.
func pairHash(key *pontoonFlowKey, f *pontoonFlow) uint64 {
	other := otherKey(key, f)
	return key.hash(digestSeed) ^ other.hash(digestSeed)
}
