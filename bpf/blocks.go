package bpf

import (
	"cmp"
	"slices"
	"time"
)

// span is a run of entries in the selection table.
type span struct{ base, length uint32 }

func (s span) end() uint32 { return s.base + s.length }

// blocks hands out spans of a table of fixed size. A released span is given out again only after
// a grace period: a packet that read the old service entry may still look into it.
type blocks struct {
	size    uint32
	used    []span // sorted by base, without overlap; includes what is resting
	resting []rest
}

type rest struct {
	span  span
	until time.Time
}

// claim marks s as used. It reports false when s overlaps what is used or lies outside.
func (b *blocks) claim(s span) bool {
	if s.length == 0 || s.length > b.size || s.base > b.size-s.length {
		return false
	}
	at, _ := slices.BinarySearchFunc(b.used, s, func(x, y span) int { return cmp.Compare(x.base, y.base) })
	if at > 0 && b.used[at-1].end() > s.base {
		return false
	}
	if at < len(b.used) && b.used[at].base < s.end() {
		return false
	}
	b.used = slices.Insert(b.used, at, s)
	return true
}

// allocate returns the first free span of the length, false when there is none.
func (b *blocks) allocate(length uint32, now time.Time) (span, bool) {
	b.reclaim(now)
	next := uint32(0)
	for _, u := range b.used {
		if u.base-next >= length {
			break
		}
		next = u.end()
	}
	s := span{base: next, length: length}
	return s, b.claim(s)
}

// release frees s after the grace period.
func (b *blocks) release(s span, now time.Time) {
	b.resting = append(b.resting, rest{span: s, until: now.Add(blockGrace)})
}

func (b *blocks) reclaim(now time.Time) {
	b.resting = slices.DeleteFunc(b.resting, func(r rest) bool {
		if now.Before(r.until) {
			return false
		}
		at := slices.Index(b.used, r.span)
		if at >= 0 {
			b.used = slices.Delete(b.used, at, at+1)
		}
		return true
	})
}
