package bpf

import (
	"cmp"
	"slices"
	"time"
)

// span is a run of entries in the selection table.
type span struct{ base, length uint32 }

func (s span) end() uint32 { return s.base + s.length }

func byBase(a, b span) int { return cmp.Compare(a.base, b.base) }

// blocks hands out spans of a table of fixed size. A released span is given out again only after
// a grace period: a packet that read the old service entry may still look into it.
type blocks struct {
	size    uint32
	used    []span // sorted by base, without overlap; includes what is resting
	resting []rest // in the order of release
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
	at, _ := slices.BinarySearchFunc(b.used, s, byBase)
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

// allocateAll returns a span for each length: side by side in the first place that takes all of them, which is found in one
// search, or else each by itself. What there is no room for has the length 0, as what asks for nothing.
func (b *blocks) allocateAll(lengths []uint32, now time.Time) []span {
	out := make([]span, len(lengths))
	total := uint64(0)
	for _, n := range lengths {
		total += uint64(n)
	}
	if total == 0 {
		return out
	}
	run, together := span{}, false
	if total <= uint64(b.size) {
		run, together = b.allocate(uint32(total), now)
	}
	if together {
		b.split(run, lengths, out)
		return out
	}
	for i, n := range lengths {
		if n > 0 {
			if s, ok := b.allocate(n, now); ok {
				out[i] = s
			}
		}
	}
	return out
}

// split makes of a used span those of the lengths, one behind the other.
func (b *blocks) split(run span, lengths []uint32, out []span) {
	next := run.base
	parts := make([]span, 0, len(lengths))
	for i, n := range lengths {
		if n > 0 {
			out[i] = span{base: next, length: n}
			parts = append(parts, out[i])
			next += n
		}
	}
	at, _ := slices.BinarySearchFunc(b.used, run, byBase)
	b.used = slices.Replace(b.used, at, at+1, parts...)
}

// release frees s after the grace period.
func (b *blocks) release(s span, now time.Time) {
	b.resting = append(b.resting, rest{span: s, until: now.Add(blockGrace)})
}

// reclaim frees what has rested for long enough.
func (b *blocks) reclaim(now time.Time) {
	n := 0
	for n < len(b.resting) && !now.Before(b.resting[n].until) {
		n++
	}
	if n == 0 {
		return
	}
	free := make(map[span]bool, n)
	for _, r := range b.resting[:n] {
		free[r.span] = true
	}
	b.resting = slices.Delete(b.resting, 0, n)
	b.used = slices.DeleteFunc(b.used, func(s span) bool { return free[s] })
}
