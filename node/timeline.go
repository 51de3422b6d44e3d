package node

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/web"
)

// The new master of an instance completes the timeline of its failover and has
// it committed, so that every node can show it. What came before the decision it
// asks the leader for (decision.go); what follows it sees itself.

const (
	// firstPacketWait bounds the wait for the first packet, and so for the record.
	firstPacketWait = 2 * time.Second
	// packetPoll is the pace of looking for it at first, packetPollLate after
	// packetPollFast, when a millisecond more matters to nobody.
	packetPoll     = time.Millisecond
	packetPollFast = 300 * time.Millisecond
	packetPollLate = 10 * time.Millisecond
	// maxWatched is of how many endpoints of an instance the packets are looked at.
	maxWatched = 128
	// askTimeout bounds asking the leader for its half.
	askTimeout = time.Second
)

// accession is a mastership of this node that has just begun.
type accession struct {
	instance string
	from     fsm.NodeID
	epoch    uint64
	at       time.Time // when the state that says so was applied
	watched  []uint32  // ids of endpoints

	counted bool // packets holds what they had forwarded before
	packets uint64
	first   time.Time // of its packets
	told    time.Time // when the network had been told
}

// complete says whether nothing more is to come, or to be waited for, at now.
func (a accession) complete(now time.Time) bool {
	return now.Sub(a.at) >= firstPacketWait || !a.told.IsZero() && !a.first.IsZero()
}

// record puts both halves together.
func (a accession) record(self fsm.NodeID, leader fsm.FailoverParts, cause fsm.FailoverCause) fsm.RecordFailover {
	since := func(t time.Time) float64 {
		if t.IsZero() {
			return 0
		}
		return leader.Committed + millis(t.Sub(a.at))
	}
	leader.Announced, leader.FirstPacket = tenth(since(a.told)), tenth(since(a.first))
	return fsm.RecordFailover{Failover: fsm.Failover{
		Instance: a.instance, From: a.from, To: self, Epoch: a.epoch, At: a.at.UTC(), Cause: cmp.Or(cause, fsm.CauseUnknown), Parts: leader,
	}}
}

// tenth rounds sums of tenths.
func tenth(ms float64) float64 { return float64(int64(ms*10+0.5)) / 10 }

// accessions are those of this node whose timeline is not complete.
type accessions struct {
	mu   sync.Mutex
	rows []accession
	told [2]map[uint64]time.Time // when the network was first told of the masterships of now, by teller and epoch
	wake chan struct{}           // capacity 1: there are more rows
}

// teller is who makes a mastership known.
type teller int

const (
	byLink  teller = iota // ARP and neighbour discovery
	byRoute               // BGP: told is when the routes were given to the sessions
)

// take notes the masterships that begin for self between two states.
func (l *accessions) take(t transition, self fsm.NodeID) {
	for _, in := range t.next.Instances() {
		was, _ := t.prev.Instance(in.Name)
		if in.Master != self || was.Master == self || was.Master == "" {
			continue
		}
		l.mu.Lock()
		l.rows = append(l.rows, accession{
			instance: in.Name, from: was.Master, epoch: in.Epoch, at: t.at, watched: endpointsOf(t.next, in.Name),
			told: earliest(l.told[byLink][in.Epoch], l.told[byRoute][in.Epoch]),
		})
		l.mu.Unlock()
		wake(l.wake)
	}
}

// earliest is the first of two times that are known.
func earliest(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// announced notes that the network was told at now of the masterships with these
// epochs, which are all that this teller tells of.
func (l *accessions) announced(by teller, epochs map[uint64]bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := make(map[uint64]time.Time, len(epochs))
	for e := range epochs {
		told[e] = now
		if before, known := l.told[by][e]; known {
			told[e] = before
		}
	}
	l.told[by] = told // the driver may be quicker than who takes the rows
	for i, a := range l.rows {
		if at, known := told[a.epoch]; known && a.told.IsZero() {
			l.rows[i].told = at
		}
	}
}

// look brings the rows up to date and returns those that are complete. count
// tells how many packets were forwarded for endpoints.
func (l *accessions) look(now time.Time, count func([]uint32) (uint64, error)) (done []accession, next time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next = packetPollLate
	for i := range l.rows {
		a := &l.rows[i]
		if a.first.IsZero() && len(a.watched) > 0 {
			if n, err := count(a.watched); err == nil && !a.counted {
				a.packets, a.counted = n, true
			} else if err == nil && n != a.packets {
				a.first = now
			}
		}
		if now.Sub(a.at) < packetPollFast {
			next = packetPoll
		}
		if a.complete(now) {
			done = append(done, *a)
		}
	}
	l.rows = slices.DeleteFunc(l.rows, func(a accession) bool { return a.complete(now) })
	if len(l.rows) == 0 {
		next = 0
	}
	return done, next
}

// endpointsOf lists the ids of the endpoints behind an instance's VIPs, not too many.
func endpointsOf(s *fsm.State, instance string) []uint32 {
	var out []uint32
	for _, svc := range s.Services() {
		if v, ok := s.VIP(svc.VIP); !ok || v.Instance != instance {
			continue
		}
		for _, e := range svc.Endpoints {
			if len(out) == maxWatched {
				return out
			}
			out = append(out, e.ID)
		}
	}
	return out
}

// timelineLoop follows what this node becomes master of until it is recorded.
func (m *member) timelineLoop(ctx context.Context) error {
	var g errgroup.Group
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return g.Wait()
		case <-m.accessions.wake:
		case <-timer.C:
		}
		done, next := m.accessions.look(time.Now(), m.dp.Forwarded)
		if len(done) > 0 {
			g.Go(func() error {
				for _, a := range done {
					m.recordFailover(ctx, a)
				}
				return nil
			})
		}
		if next > 0 {
			timer.Reset(next)
		}
	}
}

