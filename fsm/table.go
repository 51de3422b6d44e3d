package fsm

import "slices"

// table is a sorted, copy-on-write map. Rows are kept in one slice in order of
// their keys, so walking it is deterministic, copying it is one memory move
// (0.24 MB for 10 000 services), and the values behind the pointers are never
// written again.
//
// A table inside a State is frozen. The first change inside a draft copies the
// rows, further changes of the same draft are made in place, so that a batch
// of many commands copies once.
type table[K, V any] struct {
	compare func(a, b K) int
	rows    []row[K, V]
	mine    bool // rows belong to the draft that holds this table
}

type row[K, V any] struct {
	key K
	val *V
}

func newTable[K, V any](compare func(a, b K) int) table[K, V] {
	return table[K, V]{compare: compare}
}

func (t *table[K, V]) find(k K) (int, bool) {
	return slices.BinarySearchFunc(t.rows, k, func(r row[K, V], k K) int { return t.compare(r.key, k) })
}

func (t *table[K, V]) len() int { return len(t.rows) }

// get returns the value, which must not be written to, or nil.
func (t *table[K, V]) get(k K) *V {
	if i, ok := t.find(k); ok {
		return t.rows[i].val
	}
	return nil
}

func (t *table[K, V]) has(k K) bool {
	_, ok := t.find(k)
	return ok
}

// own makes the rows writable, with room for one more.
func (t *table[K, V]) own() {
	if t.mine {
		return
	}
	rows := make([]row[K, V], len(t.rows), len(t.rows)+1)
	copy(rows, t.rows)
	t.rows, t.mine = rows, true
}

func (t *table[K, V]) put(k K, v V) {
	t.own()
	i, ok := t.find(k)
	if ok {
		t.rows[i].val = &v
		return
	}
	t.rows = slices.Insert(t.rows, i, row[K, V]{key: k, val: &v})
}

// putAll puts values whose keys are in order, each once: one pass over the rows,
// where that many single ones would move most rows each time.
func (t *table[K, V]) putAll(values []V, key func(V) K) {
	if len(values) == 0 {
		return
	}
	rows := make([]row[K, V], 0, len(t.rows)+len(values))
	i := 0
	for _, v := range values {
		k := key(v)
		for i < len(t.rows) && t.compare(t.rows[i].key, k) < 0 {
			rows = append(rows, t.rows[i])
			i++
		}
		if i < len(t.rows) && t.compare(t.rows[i].key, k) == 0 {
			i++
		}
		rows = append(rows, row[K, V]{key: k, val: &v})
	}
	t.rows, t.mine = append(rows, t.rows[i:]...), true
}

func (t *table[K, V]) drop(k K) {
	i, ok := t.find(k)
	if !ok {
		return
	}
	t.own()
	t.rows = slices.Delete(t.rows, i, i+1)
}

// freeze ends the draft's right to write.
func (t *table[K, V]) freeze() { t.mine = false }

// values returns shallow copies in order of the keys; never nil.
func (t *table[K, V]) values() []V {
	out := make([]V, len(t.rows))
	for i, r := range t.rows {
		out[i] = *r.val
	}
	return out
}
