package health

import "time"

// entry is what the agenda knows of something that waits. The zero value is in no agenda.
type entry struct {
	due   time.Duration
	place int // in the agenda, counted from 1; 0: it is in none
}

func (e *entry) waits() *entry { return e }

// waiting is what an agenda can hold: a pointer to something with an entry.
type waiting interface{ waits() *entry }

// agenda holds what waits for its time, what is due first at the front. Each is in one agenda at most. It
// is a binary heap; container/heap costs twice as much, and what every probe passes through twice counts.
type agenda[T waiting] []waiter[T]

// waiter keeps the time where the heap looks for it.
type waiter[T waiting] struct {
	due time.Duration
	who T
}

// first is what is due first; the agenda must not be empty.
func (a agenda[T]) first() T { return a[0].who }

// add lets x wait until its due.
func (a *agenda[T]) add(x T) {
	*a = append(*a, waiter[T]{x.waits().due, x})
	a.up(len(*a) - 1)
}

// remove takes x out, if it is in.
func (a *agenda[T]) remove(x T) {
	e := x.waits()
	if e.place == 0 {
		return
	}
	hole, last := e.place-1, len(*a)-1
	moved := (*a)[last]
	(*a)[last] = waiter[T]{}
	*a = (*a)[:last]
	e.place = 0
	if hole < last {
		a.put(hole, moved)
		a.settle(hole)
	}
}

// move sets when x is due, whether it is in the agenda or not.
func (a *agenda[T]) move(x T, due time.Duration) {
	e := x.waits()
	e.due = due
	if e.place != 0 {
		(*a)[e.place-1].due = due
		a.settle(e.place - 1)
	}
}

func (a agenda[T]) put(i int, w waiter[T]) {
	a[i] = w
	w.who.waits().place = i + 1
}

// settle brings what stands at i to where it belongs.
func (a agenda[T]) settle(i int) {
	if i > 0 && a[i].due < a[(i-1)/2].due {
		a.up(i)
	} else {
		a.down(i)
	}
}

func (a agenda[T]) up(i int) {
	w := a[i]
	for i > 0 && w.due < a[(i-1)/2].due {
		a.put(i, a[(i-1)/2])
		i = (i - 1) / 2
	}
	a.put(i, w)
}

func (a agenda[T]) down(i int) {
	w := a[i]
	for {
		child := 2*i + 1
		if child >= len(a) {
			break
		}
		if child+1 < len(a) && a[child+1].due < a[child].due {
			child++
		}
		if a[child].due >= w.due {
			break
		}
		a.put(i, a[child])
		i = child
	}
	a.put(i, w)
}
