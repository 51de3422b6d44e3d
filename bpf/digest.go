package bpf

import (
	"context"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"time"
)

// DigestBuckets is how many parts the flow space has for digests. A connection is in the one that a hash
// of its client's tuple says.
const DigestBuckets = 4096

// DigestVersion names what Digest sums up. Two nodes can compare their digests if it is the same.
const DigestVersion = 1

// digestAge is how old a connection is before it is in a digest: records of younger ones may be
// under way.
const digestAge = 5 * time.Second

const (
	bucketSeed = 0x2545f4914f6cdd1d
	digestSeed = 0xd6e8feb86659fd93
)

// bucket is where the connection with this client tuple belongs.
func (k *pontoonFlowKey) bucket() uint32 { return uint32(k.hash(bucketSeed) >> 52) }

// digest is a hash of all in which a replica is to agree with its original: who talks to whom by
// which way, and whether the connection is closing, but nothing that counts or ages.
func (c *connection) digest() uint64 {
	f := &c.forward
	h := c.key.hash(digestSeed)
	other := otherKey(&c.key, f)
	h = mix(h, other.hash(digestSeed))
	h = mix(h, uint64(f.Service)|uint64(f.Endpoint)<<16|uint64(f.Mode)<<32|uint64(f.State)<<40)
	return mix(h, digestSeed)
}

// Digest sums up the connections of one owner in this node's flow table, a number for each of
// DigestBuckets: with this node's own slot those that it owns and tells the others of, with another's the replicas
// of that owner. Two tables with the same numbers hold the same, but for connections younger than five seconds and those that are
// closed, which are left out; so are replicas nobody answers for. It takes no lock.
func (d *Dataplane) Digest(ctx context.Context, owner uint8) ([]uint64, error) {
	now, err := d.clock.now()
	if err != nil {
		return nil, fmt.Errorf("digest of owner %d: %w", owner, err)
	}
	sums := make([]uint64, DigestBuckets)
	for part, err := range dump(ctx, d.maps.Flows) {
		if err != nil {
			return nil, fmt.Errorf("digest of owner %d: %w", owner, err)
		}
		for i := range part.keys {
			c := connection{key: part.keys[i], forward: part.values[i]}
			f := &c.forward
			if f.reply() || FlowState(f.State) == StateClosed || !d.belongs(f, owner, now) || now.age(f.Created) < digestAge {
				continue
			}
			sums[c.key.bucket()] ^= c.digest()
		}
	}
	return sums, nil
}

// belongs says whether f is one of an owner's that others are to have, too.
func (d *Dataplane) belongs(f *pontoonFlow, owner uint8, now instant) bool {
	if d.silent(f) {
		return false
	}
	if owner == d.opts.Slot {
		return d.answersFor(f)
	}
	return f.replica() && f.OwnerSlot == owner && !d.owners.orphan(f, now)
}

// bucketSet is a set of buckets.
type bucketSet [DigestBuckets / 64]uint64

func bucketsOf(numbers []uint32) *bucketSet {
	var s bucketSet
	for _, n := range numbers {
		if n < DigestBuckets {
			s[n/64] |= 1 << (n % 64)
		}
	}
	return &s
}

func (s *bucketSet) has(n uint32) bool { return s[n/64]&(1<<(n%64)) != 0 }

// RecordsOf is Records for what this node owns in the given buckets: what repairs a difference of
// digests. Those too young for a digest and those that are closed are among it.
func (d *Dataplane) RecordsOf(ctx context.Context, buckets []uint32) iter.Seq2[[]byte, error] {
	wanted := bucketsOf(buckets)
	return func(yield func([]byte, error) bool) {
		for part, err := range dump(ctx, d.maps.Flows) {
			var records []byte
			if err == nil {
				records, err = d.recordsWhere(part, func(key *pontoonFlowKey, f *pontoonFlow) bool {
					return d.answersFor(f) && wanted.has(key.bucket())
				})
			}
			if err != nil {
				yield(nil, fmt.Errorf("dump records of %d buckets: %w", len(buckets), err))
				return
			}
			if len(records) > 0 && !yield(records, nil) {
				return
			}
		}
	}
}

// repairs remembers, per owner, the repair that is under way.
type repairs struct {
	mu   sync.Mutex
	open map[uint8]*repair
}

type repair struct {
	buckets *bucketSet
	began   instant
	seed    uint64
	named   hashSet
}

func (r *repairs) begin(owner uint8, buckets []uint32, now instant) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = map[uint8]*repair{}
	}
	r.open[owner] = &repair{buckets: bucketsOf(buckets), began: now, seed: rand.Uint64()}
}

func (r *repairs) seen(owner uint8, key *pontoonFlowKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if open := r.open[owner]; open != nil && open.buckets.has(key.bucket()) {
		open.named.add(key.hash(open.seed))
	}
}

// unnamed says whether the repair r would have named the connection if its owner had it.
func (r *repairs) unnamed(open *repair, key *pontoonFlowKey) bool {
	if !open.buckets.has(key.bucket()) {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return !open.named.has(key.hash(open.seed))
}

func (r *repairs) get(owner uint8) *repair {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.open[owner]
}

// forget ends a repair without effect, if it is still the one that is open.
func (r *repairs) forget(owner uint8, which *repair) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if which == nil || r.open[owner] == which {
		delete(r.open, owner)
	}
}

// BeginRepair is BeginSnapshot for some buckets (see Digest) of an owner's flows. A repair of the same owner that
// was begun and not ended is forgotten; so is this one when a snapshot of that owner begins.
func (d *Dataplane) BeginRepair(owner uint8, buckets []uint32) {
	now, err := d.clock.now()
	if err != nil {
		d.log.Warn("clock not read", "err", err)
		d.repairs.forget(owner, nil)
		return
	}
	d.repairs.begin(owner, buckets, now)
}

// EndRepair removes the replicas of this owner in the buckets of BeginRepair that were here before
// it and were not imported since, and returns how many. Those adopted meanwhile stay, and so do
// orphans.
func (d *Dataplane) EndRepair(ctx context.Context, owner uint8) (int, error) {
	open := d.repairs.get(owner)
	if open == nil {
		return 0, fmt.Errorf("end repair of owner %d: none was begun", owner)
	}
	defer d.repairs.forget(owner, open)
	now, err := d.clock.now()
	if err != nil {
		return 0, fmt.Errorf("end repair of owner %d: %w", owner, err)
	}
	since := now.since(open.began)
	removed := 0
	for part, err := range dump(ctx, d.maps.Flows) {
		var n int
		if err == nil {
			n, err = d.removeReplicas(part, owner, now, func(key *pontoonFlowKey, f *pontoonFlow) bool {
				return now.age(f.Created) >= since && d.repairs.unnamed(open, key)
			})
		}
		removed += n
		if err != nil {
			return removed, fmt.Errorf("end repair of owner %d: %w", owner, err)
		}
	}
	return removed, nil
}
