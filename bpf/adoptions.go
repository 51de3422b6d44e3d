package bpf

import (
	"encoding/binary"
	"fmt"
	"time"
)

const (
	adoptEvery     = time.Second // between two words of this node that it has adopted one and the same flow
	adoptionPlaces = 1 << 13
)

// adoptions keeps nodes that see the two directions of a flow, and adopt it from each other in turn,
// from telling so each time. Memory is bounded: of two flows in one place the later is told of as often as
// it happens while the other one waits. The zero value is ready; for one goroutine.
type adoptions struct {
	places [adoptionPlaces]adoption
	owed   []uint32 // places of flows of which there is something left to say
}

type adoption struct {
	key  pontoonFlowKey // of the forward half
	told time.Time
	owed bool
}

// tell says whether an adoption that has just happened is to be told now; if not it is owed.
func (a *adoptions) tell(key pontoonFlowKey, now time.Time) bool {
	at := uint32(key.hash(0) % adoptionPlaces)
	p := &a.places[at]
	switch {
	case p.key == key && now.Sub(p.told) < adoptEvery:
		if !p.owed {
			p.owed, a.owed = true, append(a.owed, at)
		}
		return false
	case p.key == key || !p.owed:
		*p = adoption{key: key, told: now}
	}
	return true
}

// due returns the flows of which it is time to say what is owed. What that is the flow table knows.
func (a *adoptions) due(now time.Time) []pontoonFlowKey {
	var keys []pontoonFlowKey
	left := a.owed[:0]
	for _, at := range a.owed {
		p := &a.places[at]
		if !p.owed { // said by a later adoption
			continue
		}
		if now.Sub(p.told) < adoptEvery {
			left = append(left, at)
			continue
		}
		p.owed, p.told = false, now
		keys = append(keys, p.key)
	}
	a.owed = left
	return keys
}

// forwardKey is the key of the forward half that a record is about.
func forwardKey(record []byte) pontoonFlowKey {
	var k pontoonFlowKey
	copy(k.Saddr.B[:], record[recordClient:])
	copy(k.Daddr.B[:], record[recordVIP:])
	k.Sport = binary.LittleEndian.Uint16(record[recordPorts:])
	k.Dport = binary.LittleEndian.Uint16(record[recordPorts+2:])
	k.Proto = record[recordProto]
	return k
}

// tellOwed tells which of the flows this node owns still.
func (d *Dataplane) tellOwed(keys []pontoonFlowKey) error {
	if len(keys) == 0 {
		return nil
	}
	now, err := d.clock.now()
	if err != nil {
		return err
	}
	var part chunk
	err = d.finder.find(keys, func(i int, found *pontoonFlow) {
		if found != nil && !found.replica() && !d.silent(found) {
			part.keys, part.values = append(part.keys, keys[i]), append(part.values, *found)
		}
	})
	if err != nil {
		return fmt.Errorf("tell of adopted flows: %w", err)
	}
	var records []byte
	all := func(*pontoonFlowKey, *pontoonFlow) bool { return true }
	err = d.pairs(part, all, func(c *connection) { records = c.appendRecord(records, now, opUpdate, reasonAdopt) })
	if err != nil {
		return fmt.Errorf("tell of adopted flows: %w", err)
	}
	d.emit(records)
	return nil
}
