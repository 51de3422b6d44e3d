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

// A master that dies takes nothing else with it if it did not lead: the leader
// that has to decide about it is there already. So a leader that has become
// master hands leadership to a node that is master of nothing, when all has been
// calm for a while.

// calmTime is how long nothing may have changed before leadership is handed on.
const calmTime = 5 * time.Second

// scene is what handing leadership on depends on.
type scene struct {
	self    fsm.NodeID
	nodes   []fsm.Node
	masters map[fsm.NodeID]bool // of an instance that has VIPs
	places  map[fsm.NodeID]int  // the best place in the succession of such an instance; 0 is in none
	able    map[fsm.NodeID]bool // votes, has reported lately and has the log
	epoch   uint64              // the newest
}

// sceneOf looks at a state. able is what Raft and the reports say.
func sceneOf(s *fsm.State, self fsm.NodeID, able map[fsm.NodeID]bool) scene {
	sc := scene{self: self, nodes: s.Nodes(), masters: map[fsm.NodeID]bool{}, places: map[fsm.NodeID]int{}, able: able}
	used := map[string]bool{}
	for _, v := range s.VIPs() {
		used[v.Instance] = true
	}
	for _, in := range s.Instances() {
		sc.epoch = max(sc.epoch, in.Epoch)
		if !used[in.Name] {
			continue
		}
		sc.masters[in.Master] = true
		for i, n := range in.Succession {
			if was, ok := sc.places[n]; !ok || i+1 < was {
				sc.places[n] = i + 1
			}
		}
	}
	return sc
}

// heir is the node that should lead in place of self: alive, level with the log,
// master of nothing, and the last to become it, so that leadership need not be
// handed on again soon. "" if self may go on.
func (sc scene) heir() fsm.NodeID {
	if !sc.masters[sc.self] {
		return ""
	}
	var fit []fsm.NodeID
	for _, n := range sc.nodes {
		if n.Name != sc.self && n.Alive && n.Voter && !n.Draining && !sc.masters[n.Name] && sc.able[n.Name] {
			fit = append(fit, n.Name)
		}
	}
	if len(fit) == 0 {
		return ""
	}
	far := func(n fsm.NodeID) int {
		if place, ok := sc.places[n]; ok {
			return place
		}
		return fsm.MaxSlots + 1
	}
	return slices.MinFunc(fit, func(a, b fsm.NodeID) int {
		return cmp.Or(cmp.Compare(far(b), far(a)), cmp.Compare(a, b))
	})
}

// stirred says whether something has happened between two scenes that makes it
// unwise to change the leader, too.
func (sc scene) stirred(before scene) bool {
	return sc.epoch != before.epoch || !slices.EqualFunc(sc.nodes, before.nodes, func(a, b fsm.Node) bool {
		return a.Name == b.Name && a.Alive == b.Alive && a.Draining == b.Draining && a.Voter == b.Voter
	})
}

// preference decides when leadership is handed on: once in each calm time at
// most, so that an attempt that fails is not repeated without end. It is a value.
type preference struct {
	last  scene
	since time.Time // when something stirred last
	tried bool
}

func newPreference(now time.Time) preference { return preference{since: now} }

func (p preference) step(sc scene, now time.Time) (preference, fsm.NodeID) {
	if sc.stirred(p.last) {
		p.since, p.tried = now, false
	}
	p.last = sc
	if p.tried || now.Sub(p.since) < calmTime {
		return p, ""
	}
	to := sc.heir()
	p.tried = to != ""
	return p, to
}

// levelWith is how many entries a report may be behind the log and its node still
// be called level: it is a third of a second old, and Raft makes up the rest
// before it hands over.
const levelWith = 64

// ableToLead is ableOf as this leader has it now.
func (m *member) ableToLead(servers []raft.Server) map[fsm.NodeID]bool {
	return ableOf(m.reports.all(time.Now(), m.knownNode), servers, m.raft.CommitIndex())
}

// ableOf lists who votes, was level with the log when it last reported, and was ready then: one that is
// not may have trouble with its disk, and who hands over to that one leads nobody while it waits for it.
func ableOf(reports []agedReport, servers []raft.Server, commit uint64) map[fsm.NodeID]bool {
	out := map[fsm.NodeID]bool{}
	for _, r := range reports {
		votes := slices.ContainsFunc(servers, func(s raft.Server) bool { return string(s.ID) == r.Node && s.Suffrage == raft.Voter })
		if votes && r.Ready && r.AgeMS < 3*reportEvery.Milliseconds() && r.Applied+levelWith >= commit {
			out[fsm.NodeID(r.Node)] = true
		}
	}
	return out
}

// preferOther hands leadership on if another node should have it.
func (m *member) preferOther(s *fsm.State, p preference) preference {
	servers, err := m.raft.servers()
	if err != nil {
		return p
	}
	self := fsm.NodeID(m.cfg.Name)
	able := notWorsePlaced(self, s.Nodes(), m.reports.all(time.Now(), m.knownNode), m.ableToLead(servers))
	p, to := p.step(sceneOf(s, self, able), time.Now())
	if to == "" {
		return p
	}
	m.events.add(Event{
		Kind: web.EventElection, Node: to,
		Text: fmt.Sprintf("%s hands leadership to %s, which is master of nothing", m.cfg.Name, to),
	})
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return string(s.ID) == string(to) })
	if err := m.raft.LeadershipTransferToServer(servers[i].ID, servers[i].Address).Error(); err != nil {
		m.logger.Info("leadership was not handed on", "node", to, "err", err)
	}
	return p
}
