package node

import (
	"maps"
	"os"
	"sync"
	"time"

	"pontoon/fsm"
)

// A machine that loses its power and is back before anybody could declare it dead,
// because the quorum was lost with it, is still alive, in sync and perhaps master by
// the committed state, and knows no flow any more. Its peers hold its flows, and
// would take its empty table for the news that all of them have ended. So a node
// whose kernel is new asks the leader for the death it has had: with that verdict
// committed its flows are orphans, which only their clients' packets end, another
// node is master, and it begins as every returning node does.

// rebornPatience is how long a node waits for that verdict while it hears a leader,
// which may be of a version that does not know the question.
const rebornPatience = 10 * time.Second

// reborn is what a member knows of its own death. Its zero value is of a node that
// has not died: its data plane was adopted, or it is new.
type reborn struct {
	mu      sync.Mutex
	emptied bool      // this life began with an empty data plane, and there was an earlier one
	pending bool      // its end is not committed yet, as far as is known here
	since   time.Time // when a leader was first heard meanwhile
	held    bool      // see heldBack
}

// begin says how this life begins.
func (r *reborn) begin(emptied bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.emptied, r.pending, r.since = emptied, emptied, time.Time{}
}

// buried takes note that the earlier life's end is committed.
func (r *reborn) buried() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = false
}

// waits says at now whether this node must not speak for its slot yet: it takes up
// nothing and tells nobody of its flows. heard is whether there is a leader.
func (r *reborn) waits(now time.Time, heard bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !r.pending:
	case heard && r.since.IsZero():
		r.since = now
	case heard && now.Sub(r.since) > rebornPatience:
		r.pending = false
	}
	return r.pending
}

// mayTell says whether a peer that has applied the state up to index may be told of
// this node's flows: it has to know of the death first.
func (r *reborn) mayTell(died, index uint64) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	may := !r.emptied || index >= died
	r.held = r.held || !may
	return may
}

// heldBack says, once, whether a peer was not told of flows for what it may not know.
func (r *reborn) heldBack() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.held
	r.held = false
	return was
}

// hadLife says whether this machine has been a member before, by its disk.
func hadLife(dataDir string) (bool, error) {
	_, err := os.Stat(raftDir(dataDir))
	if os.IsNotExist(err) {
		return false, nil
	}
	return err == nil, err
}

// burials are the verdicts that nodes ask for which came back without their flows.
// What a node said before it knew of its latest death was of an earlier life.
func burials(s *fsm.State, reports []agedReport) []fsm.NodeVerdict {
	var out []fsm.NodeVerdict
	for _, r := range reports {
		n, ok := s.Node(fsm.NodeID(r.Node))
		if ok && n.Alive && r.Reborn && r.State >= max(n.Died, n.Joined) {
			out = append(out, fsm.NodeVerdict{Node: n.Name, Reason: "it came back without its flows before anybody missed it"})
		}
	}
	return out
}

// deaths remembers by slot the latest verdict of death that was passed on. Whoever
// looks at the newest state only misses a death that is over already, and a daemon
// that was down meanwhile would take the empty table of a peer that came back for the
// end of its flows: so it is kept in member.json.
type deaths map[uint8]uint64

// missed is alive with those slots dead whose owner has died since the last call,
// whether or not it lives again.
func (d *deaths) missed(s *fsm.State, alive map[uint8]bool) map[uint8]bool {
	before := *d
	*d = deaths{}
	then := maps.Clone(alive)
	for _, n := range s.Nodes() {
		if n.Role != fsm.RoleLB {
			continue
		}
		if died, known := before[n.Slot]; known && died != n.Died {
			then[n.Slot] = false
		}
		(*d)[n.Slot] = n.Died
	}
	return then
}
