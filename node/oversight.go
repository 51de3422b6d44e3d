package node

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
	"pontoon/web"
)

// A leader that is cut off from a node which others reach leaves that node without a cluster:
// it hears no leader, confirms nothing, and loses its VIPs when its lease ends, although nobody finds
// it dead. So leadership goes to who reaches more.

const (
	// cutLasts is how long a leader must have been worse placed than another. A node that dies is lost to
	// one before it is to the others.
	cutLasts = 200 * time.Millisecond
	// overseeEvery is the least time between two attempts to hand leadership on for this.
	overseeEvery = 2 * time.Second
)

// oversight decides when a leader is to hand on because of whom it does not reach. It is a value.
type oversight struct {
	worse time.Time // since when another one is better placed; zero: none is
	tried time.Time
}

// cuts counts for each living node the living nodes it is parted from, by its own word or by
// theirs. Of two that do not hear each other, the leader hears one at most, so one word is enough.
func cuts(nodes []fsm.Node, reports []agedReport) map[fsm.NodeID]int {
	alive, out := map[fsm.NodeID]bool{}, map[fsm.NodeID]int{}
	for _, n := range nodes {
		alive[n.Name] = n.Alive
	}
	type pair [2]fsm.NodeID
	seen := map[pair]bool{}
	for _, r := range reports {
		if r.AgeMS > lossAge.Milliseconds() {
			continue
		}
		for _, b := range r.Lost {
			a := fsm.NodeID(r.Node)
			if p := (pair{min(a, b), max(a, b)}); a != b && alive[a] && alive[b] && !seen[p] {
				seen[p] = true
				out[a]++
				out[b]++
			}
		}
	}
	return out
}

// notWorsePlaced picks those of able that are parted from no more nodes than self.
func notWorsePlaced(self fsm.NodeID, nodes []fsm.Node, reports []agedReport, able map[fsm.NodeID]bool) map[fsm.NodeID]bool {
	parted, out := cuts(nodes, reports), map[fsm.NodeID]bool{}
	for n := range able {
		out[n] = able[n] && parted[n] <= parted[self]
	}
	return out
}

// step says whom self had better hand leadership to, "" for nobody. able are those who could lead
// at once.
func (o oversight) step(self fsm.NodeID, nodes []fsm.Node, reports []agedReport, able map[fsm.NodeID]bool, now time.Time) (oversight, fsm.NodeID) {
	parted := cuts(nodes, reports)
	var better []fsm.NodeID
	for _, n := range nodes {
		if n.Name != self && n.Alive && n.Voter && able[n.Name] && parted[n.Name] < parted[self] {
			better = append(better, n.Name)
		}
	}
	if len(better) == 0 {
		o.worse = time.Time{}
		return o, ""
	}
	if o.worse.IsZero() {
		o.worse = now
	}
	if now.Sub(o.worse) < cutLasts || !o.tried.IsZero() && now.Sub(o.tried) < overseeEvery {
		return o, ""
	}
	o.tried = now
	return o, slices.MinFunc(better, func(a, b fsm.NodeID) int {
		return cmp.Or(cmp.Compare(parted[a], parted[b]), cmp.Compare(a, b))
	})
}

// handOverIfCut gives leadership to who reaches more of the cluster.
func (m *member) handOverIfCut(o oversight) oversight {
	servers, err := m.raft.servers()
	if err != nil {
		return o
	}
	reports, self := m.reports.all(time.Now(), m.knownNode), fsm.NodeID(m.cfg.Name)
	o, to := o.step(self, m.store.State().Nodes(), reports, m.ableToLead(servers), time.Now())
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.ID) == string(to) })
	if to == "" || i < 0 {
		return o
	}
	m.events.add(Event{
		Kind: web.EventElection, Node: to,
		Text: fmt.Sprintf("%s hands leadership to %s, which reaches nodes that it does not", self, to),
	})
	if err := m.raft.LeadershipTransferToServer(servers[i].ID, servers[i].Address).Error(); err != nil {
		m.logger.Info("leadership was not handed on", "node", to, "err", err)
	}
	return o
}
