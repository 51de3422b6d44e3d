package fsm

import (
	"reflect"
	"slices"
)

// ChangeVerb says what happened to an object between two states.
type ChangeVerb string

// The verbs of a Change.
const (
	Created ChangeVerb = "created"
	Changed ChangeVerb = "changed"
	Deleted ChangeVerb = "deleted"
)

// Change is one configured object that differs between two states.
type Change struct {
	Kind string // "service", "vip", "instance", "pool", "bgp peer" or "bgp"
	Name string // a VIP's is its address; a peer's is "ADDRESS" or "ADDRESS on NODE"; that of bgp is "configuration"
	Verb ChangeVerb
}

// ConfigChanges tells what operators changed between two states: services,
// then VIPs, then instances, then pools, then BGP peers, each in order of their keys, then the
// settings of BGP. Of an instance only coming, going and its settings count, since
// the rest of it is mostly elections. States
// that descend from each other share what did not change, so the cost of
// looking is one pointer comparison for each object.
func ConfigChanges(prev, next *State) []Change {
	var out []Change
	collect := func(kind string) func(string, ChangeVerb) {
		return func(name string, verb ChangeVerb) { out = append(out, Change{kind, name, verb}) }
	}
	diffTables(&prev.services, &next.services, func(s *Service) string { return s.Name }, collect("service"))
	diffTables(&prev.vips, &next.vips, func(v *VIP) string { return v.Address.String() }, collect("vip"))
	instance := collect("instance")
	diffTables(&prev.instances, &next.instances, func(i *Instance) string { return i.Name }, func(name string, verb ChangeVerb) {
		if verb != Changed || !sameSettings(prev.instances.get(name), next.instances.get(name)) {
			instance(name, verb)
		}
	})
	diffTables(&prev.pools, &next.pools, func(p *Pool) string { return p.Name }, collect("pool"))
	diffTables(&prev.bgpPeers, &next.bgpPeers, (*BGPPeer).name, collect("bgp peer"))
	if prev.bgp != next.bgp && !reflect.DeepEqual(prev.BGP(), next.BGP()) {
		out = append(out, Change{"bgp", "configuration", Changed})
	}
	return out
}

// diffTables walks two tables side by side.
func diffTables[K, V, N any](prev, next *table[K, V], name func(*V) N, say func(name N, verb ChangeVerb)) {
	if sameRows(prev, next) {
		return
	}
	i, j := 0, 0
	for i < len(prev.rows) || j < len(next.rows) {
		order := 0
		switch {
		case i == len(prev.rows):
			order = 1
		case j == len(next.rows):
			order = -1
		default:
			order = prev.compare(prev.rows[i].key, next.rows[j].key)
		}
		switch {
		case order < 0:
			say(name(prev.rows[i].val), Deleted)
			i++
		case order > 0:
			say(name(next.rows[j].val), Created)
			j++
		default:
			if a, b := prev.rows[i].val, next.rows[j].val; a != b && !reflect.DeepEqual(a, b) {
				say(name(b), Changed)
			}
			i++
			j++
		}
	}
}

// SharesConfig says whether a and b have the very same VIPs, services and
// cluster, instances of the same kinds, and endpoints in the same health, as two
// states have of which one came from the other by commands about nodes or BGP
// only: what the data plane is compiled from. It looks at three pointers, and at
// the instances and verdicts if they are not shared; false may also mean equal,
// but not shared.
func SharesConfig(a, b *State) bool {
	return SharesServices(a, b) && sameHealth(&a.health, &b.health)
}

// SharesServices is SharesConfig without the health of endpoints: where it says
// yes and SharesConfig no, HealthChanges names what differs.
func SharesServices(a, b *State) bool {
	return sameRows(&a.services, &b.services) && sameRows(&a.vips, &b.vips) &&
		a.cluster.ID == b.cluster.ID && a.cluster.Seed == b.cluster.Seed && sameKinds(&a.instances, &b.instances)
}

func sameKinds(a, b *table[string, Instance]) bool {
	return sameRows(a, b) || slices.EqualFunc(a.rows, b.rows, func(x, y row[string, Instance]) bool {
		return x.key == y.key && x.val.Kind == y.val.Kind
	})
}

func sameRows[K, V any](a, b *table[K, V]) bool {
	return len(a.rows) == len(b.rows) && (len(a.rows) == 0 || &a.rows[0] == &b.rows[0])
}
