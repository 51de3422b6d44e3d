package node

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// judge turns what gossip sees, and whether a silent node's kernel still
// answers, into verdicts for the leader to commit. It is a value: step returns
// the next one, so that every decision can be replayed in a table test.
//
// Gossip alone cannot tell a dead machine from a stopped daemon, and the two
// ask for opposite acts: a dead machine's instances must move at once, while a
// stopped daemon's data plane goes on forwarding, new connections included,
// and what it accepts meanwhile has not been replicated. So a silent node is
// dead at once only when its kernel is silent too; otherwise after grace.
//
// Faster than both are the echoes of the data planes (node/detect), which no
// daemon has to answer: whom a majority of all nodes has lost on every path is
// dead, whatever gossip still believes.
type judge struct {
	grace   time.Duration // agent_grace
	started time.Time     // when this node began to lead
	doubts  map[fsm.NodeID]doubt
	// words are what the last reports say, at a step.
	words map[fsm.NodeID]word
}

// word is what a daemon's last report means when it falls silent.
type word struct {
	heard time.Time // when it came: no silence began before
	// answering is until when, at the latest, its kernel may answer for its VIPs without it (see rest.go):
	// before that nobody else should, also when agent_grace is over.
	answering time.Time
}

// unseenGrace is how long a new leader waits for a node it has never seen in
// gossip before it takes that for silence: after a restart of all nodes gossip
// needs a moment to find everybody.
const unseenGrace = 3 * time.Second

// hostCheckEvery is how old an answer about a node's kernel may be.
const hostCheckEvery = 250 * time.Millisecond

// doubt is what the judge knows of a node that gossip does not vouch for.
type doubt struct {
	deadSince time.Time // gossip says dead since; zero while only suspected
	asked     time.Time // a host check was started and has not answered; zero otherwise
	answered  time.Time // the last host check answered at
	hostAlive bool
}

// newJudge begins at now, with what this node saw of the silent ones before it
// led: a change of leader must not give a stopped daemon its grace anew.
func newJudge(grace time.Duration, silentSince map[string]time.Time, now time.Time) judge {
	j := judge{grace: grace, started: now, doubts: map[fsm.NodeID]doubt{}}
	for n, since := range silentSince {
		j.doubts[fsm.NodeID(n)] = doubt{deadSince: since}
	}
	return j
}

// rulings is what a step asks for: verdicts to commit and kernels to check.
type rulings struct {
	verdicts []fsm.NodeVerdict
	check    []fsm.NodeID
}

// step judges every node but self.
func (j judge) step(nodes []fsm.Node, self fsm.NodeID, members []transport.GossipMember, lost map[fsm.NodeID]int, now time.Time) (judge, rulings) {
	seen := make(map[fsm.NodeID]transport.GossipState, len(members))
	for _, m := range members {
		seen[fsm.NodeID(m.Node)] = m.State
	}
	next := judge{grace: j.grace, started: j.started, doubts: make(map[fsm.NodeID]doubt)}
	var out rulings
	for _, n := range nodes {
		if n.Name == self {
			if !n.Alive {
				out.verdicts = append(out.verdicts, fsm.NodeVerdict{Node: n.Name, Alive: true, Reason: "it leads"})
			}
			continue
		}
		state, known := seen[n.Name]
		// A witness has no data plane that answers by itself: what is lost is the word of its
		// daemon, which may just be slow, so gossip has to miss it as well.
		vouched := n.Role == fsm.RoleWitness && known && state == transport.GossipAlive
		if lost[n.Name] >= majority(len(nodes)) && !vouched {
			if n.Alive {
				out.verdicts = append(out.verdicts, fsm.NodeVerdict{Node: n.Name, Reason: lossReason(n, lost[n.Name])})
			}
			continue // whatever gossip still says: it is slower
		}
		if !known && now.Sub(j.started) < unseenGrace {
			continue
		}
		if known && state == transport.GossipAlive {
			if !n.Alive {
				out.verdicts = append(out.verdicts, fsm.NodeVerdict{Node: n.Name, Alive: true, Reason: "gossip hears it"})
			}
			continue
		}
		if !n.Alive {
			continue
		}
		d, v, check := j.weigh(j.doubts[n.Name], n.Name, known && state == transport.GossipSuspect, now)
		next.doubts[n.Name] = d
		if v != nil {
			out.verdicts = append(out.verdicts, *v)
		}
		if check {
			out.check = append(out.check, n.Name)
		}
	}
	return next, out
}

func lossReason(n fsm.Node, by int) string {
	if n.Role == fsm.RoleWitness {
		return fmt.Sprintf("its daemon is silent to %d nodes and to gossip", by)
	}
	return fmt.Sprintf("its data plane answers none of %d nodes on any path", by)
}

// majority of n nodes.
func majority(n int) int { return n/2 + 1 }

// weigh judges one node that is alive in the state and silent in gossip.
func (j judge) weigh(d doubt, n fsm.NodeID, suspect bool, now time.Time) (doubt, *fsm.NodeVerdict, bool) {
	if suspect {
		d.deadSince = time.Time{}
	} else if d.deadSince.IsZero() {
		d.deadSince = now
	}
	current := !d.answered.IsZero() && now.Sub(d.answered) <= 2*hostCheckEvery
	check := d.asked.IsZero() && (d.answered.IsZero() || now.Sub(d.answered) >= hostCheckEvery)
	if check {
		d.asked = now
	}
	if d.deadSince.IsZero() || !current {
		return d, nil, check
	}
	// Gossip finds a daemon that was started again later than its reports come.
	w := j.words[n]
	silent := now.Sub(later(d.deadSince, w.heard))
	switch {
	case !d.hostAlive:
		return d, &fsm.NodeVerdict{Node: n, Reason: "gossip lost it and its kernel does not answer"}, check
	case silent >= j.grace && !now.Before(w.answering):
		return d, &fsm.NodeVerdict{Node: n, Reason: fmt.Sprintf(
			"its daemon has been silent for %s although its kernel answers", silent.Round(100*time.Millisecond))}, check
	}
	return d, nil, check
}

// hostAnswered records the outcome of a host check that step asked for.
func (j judge) hostAnswered(n fsm.NodeID, alive bool, now time.Time) judge {
	d, ok := j.doubts[n]
	if !ok {
		return j // it was heard again meanwhile
	}
	next := j
	next.doubts = maps.Clone(j.doubts)
	d.asked, d.answered, d.hostAlive = time.Time{}, now, alive
	next.doubts[n] = d
	return next
}

// doubted lists the nodes in doubt, for the log.
func (j judge) doubted() []fsm.NodeID { return slices.Sorted(maps.Keys(j.doubts)) }