// recordFailover has a timeline committed. That it could not is told in the log
// and harms nobody.
func (m *member) recordFailover(ctx context.Context, a accession) {
	parts, cause := m.askDecision(ctx, a.epoch, a.from)
	cmd := a.record(fsm.NodeID(m.cfg.Name), parts, cause)
	m.logger.Info("failover", "instance", a.instance, "from", a.from, "epoch", a.epoch, "cause", cmd.Failover.Cause, "parts", fmt.Sprintf("%+v", cmd.Failover.Parts))
	if !m.reports.reads(m.store.State().Nodes(), fsm.VersionOf(cmd)) {
		m.logger.Info("the timeline is not recorded: a node does not say that it can read it")
		return
	}
	if _, err := m.Propose(ctx, cmd); err != nil && ctx.Err() == nil {
		m.logger.Warn("timeline not recorded", "instance", a.instance, "epoch", a.epoch, "err", err)
	}
}

// leaderHalf is the answer to the question for a decision. An entry may hold
// several: More are the others. A node of an earlier version reads the first.
type leaderHalf struct {
	Cause fsm.FailoverCause `json:"cause"`
	Parts fsm.FailoverParts `json:"parts"`
	Of    fsm.NodeID        `json:"of,omitempty"` // whose instances it moved
	More  []leaderHalf      `json:"more,omitempty"`
}

// halfOf puts the decisions of one entry into an answer; there is at least one.
func halfOf(all []decision) leaderHalf {
	var halves []leaderHalf
	for _, d := range all {
		halves = append(halves, leaderHalf{Cause: d.cause, Parts: d.parts(), Of: d.of})
	}
	halves[0].More = halves[1:]
	return halves[0]
}

// about picks the decision by which an instance was taken from a node. What was decided
// about others may have done that too: that one of them is in sync makes a master that is not give way.
func (h leaderHalf) about(from fsm.NodeID) leaderHalf {
	for _, one := range append([]leaderHalf{h}, h.More...) {
		if one.Of == from {
			return one
		}
	}
	return h
}

// askDecision gets the leader's half of what took an instance from a node; nothing if
// nobody has it any more.
func (m *member) askDecision(ctx context.Context, epoch uint64, from fsm.NodeID) (fsm.FailoverParts, fsm.FailoverCause) {
	if all := m.decisions.get(epoch); len(all) > 0 {
		half := halfOf(all).about(from)
		return half.Parts, half.Cause
	}
	_, leader := m.raft.LeaderWithID()
	if leader == "" || string(leader) == m.cfg.Name {
		return fsm.FailoverParts{}, ""
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var half leaderHalf
	if err := m.peers.callFor(ctx, string(leader), "/internal/decision", epoch, &half); err != nil {
		m.logger.Debug("the leader's half of a timeline is missing", "epoch", epoch, "err", err)
		return fsm.FailoverParts{}, ""
	}
	half = half.about(from)
	return half.Parts, half.Cause
}

// serveDecision answers askDecision.
func (m *member) serveDecision(w http.ResponseWriter, r *http.Request) {
	var epoch uint64
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&epoch); err != nil {
		answer(w, 0, nil, err)
		return
	}
	all := m.decisions.get(epoch)
	if len(all) == 0 {
		answer(w, 0, nil, fmt.Errorf("decision %d: %w", epoch, fsm.ErrNotFound))
		return
	}
	answer(w, 0, halfOf(all), nil)
}

// failoverEvent tells a timeline.
func failoverEvent(f fsm.Failover) Event {
	fields := map[string]string{"epoch": fmt.Sprint(f.Epoch), "from": string(f.From), "cause": string(f.Cause)}
	for _, p := range web.FailoverSteps(f.Parts) {
		fields[strings.ReplaceAll(p.Name, " ", "_")+"_ms"] = fmt.Sprint(p.MS)
	}
	return Event{Kind: web.EventFailover, Node: f.To, Instance: f.Instance, Text: web.FailoverText(f), Fields: fields}
}
