package bpf

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"

	"golang.org/x/sys/unix"
)

// errTableFull is what the kernel answers when a hash takes no more.
const errTableFull = unix.E2BIG

// errNoSpace is what the kernel answers when a trie takes no more.
const errNoSpace = unix.ENOSPC

// snapshots remembers, per owner whose snapshot is being received, which connections it named:
// hashes of their keys, as eight bytes each are enough. (Two that collide would keep one stale
// replica alive until it is idle, no more; the seed keeps clients from choosing them.)
type snapshots struct {
	mu   sync.Mutex
	seed uint64
	open map[uint8]*hashSet
}

func (s *snapshots) begin(owner uint8) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open, s.seed = map[uint8]*hashSet{}, rand.Uint64()
	}
	s.open[owner] = &hashSet{}
}

func (s *snapshots) seen(owner uint8, key *pontoonFlowKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if named := s.open[owner]; named != nil {
		named.add(key.hash(s.seed))
	}
}

func (s *snapshots) named(owner uint8, key *pontoonFlowKey) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := s.open[owner]
	return named != nil && named.has(key.hash(s.seed))
}

func (s *snapshots) end(owner uint8) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.open[owner]
	delete(s.open, owner)
	return ok
}

func (s *snapshots) isOpen(owner uint8) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.open[owner]
	return ok
}

// BeginSnapshot starts to take note of what Import brings of this owner. A snapshot of the same
// owner that was begun and not ended is forgotten.
func (d *Dataplane) BeginSnapshot(owner uint8) {
	d.repairs.forget(owner, nil)
	d.snaps.begin(owner)
}

// EndSnapshot removes the replicas of this owner that were not imported since BeginSnapshot, and
// returns how many. Those adopted meanwhile stay, and so do those that were last seen before the
// owner died last: a machine that has come back may have forgotten them, but their clients have not.
func (d *Dataplane) EndSnapshot(ctx context.Context, owner uint8) (int, error) {
	if !d.snaps.isOpen(owner) {
		return 0, fmt.Errorf("end snapshot of owner %d: none was begun", owner)
	}
	defer d.snaps.end(owner)
	now, err := d.clock.now()
	if err != nil {
		return 0, fmt.Errorf("end snapshot of owner %d: %w", owner, err)
	}
	removed := 0
	for part, err := range dump(ctx, d.maps.Flows) {
		if err != nil {
			return removed, fmt.Errorf("end snapshot of owner %d: %w", owner, err)
		}
		n, err := d.removeReplicas(part, owner, now, func(key *pontoonFlowKey, _ *pontoonFlow) bool {
			return !d.snaps.named(owner, key)
		})
		removed += n
		if err != nil {
			return removed, fmt.Errorf("end snapshot of owner %d: %w", owner, err)
		}
	}
	d.owners.told(owner)
	return removed, nil
}

// removeReplicas removes those of an owner that stale says, but not what is in use here, whatever its owner has
// forgotten. It reads each again before it goes: a packet may have adopted it.
func (d *Dataplane) removeReplicas(part chunk, owner uint8, now instant, stale func(*pontoonFlowKey, *pontoonFlow) bool) (int, error) {
	d.flowMu.Lock()
	defer d.flowMu.Unlock()
	var gone removal
	for i := range part.keys {
		key, f := part.keys[i], part.values[i]
		if f.reply() || !f.replica() || f.OwnerSlot != owner || !stale(&key, &f) {
			continue
		}
		found, err := lookup(d.maps.Flows, key, &f)
		if err != nil {
			return 0, err
		}
		if !found || !f.replica() || f.OwnerSlot != owner || !stale(&key, &f) || d.owners.orphan(&f, now) {
			continue
		}
		used, err := d.usedHere(&key, &f, now)
		if err != nil {
			return 0, err
		}
		if !used {
			gone.add(key, &f)
		}
	}
	return len(gone.forwards), d.remove(d.flowTable(), gone)
}
