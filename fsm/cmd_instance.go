package fsm

import (
	"cmp"
	"maps"
	"slices"
	"strings"
)

// MaxPriority bounds the priority of a node for an instance on both sides.
const MaxPriority = 1000

// priorities returns the canonical form: a copy without zeros and without the
// nodes named, nil if nothing is left.
func priorities(in map[NodeID]int, without ...NodeID) map[NodeID]int {
	out := make(map[NodeID]int, len(in))
	for name, p := range in {
		if p != 0 && !slices.Contains(without, name) {
			out[name] = p
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func (c PutInstance) apply(d *draft) error {
	chk := &checker{object: "instance " + shown(c.Name)}
	chk.name("name", c.Name)
	for _, name := range slices.Sorted(maps.Keys(c.Priorities)) {
		field := "priorities." + shown(name)
		n := d.nodes.get(name)
		switch {
		case n == nil:
			chk.bad(field, nil, "names no member: see \"pontoon node list\"")
		case n.Role != RoleLB:
			chk.bad(field, nil, "names a witness, which is never master: leave it out")
		}
		if p := c.Priorities[name]; p < -MaxPriority || p > MaxPriority {
			chk.bad(field, p, "must be %d to %d", -MaxPriority, MaxPriority)
		}
	}
	inst := Instance{Name: c.Name, Assignment: Assignment{Succession: []NodeID{}}}
	old := d.instances.get(c.Name)
	if old != nil {
		inst = *old
	}
	fresh, hops := old == nil, inst.NextHops
	inst.Priorities = priorities(c.Priorities)
	if c.hasSettings() {
		c.set(&inst)
		d.checkSettings(chk, inst)
	}
	if err := chk.err(); err != nil {
		return err
	}
	if c.Spread && fresh && inst.Kind != InstanceECMP {
		inst.Master = d.leastLoaded(inst)
	}
	d.putInstance(inst)
	d.releaseHops(hops)
	return nil
}

func (d *draft) instance(name string) (Instance, error) {
	inst := d.instances.get(name)
	if inst == nil {
		return Instance{}, refuse(ErrNotFound, "instance %s does not exist: see \"pontoon instance list\"", shown(name))
	}
	return *inst, nil
}

func (c DeleteInstance) apply(d *draft) error {
	inst, err := d.instance(c.Name)
	if err != nil {
		return err
	}
	if inst.Name == DefaultInstance {
		return refuse(ErrInvalid, "instance %s always exists and cannot be deleted", DefaultInstance)
	}
	var users []string
	for _, v := range d.vips.values() {
		if v.Instance == inst.Name {
			users = append(users, v.Address.String())
		}
	}
	if len(users) > 0 {
		return refuse(ErrInUse, "instance %s has VIPs %s: move or delete them first", inst.Name, few(users))
	}
	for _, p := range d.pools.rows {
		if p.val.Instance == inst.Name {
			users = append(users, p.key)
		}
	}
	if len(users) > 0 {
		return refuse(ErrInUse, "instance %s gets the addresses of pools %s: give these another instance or delete them first", inst.Name, few(users))
	}
	d.instances.drop(inst.Name)
	return nil
}

func (c MoveInstance) apply(d *draft) error {
	inst, err := d.instance(c.Name)
	if err != nil {
		return err
	}
	n, err := d.member(c.To)
	if err != nil {
		return err
	}
	if inst.Kind == InstanceECMP {
		return refuse(ErrInvalid, "instance %s is of kind %s and has no master: every eligible node serves it; to take node %s out of it, drain one with \"pontoon node drain\"",
			inst.Name, InstanceECMP, n.Name)
	}
	if n.Name == inst.Master {
		return nil
	}
	able := eligible(d.nodes.values())
	if !slices.ContainsFunc(able, func(o Node) bool { return o.Name == n.Name }) {
		// A node without an obstacle is left out only for its missing flows.
		reason := cmp.Or(obstacle(n), "does not hold all flows yet")
		return refuse(ErrNotEligible, "instance %s cannot move to node %s, which %s: eligible are %s",
			inst.Name, n.Name, reason, fewNodes(rank(inst, able)))
	}
	inst.Master = n.Name
	d.putInstance(inst)
	return nil
}

// few joins names for one line of an error, not all of ten thousand.
func few(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}

func fewNodes(names []NodeID) string {
	if len(names) == 0 {
		return "none"
	}
	words := make([]string, len(names))
	for i, name := range names {
		words[i] = string(name)
	}
	return few(words)
}
