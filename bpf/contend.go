package bpf

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
)

// place decides whose c is by the standing of the record; false: it is no news.
func (in *importer) place(c *connection, reason uint8, epoch uint32) bool {
	owner := c.forward.OwnerSlot
	switch {
	case owner == in.d.opts.Slot:
	case reason == reasonOrphan || owner == nobody:
		in.d.owners.bereave(c, in.now)
	case reason == reasonHearsay:
		return !in.d.owners.toldAll(owner)
	default:
		in.d.epochs.learn(owner, c.forward.Service, epoch)
		in.d.snaps.seen(owner, &c.key)
		in.d.repairs.seen(owner, &c.key)
	}
	return true
}

// stamp stamps c, which is about to be written. When the last packet of a connection was that this
// node has forgotten is not known: it ages from now on.
func (in *importer) stamp(c *connection, reason uint8) {
	switch owner := c.forward.OwnerSlot; {
	case owner == in.d.opts.Slot:
		c.forward.LastSeen, c.reply.LastSeen = uint32(in.now.jiffies), uint32(in.now.jiffies)
	case reason != reasonHearsay && reason != reasonOrphan && owner != nobody:
		in.d.owners.vouch(c, in.now)
	}
}

// contend writes an item whose tuples other connections hold, or held a moment ago, if it is more
// likely to be right than they are.
func (in *importer) contend(it *importItem) error {
	c := &it.c
	var err error
	if it.existed, err = lookup(in.d.maps.Flows, c.key, &it.was); err != nil {
		return err
	}
	if it.existed && it.was.reply() { // the tuple is the reply tuple of another connection
		it.existed = false
		if keep, err := in.evict(it, c.key); keep || err != nil {
			return err
		}
	}
	if it.existed {
		if keep, err := in.replace(it); keep || err != nil {
			return err
		}
	}
	if !c.forward.oneHalf() && !(it.existed && samePair(&c.key, &it.was, &c.forward)) {
		if keep, err := in.evict(it, otherKey(&c.key, &c.forward)); keep || err != nil {
			return err
		}
	}
	in.add(it)
	return in.write()
}

// replace prepares for writing over the local entry of the same client tuple; true: it stays.
func (in *importer) replace(it *importItem) (bool, error) {
	c, local := &it.c, &it.was
	l := connection{key: c.key, forward: *local}
	paired, err := partner(in.d.flowTable(), &c.key, local, &l.reply)
	if err != nil {
		return false, err
	}
	if !paired {
		l.reply = pontoonFlow{LastSeen: local.LastSeen}
	}
	if in.stands(&l, it) {
		in.result.Kept++
		return true, nil
	}
	if samePair(&c.key, local, &c.forward) {
		c.inherit(&l)
		return false, nil
	}
	if !paired {
		return false, nil
	}
	return false, in.d.remove(in.d.flowTable(), removal{replies: []pontoonFlowKey{otherKey(&c.key, local)}})
}

// evict looks whether a tuple of c belongs to another connection here. Tuples are unique in the
// cluster, so one of the two is out of date; true: the local one stays.
func (in *importer) evict(it *importItem, key pontoonFlowKey) (bool, error) {
	c := &it.c
	var held pontoonFlow
	found, err := lookup(in.d.maps.Flows, key, &held)
	if err != nil || !found {
		return false, err
	}
	if !held.oneHalf() && otherKey(&key, &held) == c.key {
		return false, nil
	}
	if it.bequeathed() && in.holds(&key, &held, c) {
		in.result.Kept++
		return true, nil
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
	return false, in.d.remove(in.d.flowTable(), gone)
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
