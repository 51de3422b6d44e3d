package node

import (
	"github.com/hashicorp/raft"

	"pontoon/fsm"
)

// changeKind says what to do to the Raft group.
type changeKind int

const (
	addNonvoter changeKind = iota
	promote                // make a voter of a member that has caught up
	remove
	recordVoter // Raft has it as a voter, the state does not say so yet
)

// change is one step that brings the Raft group nearer to the state's nodes.
type change struct {
	kind    changeKind
	node    string
	address string
}

// catchUpSlack is how many entries a joiner may lag and still be promoted:
// under a steady stream of writes it is never exactly level.
const catchUpSlack = 64

// nextChange compares the committed nodes with the Raft configuration and
// returns the most urgent difference. Raft takes one change of its
// configuration at a time, and each makes the next decision a new one.
func nextChange(nodes []fsm.Node, servers []raft.Server, applied map[string]uint64, commit uint64) (change, bool) {
	inRaft := make(map[string]raft.Server, len(servers))
	for _, s := range servers {
		inRaft[string(s.ID)] = s
	}
	inState := make(map[string]bool, len(nodes))
	for _, n := range nodes {
		inState[string(n.Name)] = true
	}
	for _, s := range servers {
		if !inState[string(s.ID)] {
			return change{kind: remove, node: string(s.ID)}, true
		}
	}
	for _, n := range nodes {
		name := string(n.Name)
		s, ok := inRaft[name]
		switch {
		case !ok:
			return change{kind: addNonvoter, node: name, address: n.Address}, true
		case s.Suffrage != raft.Voter && caughtUp(applied, name, commit):
			return change{kind: promote, node: name, address: n.Address}, true
		case s.Suffrage == raft.Voter && !n.Voter:
			return change{kind: recordVoter, node: name}, true
		}
	}
	return change{}, false
}

func caughtUp(applied map[string]uint64, node string, commit uint64) bool {
	a, ok := applied[node]
	return ok && a+catchUpSlack >= commit
}
