package fsm

import "math/bits"

// idRing gives out the numbers 1 to MaxID, each to one holder at a time. It
// goes round: the next one given is the next free one after the last given.
//
// The set is a bit map of 8 kB. Like a table it is copied by the first change
// inside a draft and shared otherwise.
type idRing struct {
	taken *[(MaxID + 1) / 64]uint64
	next  uint32 // where the search for the next one begins, 1..MaxID
	held  int
	mine  bool // taken belongs to the draft that holds this ring
}

func newIDRing() idRing {
	r := idRing{taken: new([(MaxID + 1) / 64]uint64), next: 1}
	r.taken[0] = 1 // 0 is nobody's id
	return r
}

func (r *idRing) own() {
	if !r.mine {
		words := *r.taken
		r.taken, r.mine = &words, true
	}
}

// room is how many can still be given out.
func (r *idRing) room() int { return MaxID - r.held }

func (r *idRing) has(id uint32) bool {
	return id <= MaxID && r.taken[id/64]&(1<<(id%64)) != 0
}

// take gives out the next free one. There has to be room.
func (r *idRing) take() uint32 {
	id := r.free(r.next)
	r.put(id)
	r.next = id%MaxID + 1
	return id
}

// free finds the first number from id on, round the ring, that nobody holds.
func (r *idRing) free(id uint32) uint32 {
	word := id / 64
	gaps := ^r.taken[word] >> (id % 64) << (id % 64)
	for gaps == 0 {
		word = (word + 1) % uint32(len(r.taken))
		gaps = ^r.taken[word]
	}
	return word*64 + uint32(bits.TrailingZeros64(gaps))
}

// put makes id one that is held. It is neither 0, nor above MaxID, nor held.
func (r *idRing) put(id uint32) {
	r.own()
	r.taken[id/64] |= 1 << (id % 64)
	r.held++
}

// drop takes an id back that is held.
func (r *idRing) drop(id uint32) {
	r.own()
	r.taken[id/64] &^= 1 << (id % 64)
	r.held--
}

// freeze ends the draft's right to write.
func (r *idRing) freeze() { r.mine = false }
