package fsm

import (
	"cmp"
	"hash/fnv"
	"slices"
)

// obstacle says why a node may not be master, apart from being out of sync;
// "" if nothing stands in the way.
func obstacle(n Node) string {
	switch {
	case n.Role != RoleLB:
		return "is a witness and owns no data plane"
	case !n.Alive:
		return "is not alive"
	case !n.Ready:
		return "has no data plane ready"
	case !n.LinksUp:
		return "has a data plane interface without link"
	case n.Draining:
		return "is draining"
	}
	return ""
}

// eligible returns the nodes that may be master. Being in sync counts only
// while somebody is: if nobody holds all flows, mastership without them is
// still better than none.
func eligible(nodes []Node) []Node {
	var able, synced []Node
	for _, n := range nodes {
		if obstacle(n) != "" {
			continue
		}
		able = append(able, n)
		if n.InSync {
			synced = append(synced, n)
		}
	}
	if len(synced) > 0 {
		return synced
	}
	return able
}

// rank puts nodes in order of preference for an instance: higher priority
// first, then higher rendezvous weight, then name.
func rank(inst Instance, nodes []Node) []NodeID {
	type scored struct {
		name     NodeID
		priority int
		weight   uint64
	}
	all := make([]scored, len(nodes))
	for i, n := range nodes {
		all[i] = scored{n.Name, inst.Priorities[n.Name], rendezvous(inst.Name, n.Name)}
	}
	slices.SortFunc(all, func(a, b scored) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(b.weight, a.weight), cmp.Compare(a.name, b.name))
	})
	names := make([]NodeID, len(all))
	for i, s := range all {
		names[i] = s.name
	}
	return names
}

// rendezvous is the weight of a node for an instance (highest random weight:
// Thaler and Ravishankar, 1998). Removing a node leaves the order of the
// others as it was. The hash is FNV-1a (64 bit) over instance, a zero byte and
// node, finished with the mixer of SplitMix64, because FNV alone spreads the
// last byte badly over the high bits. It is part of the replicated format:
// changing it changes elections.
func rendezvous(instance string, node NodeID) uint64 {
	h := fnv.New64a()
	h.Write([]byte(instance)) // a hash never fails to write
	h.Write([]byte{0})
	h.Write([]byte(node))
	x := h.Sum64()
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// elect decides master and succession of one instance from the eligible
// nodes, in order. all are the nodes there are. The epoch of the result is left as the
// instance has it.
//
//   - An eligible incumbent stays, whatever the order of the rest.
//   - Otherwise the first in order takes over.
//   - If nobody is eligible, an incumbent that is alive stays (draining or
//     not): its data plane may still forward, and nobody can do better.
//     With a dead or removed incumbent the instance has no master.
//
// An instance of kind InstanceECMP has no master: see electAll.
func elect(inst Instance, able, all []Node) Assignment {
	if inst.Kind == InstanceECMP {
		return electAll(inst, able, all)
	}
	order := rank(inst, able)
	incumbents := []NodeID{inst.Master}
	if inst.Master == "" {
		incumbents = inst.Succession // of an instance that had no master by its kind
	}
	master := inst.Master
	switch {
	case slices.Contains(order, master):
	case len(order) > 0:
		master = order[0]
	default:
		master = ""
		if left := living(inst, incumbents, all); len(left) > 0 {
			master = left[0]
		}
	}
	succession := make([]NodeID, 0, len(order)+1)
	if master != "" {
		succession = append(succession, master)
	}
	for _, name := range order {
		if name != master {
			succession = append(succession, name)
		}
	}
	return Assignment{Master: master, Succession: succession, Epoch: inst.Epoch}
}

// electAll is elect for an instance without a master: all who are eligible serve it
// alike, and stand in the succession in order. If nobody is eligible, those of the
// last succession that are alive go on: were their routes withdrawn, the addresses would be
// gone for everybody.
func electAll(inst Instance, able, all []Node) Assignment {
	succession := rank(inst, able)
	if len(succession) == 0 {
		succession = living(inst, inst.Succession, all)
	}
	return Assignment{Succession: succession, Epoch: inst.Epoch}
}

// living are those of the names that are alive, in order.
func living(inst Instance, names []NodeID, all []Node) []NodeID {
	left := make([]Node, 0, len(names))
	for _, n := range all {
		if n.Alive && slices.Contains(names, n.Name) {
			left = append(left, n)
		}
	}
	return rank(inst, left)
}

// settle runs the election of every instance once, after all changes of a log
// entry, and gives a new epoch to those whose master is another than before
// the entry, or that have come to do with or without one. Who serves an instance without a
// master may change within an epoch: nobody has to be fenced off by it.
func (d *draft) settle() {
	all := d.nodes.values()
	able := eligible(all)
	for _, r := range d.instances.rows {
		inst := *r.val
		next := elect(inst, able, all)
		var before Instance // one made by this entry had no master
		if old := d.base.instances.get(inst.Name); old != nil {
			before = *old
		}
		next.Epoch = before.Epoch
		if next.Master != before.Master || inst.Kind != before.Kind {
			next.Epoch = d.index
		}
		if next.Master != inst.Master || next.Epoch != inst.Epoch || !slices.Equal(next.Succession, inst.Succession) {
			inst.Assignment = next
			d.instances.put(inst.Name, inst)
		}
	}
}
