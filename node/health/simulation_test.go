package health

import (
	"math/rand/v2"
	"time"
)

// simulation runs a board without sockets: events in order, at once.
type simulation struct {
	board  board
	now    time.Duration
	result func(c *check, at time.Duration) (outcome, time.Duration) // and how long it takes
	open   []flight
	starts []time.Duration
	by     map[*check][]time.Duration
	most   int
}

type flight struct {
	c   *check
	out outcome
	at  time.Duration
}

func newSimulation(rate, concurrent int) *simulation {
	r := rand.New(rand.NewPCG(1, 2))
	return &simulation{
		board: newBoard(rate, concurrent, r.Float64), by: map[*check][]time.Duration{},
		result: func(*check, time.Duration) (outcome, time.Duration) { return pass, time.Millisecond },
	}
}

// run goes on for d, in steps of a millisecond.
func (s *simulation) run(d time.Duration) {
	for end := s.now + d; s.now < end; s.now += time.Millisecond {
		rest := s.open[:0]
		for _, f := range s.open {
			if f.at <= s.now {
				s.board.finish(f.c, f.out, s.now, time.Unix(0, 0).Add(s.now))
			} else {
				rest = append(rest, f)
			}
		}
		s.open = rest
		for {
			c, _ := s.board.next(s.now)
			if c == nil {
				break
			}
			s.starts = append(s.starts, s.now)
			s.by[c] = append(s.by[c], s.now)
			out, took := s.result(c, s.now)
			s.open = append(s.open, flight{c, out, s.now + took})
		}
		s.most = max(s.most, s.board.flying())
	}
}

// waiting is how many checks wait for their next probe.
func (b *board) waiting() (n int) {
	for i := range b.lanes {
		n += len(b.lanes[i].queue)
	}
	return n
}

// busiest is the most probes that began within d.
func busiest(starts []time.Duration, d time.Duration) int {
	most, from := 0, 0
	for i, at := range starts {
		for starts[from] <= at-d {
			from++
		}
		most = max(most, i-from+1)
	}
	return most
}

// stall lets d pass in which the loop does not run. What is under way is answered meanwhile.
func (s *simulation) stall(d time.Duration) {
	const planned = time.Millisecond
	c := clock{lived: s.now, at: time.Unix(0, 0)}
	c.advance(c.at.Add(planned+d), planned)
	s.now = c.lived
	for i := range s.open {
		s.open[i].at -= d
	}
}
