package node

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

// When the echoes say that the leader's machine is gone, nobody needs to wait
// until Raft misses its heartbeats: the followers agree that they have lost it,
// rank themselves, and the first of them stands for election at once.

const (
	// succeedEvery is the pace of asking while the leader is lost and still called the leader.
	succeedEvery = 10 * time.Millisecond
	// succeedTimeout bounds one question to a peer.
	succeedTimeout = 100 * time.Millisecond
	// succeedLinger is how long those who have not answered are waited for once enough have.
	succeedLinger = 20 * time.Millisecond
	// succeedStagger is how much later each rank stands than the one before: longer than a vote
	// takes, its write to the disk included. Two that stand together may split the vote, and then
	// all wait for an election timeout.
	succeedStagger = 60 * time.Millisecond
)

// claim is what a follower says when it is asked about a leader that may be gone.
type claim struct {
	Node string `json:"node"`
	Lost bool   `json:"lost"` // it reaches it by no path either
	Last uint64 `json:"last"` // index of its last log entry
	Owns int    `json:"owns"` // instances it is master of: a leader had better have none
	// Loss is since when, as it is said; the next leader need not be told again.
	Loss *loss `json:"loss,omitempty"`
	// More is whom else it has lost: who dies with the leader is found with it.
	More []loss `json:"more,omitempty"`
}

// standing tells whether enough of the members have lost the leader for somebody to stand, and how
// many of those that would stand are better placed than self. Whoever lacks entries that
// another has may not get its vote, so the longest log comes first.
func standing(self claim, others []claim, members int) (rank int, enough bool) {
	agreed := 0
	for _, c := range append([]claim{self}, others...) {
		if !c.Lost {
			continue
		}
		agreed++
		if better(c, self) {
			rank++
		}
	}
	return rank, self.Lost && agreed >= majority(members)
}

func better(a, b claim) bool {
	return cmp.Or(cmp.Compare(b.Last, a.Last), cmp.Compare(a.Owns, b.Owns), cmp.Compare(a.Node, b.Node)) < 0
}

// succeedLoop looks after the leader whenever somebody was lost.
func (m *member) succeedLoop(ctx context.Context) error {
	var stood uint64 // the term in which this node has stood already
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.detector.lostSomebody:
		case <-timer.C:
		}
		leader, term, lost := m.leaderLost()
		if !lost || stood == term {
			continue
		}
		m.dropReport()
		if m.succeed(ctx, leader, term) {
			stood = term
		}
		timer.Reset(succeedEvery)
	}
}

// leaderLost names the leader this node follows if it is out of reach by every path.
func (m *member) leaderLost() (leader string, term uint64, lost bool) {
	if m.raft.State() != raft.Follower {
		return "", 0, false
	}
	_, id := m.raft.LeaderWithID()
	return string(id), m.raft.CurrentTerm(), id != "" && slices.Contains(m.detector.lostNow(), fsm.NodeID(id))
}

// succeed asks the others about the leader, waits for those better placed, and
// stands for election if the leader is still the one of that term. It says
// whether it stood.
func (m *member) succeed(ctx context.Context, leader string, term uint64) bool {
	if !m.isVoter() {
		return false
	}
	start := time.Now()
	s := m.store.State()
	others := m.askAbout(ctx, s, leader)
	rank, enough := standing(m.claim(leader), others, len(s.Nodes()))
	if !enough {
		return false
	}
	m.decisions.agree(fsm.NodeID(leader), time.Now())
	m.reports.believe(fsm.NodeID(leader), others, time.Now())
	if rank > 0 {
		timer := time.NewTimer(time.Duration(rank) * succeedStagger)
		defer timer.Stop()
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
		}
	}
	if l, t, lost := m.leaderLost(); !lost || l != leader || t != term {
		return false
	}
	if err := m.raft.transport.standNow(ctx, m.cfg.Name, m.cfg.Cluster.Address); err != nil {
		m.logger.Warn("not stood for election", "err", err)
		return false
	}
	m.logger.Info("the leader is lost: standing for election", "node", leader, "term", term, "rank", rank, "took", time.Since(start))
	return true
}

func (m *member) isVoter() bool {
	servers, err := m.raft.servers()
	return err == nil && slices.ContainsFunc(servers, func(s raft.Server) bool {
		return string(s.ID) == m.cfg.Name && s.Suffrage == raft.Voter
	})
}

// claim is this node's own.
func (m *member) claim(leader string) claim {
	c := claim{Node: m.cfg.Name, Last: m.raft.LastIndex(), Lost: slices.Contains(m.detector.lostNow(), fsm.NodeID(leader))}
	for _, in := range m.store.State().Instances() {
		if in.Master == fsm.NodeID(m.cfg.Name) {
			c.Owns++
		}
	}
	for _, l := range m.detector.losses(time.Now()) {
		switch {
		case !c.Lost || l.Cut:
		case string(l.Node) == leader:
			c.Loss = &l
		default:
			c.More = append(c.More, l)
		}
	}
	return c
}

// askAbout asks all other members at once; who does not answer in time has not lost it. Once enough agree, it does not
// wait for long: one of the others may have died with the leader and not be missed yet.
func (m *member) askAbout(ctx context.Context, s *fsm.State, leader string) []claim {
	ctx, cancel := context.WithTimeout(ctx, succeedTimeout)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel()
	answers, n := make(chan *claim, fsm.MaxSlots*2), 0
	silent := m.detector.lostNow() // an answer of theirs would only be waited for
	for _, node := range s.Nodes() {
		if string(node.Name) == m.cfg.Name || string(node.Name) == leader || !node.Alive || slices.Contains(silent, node.Name) {
			continue
		}
		n++
		asked.Go(func() {
			c := &claim{}
			if err := m.peers.callFor(ctx, string(node.Name), "/internal/lost", leader, c); err != nil {
				c = nil
			}
			select {
			case answers <- c:
			case <-ctx.Done():
			}
		})
	}
	own := m.claim(leader)
	return gather(ctx, answers, n, func(others []claim) bool {
		_, enough := standing(own, others, len(s.Nodes()))
		return enough
	})
}

// gather takes n answers, nil ones for those that failed. When those so far are enough it waits for the rest
// no longer than answers that are on their way may take: one of them may be of somebody better placed.
func gather(ctx context.Context, answers <-chan *claim, n int, enough func([]claim) bool) []claim {
	var out []claim
	linger := time.NewTimer(succeedTimeout)
	defer linger.Stop()
	for settled := false; n > 0; n-- {
		select {
		case c := <-answers:
			if c != nil {
				out = append(out, *c)
			}
			if !settled && enough(out) {
				settled = true
				linger.Reset(succeedLinger)
			}
		case <-linger.C:
			return out
		case <-ctx.Done():
			return out
		}
	}
	return out
}

// serveLost answers askAbout.
func (m *member) serveLost(w http.ResponseWriter, r *http.Request) {
	var leader string
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&leader); err != nil {
		answer(w, 0, nil, err)
		return
	}
	c := m.claim(leader)
	if c.Lost {
		// Who asks has lost it, too: that may make the majority, so this node need not ask in vain first.
		wake(m.detector.lostSomebody)
	}
	answer(w, 0, c, nil)
}
