package node

import "reflect"

// diffNamed tells what was created, changed or deleted between two lists that
// are both sorted by the same name.
func diffNamed[T any](prev, next []T, name func(T) string, say func(name, verb string)) {
	old := make(map[string]T, len(prev))
	for _, p := range prev {
		old[name(p)] = p
	}
	for _, n := range next {
		p, ok := old[name(n)]
		delete(old, name(n))
		switch {
		case !ok:
			say(name(n), "created")
		case !reflect.DeepEqual(p, n):
			say(name(n), "changed")
		}
	}
	for _, p := range prev {
		if _, gone := old[name(p)]; gone {
			say(name(p), "deleted")
		}
	}
}
