package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// removal gathers what is to be deleted from a flow map.
type removal struct {
	forwards []pontoonFlowKey // counted off, each with the value it had at the end
	replies  []pontoonFlowKey
}

// remove deletes both kinds; keys that are gone already are no error. Call with flowMu held.
// A forward half in the flow table goes by a call of its own, because only the kernel knows
// whether it was still there, and open or closed, at that moment.
func (d *Dataplane) remove(m flowTable, r removal) error {
	if m != d.flowTable() {
		return m.drop(append(r.replies, r.forwards...))
	}
	for i := range r.forwards {
		if err := d.removeForward(r.forwards[i]); err != nil {
			return err
		}
	}
	return m.drop(r.replies)
}

// removeForward takes one forward half out of the flow table.
func (d *Dataplane) removeForward(key pontoonFlowKey) error {
	var last pontoonFlow
	err := d.maps.Flows.LookupAndDelete(&key, &last)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("delete flow: %w", err)
	}
	if !last.reply() {
		d.accounts.went(&last)
	}
	return nil
}

// add notes both halves of c.
func (r *removal) add(key pontoonFlowKey, f *pontoonFlow) {
	r.forwards = append(r.forwards, key)
	if !f.oneHalf() {
		r.replies = append(r.replies, otherKey(&key, f))
	}
}

// deleteKeys deletes in batches; keys that are gone already are no error.
func deleteKeys(m *ebpf.Map, keys []pontoonFlowKey) error {
	for len(keys) > 0 {
		part := keys[:min(len(keys), dumpChunk)]
		n, err := m.BatchDelete(part, nil)
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			n++ // the batch stops at a key that is gone
		case err != nil:
			return fmt.Errorf("delete flows: %w", err)
		}
		keys = keys[min(n, len(keys)):]
	}
	return nil
}

// partner looks for the other half of the connection whose half f stands under key. It is false
// for a connection of one half, and when its key belongs to another connection.
func partner(m flowTable, key *pontoonFlowKey, f, other *pontoonFlow) (bool, error) {
	if f.oneHalf() {
		return false, nil
	}
	okey := otherKey(key, f)
	found, err := m.find(okey, other)
	return found && mirrored(key, f, &okey, other), err
}

// mirrored tells whether other, which stands under okey, is the other half of the connection whose
// half f stands under key.
func mirrored(key *pontoonFlowKey, f *pontoonFlow, okey *pontoonFlowKey, other *pontoonFlow) bool {
	return !f.oneHalf() && other.reply() != f.reply() && otherKey(okey, other) == *key
}

// samePair tells whether two forward halves of one key make the same connection.
func samePair(key *pontoonFlowKey, a, b *pontoonFlow) bool {
	return a.oneHalf() == b.oneHalf() && otherKey(key, a) == otherKey(key, b)
}
