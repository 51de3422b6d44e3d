package bpf

import (
	"encoding/binary"
	"math/bits"
	"unsafe"
)

// hashSet is a set of 64 bit hashes, by open addressing: eight bytes an element at most half of
// which lie idle, nothing for the garbage collector to look at. The zero value is an empty set.
type hashSet struct {
	slots []uint64 // 0: free
	n     int
}

const hashSetLeast = 1024

// add puts h in and tells whether it was there.
func (s *hashSet) add(h uint64) bool {
	if 4*s.n >= 3*len(s.slots) {
		s.grow()
	}
	at := s.place(h)
	if s.slots[at] != 0 {
		return true
	}
	s.slots[at] = h | 1
	s.n++
	return false
}

// has tells whether h is in the set, or one that differs from it in the lowest bit.
func (s *hashSet) has(h uint64) bool {
	return len(s.slots) > 0 && s.slots[s.place(h)] != 0
}

// place is where h is, or belongs.
func (s *hashSet) place(h uint64) uint64 {
	mask := uint64(len(s.slots) - 1)
	at := h >> 1 & mask
	for s.slots[at] != 0 && s.slots[at] != h|1 {
		at = (at + 1) & mask
	}
	return at
}

func (s *hashSet) grow() {
	old := s.slots
	s.slots = make([]uint64, max(hashSetLeast, 2*len(old)))
	for _, h := range old {
		if h != 0 {
			s.slots[s.place(h)] = h
		}
	}
}

// reset empties the set and keeps its room.
func (s *hashSet) reset() {
	clear(s.slots)
	s.n = 0
}

// mix takes one more word into a hash: the two halves of a 128 bit product, as in wyhash.
func mix(h, word uint64) uint64 {
	hi, lo := bits.Mul64(h^word, 0x9e3779b97f4a7c15)
	return hi ^ lo ^ h<<1
}

// hash depends on the whole tuple.
func (k *pontoonFlowKey) hash(seed uint64) uint64 {
	b := unsafe.Slice((*byte)(unsafe.Pointer(k)), unsafe.Sizeof(*k))
	h := seed
	for at := 0; at < len(b); at += 8 {
		h = mix(h, binary.LittleEndian.Uint64(b[at:]))
	}
	return mix(h, seed)
}
