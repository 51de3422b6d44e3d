package transport

import (
	"context"
	"encoding/binary"
	"iter"
	"maps"
	"slices"
)

// replHeirs is what a table of the tests knows of owners that died. A key of theirs
// is called replHeirKey(owner, key) from then on, by whoever takes it over as well.
// Guarded by the table's mutex.
type replHeirs struct {
	numbers map[string]uint64 // of the nodes
	dead    map[string]bool
	orphans map[uint64]uint64
	ended   map[uint64]uint64 // the versions up to which what a key names has ended
	say     func([]byte)      // publishes; nil: nobody is told
	asked   int               // for the view
}

func replHeirKey(number, key uint64) uint64 { return (number+1)<<32 | key }

// replOrphanRecord says that an orphan is held, or up to which version it has ended.
func replOrphanRecord(key, version uint64, ended bool) []byte {
	b := replRecord(key, version, ended)
	b[17] = 1
	return b
}

var _ ReplicationOrphans = (*replTable)(nil)

// replWithOrphans has a node compare what it holds of the dead, too.
func replWithOrphans(c *ReplicationConfig, m *replTable) {
	replWithDigests(c, m)
	c.Orphans = m
	m.heirs = newReplHeirs(map[string]uint64{"a": 0, "b": 1, "c": 2})
}

func newReplHeirs(numbers map[string]uint64) *replHeirs {
	return &replHeirs{numbers: numbers, dead: map[string]bool{}, orphans: map[uint64]uint64{}, ended: map[uint64]uint64{}}
}

// bury takes note of an owner's death: what is held of it is nobody's.
func (m *replTable) bury(owner string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.heirs
	h.dead[owner] = true
	last := m.replicas[owner]
	delete(m.replicas, owner)
	for key, version := range last {
		if key = replHeirKey(h.numbers[owner], key); !h.taken(m, key) {
			h.orphans[key] = version
		}
	}
}

// taken says whether somebody has taken over what key names, perhaps before its owner's death was known here.
func (h *replHeirs) taken(m *replTable, key uint64) bool {
	if _, ours := m.own[key]; ours {
		return true
	}
	for _, replica := range m.replicas {
		if _, theirs := replica[key]; theirs {
			return true
		}
	}
	return false
}

// adopt takes an orphan over, if there is one, and returns what is to be published.
func (m *replTable) adopt(pick, version uint64) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := slices.Sorted(maps.Keys(m.heirs.orphans))
	if len(keys) == 0 {
		return nil
	}
	key := keys[pick%uint64(len(keys))]
	delete(m.heirs.orphans, key)
	m.own[key] = version
	return replRecord(key, version, false)
}

// release ends what was adopted, if there is any, and returns what is to be published.
func (m *replTable) release(pick uint64) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	keys := slices.DeleteFunc(slices.Sorted(maps.Keys(m.own)), func(k uint64) bool { return k < 1<<32 })
	if len(keys) == 0 {
		return nil
	}
	key := keys[pick%uint64(len(keys))]
	m.heirs.ended[key] = m.own[key]
	delete(m.own, key)
	return replRecord(key, 0, true)
}

// apply takes a record that is about a dead owner's, or about what was one.
func (h *replHeirs) apply(m *replTable, peer string, record []byte) bool {
	key, version, gone := binary.BigEndian.Uint64(record), binary.BigEndian.Uint64(record[8:]), record[16] == 1
	switch {
	case record[17] == 1:
		h.inherit(m, key, version, gone)
		return true
	case h.dead[peer]: // its last words came late
		key = replHeirKey(h.numbers[peer], key)
		h.inherit(m, key, max(version, h.orphans[key]), gone)
		return true
	case key >= 1<<32 && !gone: // the peer has taken it over
		delete(h.orphans, key)
	case key >= 1<<32:
		h.ended[key] = max(h.ended[key], m.replicas[peer][key])
		delete(h.orphans, key)
	case gone:
		key = replHeirKey(h.numbers[peer], key)
		h.ended[key] = max(h.ended[key], m.replicas[peer][key&(1<<32-1)])
	}
	return false
}

// inherit joins what is held of the dead with what another says of it.
func (h *replHeirs) inherit(m *replTable, key, version uint64, gone bool) {
	if gone {
		h.ended[key] = max(h.ended[key], version)
		if h.orphans[key] <= version {
			delete(h.orphans, key)
		}
		return
	}
	if version <= h.ended[key] {
		if h.say != nil {
			h.say(replOrphanRecord(key, h.ended[key], true))
		}
		return
	}
	if h.taken(m, key) {
		return
	}
	h.orphans[key] = max(h.orphans[key], version)
}

func (m *replTable) OrphanView() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.heirs.asked++
	return m.heirs.view()
}

func (h *replHeirs) view() (v uint64) {
	for owner := range h.dead {
		v |= 1 << h.numbers[owner]
	}
	return v
}

func (m *replTable) OrphanDigest(context.Context) (ReplicationOrphanDigest, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return ReplicationOrphanDigest{
		View: m.heirs.view(), Records: uint64(len(m.heirs.orphans)), Sums: replTestSum(m.heirs.orphans),
	}, nil
}

func (m *replTable) OrphansOf(_ context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		m.mu.Lock()
		keys := slices.Sorted(maps.Keys(m.heirs.orphans))
		m.mu.Unlock()
		for _, key := range keys {
			if !slices.Contains(buckets, replTestBucket(key)) {
				continue
			}
			m.mu.Lock()
			version, ok := m.heirs.orphans[key]
			m.mu.Unlock()
			if ok && !yield(replOrphanRecord(key, version, false), nil) {
				return
			}
		}
	}
}

// held is what is held of the dead.
func (m *replTable) heldOfTheDead() map[uint64]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.heirs.orphans)
}
