package bpf

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// nobody is the owner of flows whose owner died and of which no packet came by since, on nodes
// that have only heard of them after that.
const nobody = uint8(Slots)

// owners remembers which nodes are alive, when one died last, and whose own snapshot is complete
// here. A replica whose last packet is older than its owner's last death is an orphan, also when
// the slot lives again: the machine may have forgotten it, and another may have got the slot.
type owners struct {
	mu       sync.RWMutex
	known    bool
	alive    map[uint8]bool
	died     map[uint8]instant
	complete map[uint8]bool

	mourned atomic.Uint32 // a bit for each slot in died
	news    atomic.Uint64 // counts what may have made orphans
	none    atomic.Uint64 // one more than news when there were none; see OrphanDigest
}

// set says whether somebody died who was known to live.
func (o *owners) set(alive map[uint8]bool, now instant) (died bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.died == nil {
		o.died, o.complete = map[uint8]instant{}, map[uint8]bool{}
	}
	for slot := range nobody {
		if alive[slot] {
			continue
		}
		delete(o.complete, slot)
		if !o.known || o.alive[slot] {
			o.died[slot] = now
			o.mourned.Or(1 << slot)
			o.news.Add(1)
			died = died || o.known
		}
	}
	o.alive = make(map[uint8]bool, len(alive))
	for slot, yes := range alive {
		o.alive[slot] = yes
	}
	o.known = true
	return died
}

// view is a bit for each slot whose holder lives; all while nobody has said.
func (o *owners) view() (v uint64) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if !o.known {
		return math.MaxUint64
	}
	for slot, yes := range o.alive {
		if yes {
			v |= 1 << slot
		}
	}
	return v
}

// entered takes note that a replica of this owner was written.
func (o *owners) entered(owner uint8) {
	if owner == nobody || o.mourned.Load()>>owner&1 != 0 {
		o.news.Add(1)
	}
}

// bereave makes c, of which another node says so, an orphan here as well: of the death of its owner that
// this node knows of, or, if it knows of none, nobody's from now on.
func (o *owners) bereave(c *connection, now instant) {
	if c.forward.OwnerSlot == nobody {
		return
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	died, ok := o.died[c.forward.OwnerSlot]
	if !ok {
		c.forward.OwnerSlot, c.reply.OwnerSlot = nobody, nobody
		c.forward.LastSeen, c.reply.LastSeen = uint32(now.jiffies), uint32(now.jiffies)
		return
	}
	if !o.outlived(&c.forward, now) {
		stamp := uint32(died.jiffies) - 1
		c.forward.LastSeen, c.reply.LastSeen = stamp, stamp
	}
}

// told takes note that a snapshot of the owner's was applied to its end.
func (o *owners) told(owner uint8) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.alive[owner] {
		o.complete[owner] = true
	}
}

// toldAll says whether what the owner itself has told is everything there is to know of it.
func (o *owners) toldAll(owner uint8) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return o.complete[owner]
}

// lives says whether the holder of a slot does, as far as is known.
func (o *owners) lives(slot uint8) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return slot != nobody && (!o.known || o.alive[slot])
}

// orphan says whether nobody answers for the replica f at present.
func (o *owners) orphan(f *pontoonFlow, now instant) bool {
	o.mu.RLock()
	defer o.mu.RUnlock()
	return f.OwnerSlot == nobody || o.known && (!o.alive[f.OwnerSlot] || o.outlived(f, now))
}

// outlived says whether f was last seen before its owner died. Call with mu held.
func (o *owners) outlived(f *pontoonFlow, now instant) bool {
	died, ok := o.died[f.OwnerSlot]
	return ok && now.idle(f.LastSeen) > now.since(died)
}

// vouch notes in both halves that their owner, alive, has named them itself: they are no orphans
// of its last death.
func (o *owners) vouch(c *connection, now instant) {
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.alive[c.forward.OwnerSlot] && o.outlived(&c.forward, now) {
		stamp := uint32(o.died[c.forward.OwnerSlot].jiffies)
		c.forward.LastSeen, c.reply.LastSeen = stamp, stamp
	}
}

// idle returns how long f counts as idle; false: it does not age at present. Of a replica the
// last packet is not known here: it ages from the death of its owner.
func (o *owners) idle(f *pontoonFlow, self uint8, now instant) (time.Duration, bool) {
	idle := now.idle(f.LastSeen)
	if !f.replica() || f.OwnerSlot == self || f.OwnerSlot == nobody {
		return idle, true
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if !o.known || o.alive[f.OwnerSlot] && !o.outlived(f, now) {
		return idle, false
	}
	if died, ok := o.died[f.OwnerSlot]; ok {
		idle = min(idle, now.since(died))
	}
	return idle, true
}
