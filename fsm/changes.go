package fsm

import "reflect"

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
	Kind string // "service", "vip" or "instance"
	Name string // a VIP's is its address
	Verb ChangeVerb
}

// ConfigChanges tells what operators changed between two states: services,
// then VIPs, then instances, each in order of their keys. Of an instance only
// coming and going counts, since the rest of it is mostly elections. States
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
		if verb != Changed {
			instance(name, verb)
		}
	})
	return out
}

// diffTables walks two tables side by side.
func diffTables[K, V any](prev, next *table[K, V], name func(*V) string, say func(name string, verb ChangeVerb)) {
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
// cluster, as two states have of which one came from the other by commands
// about nodes only. It looks at three pointers; false may also mean equal, but
// not shared.
func SharesConfig(a, b *State) bool {
	return sameRows(&a.services, &b.services) && sameRows(&a.vips, &b.vips) &&
		a.cluster.ID == b.cluster.ID && a.cluster.Seed == b.cluster.Seed
}

func sameRows[K, V any](a, b *table[K, V]) bool {
	return len(a.rows) == len(b.rows) && (len(a.rows) == 0 || &a.rows[0] == &b.rows[0])
}
