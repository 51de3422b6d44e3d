package bpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	halfWays   = 8                  // HALF_WAYS
	halfFactor = 0x9fb21c651e98df25 // HALF_FACTOR
)

// halfFactors make a secret for each word of a key out of the seed (HALF_FACTOR_0 to 4).
var halfFactors = [...]uint64{
	0xbf58476d1ce4e5b9, 0x94d049bb133111eb, 0xff51afd7ed558ccd, 0xc4ceb9fe1a85ec53, 0xd6e8feb86659fd93,
}

// halfBuckets is how many buckets so many connections get, which have two entries each: with half as
// many places again few buckets are full before the table is.
func halfBuckets(connections uint32) uint32 {
	return uint32((uint64(connections)*3 + halfWays - 1) / halfWays)
}

// flowTable is what holds halves of connections: the flow table or the half-open one.
type flowTable interface {
	// dump yields the content in chunks. The slices are valid until the next turn. Entries that come
	// and go meanwhile may be missed; those that stay are seen once.
	dump(ctx context.Context) iter.Seq2[chunk, error]
	// find reads the entry of key.
	find(key pontoonFlowKey, value *pontoonFlow) (bool, error)
	// drop removes entries; keys that are gone already are no error.
	drop(keys []pontoonFlowKey) error
}

// hashTable is the flow table.
type hashTable struct{ *ebpf.Map }

func (t hashTable) dump(ctx context.Context) iter.Seq2[chunk, error] { return dump(ctx, t.Map) }

func (t hashTable) find(key pontoonFlowKey, value *pontoonFlow) (bool, error) {
	return lookup(t.Map, key, value)
}

func (t hashTable) drop(keys []pontoonFlowKey) error { return deleteKeys(t.Map, keys) }

// halfTable is the half-open table in shared memory; c/half.h says how it works. Programs put
// entries in and take them out meanwhile, so a place is read between two looks at its tag, and
// freed only with the tag it was found with. Methods may be called concurrently.
type halfTable struct {
	mu      sync.RWMutex // held by users against unmapping
	memory  []byte
	buckets []pontoonHalfBucket
	seed    uint32
}

// open maps the memory. The seed is that of the programs.
func (t *halfTable) open(m *ebpf.Map, seed uint32) error {
	n := int(m.MaxEntries())
	size := n * int(unsafe.Sizeof(pontoonHalfBucket{}))
	page := unix.Getpagesize()
	memory, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the half-open table: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.memory, t.seed = memory, seed
	t.buckets = unsafe.Slice((*pontoonHalfBucket)(unsafe.Pointer(&memory[0])), n)
	return nil
}

// close unmaps the memory. The table reads as empty from then on.
func (t *halfTable) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	memory := t.memory
	t.memory, t.buckets = nil, nil
	if memory == nil {
		return nil
	}
	if err := unix.Munmap(memory); err != nil {
		return fmt.Errorf("unmap the half-open table: %w", err)
	}
	return nil
}

func (t *halfTable) dump(ctx context.Context) iter.Seq2[chunk, error] {
	return func(yield func(chunk, error) bool) {
		var part chunk
		for at, more := 0, true; more; {
			if err := ctx.Err(); err != nil {
				yield(chunk{}, err)
				return
			}
			part.keys, part.values = part.keys[:0], part.values[:0]
			at, more = t.read(at, &part)
			if len(part.keys) > 0 && !yield(part, nil) {
				return
			}
		}
	}
}

// read appends what is in the buckets from number at on, until the chunk is full. It returns the next
// number, and whether there is one.
func (t *halfTable) read(at int, part *chunk) (int, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for ; at < len(t.buckets) && len(part.keys) <= dumpChunk-halfWays; at++ {
		b := &t.buckets[at]
		for way := range b.Tag {
			tag := atomic.LoadUint32(&b.Tag[way])
			if tag == 0 {
				continue
			}
			slot := b.Slot[way]
			if atomic.LoadUint32(&b.Tag[way]) == tag {
				part.keys, part.values = append(part.keys, slot.Key), append(part.values, slot.F)
			}
		}
	}
	return at, at < len(t.buckets)
}

func (t *halfTable) find(key pontoonFlowKey, value *pontoonFlow) (bool, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	b, way, tag := t.place(&key)
	if b == nil {
		return false, nil
	}
	*value = b.Slot[way].F
	return atomic.LoadUint32(&b.Tag[way]) == tag, nil
}

func (t *halfTable) drop(keys []pontoonFlowKey) error {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for i := range keys {
		if b, way, tag := t.place(&keys[i]); b != nil {
			t.free(b, way, tag)
		}
	}
	return nil
}

// free gives up a place, if it still is the one that was found. Call with mu held.
func (t *halfTable) free(b *pontoonHalfBucket, way int, tag uint32) {
	atomic.CompareAndSwapUint32(&b.Tag[way], tag, 0)
}

// place returns the bucket that holds key, the place in it and the place's tag; nil: it is not there.
func (t *halfTable) place(key *pontoonFlowKey) (*pontoonHalfBucket, int, uint32) {
	if len(t.buckets) == 0 {
		return nil, 0, 0
	}
	hash := halfHash(key, t.seed)
	b, tag := &t.buckets[hash&0xffffffff*uint64(len(t.buckets))>>32], uint32(hash>>32)|1
	for way := range b.Tag {
		if atomic.LoadUint32(&b.Tag[way]) == tag && b.Slot[way].Key == *key {
			return b, way, tag
		}
	}
	return nil, 0, 0
}

// halfHash is half_hash.
func halfHash(key *pontoonFlowKey, seed uint32) uint64 {
	var hash uint64
	for i, word := range [...]uint64{
		binary.LittleEndian.Uint64(key.Saddr.B[:8]), binary.LittleEndian.Uint64(key.Saddr.B[8:]),
		binary.LittleEndian.Uint64(key.Daddr.B[:8]), binary.LittleEndian.Uint64(key.Daddr.B[8:]),
		uint64(key.Sport) | uint64(key.Dport)<<16 | uint64(key.Proto)<<32,
	} {
		secret := uint64(seed) * halfFactors[i]
		hash += uint64(uint32(word)+uint32(secret)) * uint64(uint32(word>>32)+uint32(secret>>32))
	}
	hash = (hash ^ hash>>32) * halfFactor
	return hash ^ hash>>32
}

// halfSeed returns the seed of the table's hash: the one its entries were put in by, or a new one.
func halfSeed(control *ebpf.Map) (uint32, error) {
	var block pontoonControlBlock
	if err := control.Lookup(uint32(0), &block); err != nil {
		return 0, fmt.Errorf("read the seed of the half-open table: %w", err)
	}
	if block.HalfSeed != 0 {
		return block.HalfSeed, nil
	}
	block.HalfSeed = rand.Uint32() | 1
	if err := control.Put(uint32(0), block); err != nil {
		return 0, fmt.Errorf("keep the seed of the half-open table: %w", err)
	}
	return block.HalfSeed, nil
}
