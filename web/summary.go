package web

import (
	"fmt"
	"strings"

	"pontoon/fsm"
)

// Summarise puts the state of the cluster into words. It is pure: the status
// page, `pontoon status` and a script that reads the API say the same.
//
// The level is bad when something is not served or nobody can decide, warn when
// one more failure would make it so or a node needs a look, and ok otherwise. A
// node that its operator drains is not unhealthy. The notes speak of the
// cluster, Status.Warnings of the node that answers.
func Summarise(s Status) Summary {
	sum := Summary{Level: LevelOK}
	note := func(l Level, format string, args ...any) {
		sum.Notes = append(sum.Notes, fmt.Sprintf(format, args...))
		sum.Level = worse(sum.Level, l)
	}

	healthy, voters := 0, 0
	for _, n := range s.Nodes {
		if n.Raft != RaftNonvoter {
			voters++
		}
		trouble := nodeTrouble(n)
		if trouble == "" {
			healthy++
		} else {
			note(LevelWarn, "%s %s.", n.Name, trouble)
		}
		if n.Draining {
			note(LevelOK, "%s is drained: it owns nothing until it is resumed.", n.Name)
		}
	}
	noteInstances(s, note)
	switch voters {
	case 1:
		note(LevelWarn, "1 voter is not highly available: join two more nodes, or one and a witness.")
	case 2:
		note(LevelWarn, "2 voters are not highly available: when one dies the other cannot decide. Join a third node or a witness.")
	}
	if gone := s.Cluster.Without; len(gone) > 0 {
		names := make([]string, len(gone))
		for i, n := range gone {
			names[i] = string(n)
		}
		note(LevelWarn, "The cluster was rebuilt without %s: what they knew alone is lost, and they must not run with their old disks; join three voters again.",
			strings.Join(names, " and "))
	}
	if !s.Cluster.Quorum {
		note(LevelBad, "When the others will never come back: pontoon recover --help.")
	}
	for _, n := range bgpNotes(s) {
		note(LevelWarn, "%s", n)
	}
	endpointNotes(s.Services, note)
	poolNotes(s.Pools, note)
	if len(s.Warnings) > 0 {
		sum.Level = worse(sum.Level, LevelWarn) // they stand beside the notes
	}

	sum.Text = fmt.Sprintf("%d of %s healthy", healthy, count(len(s.Nodes), "node"))
	switch {
	case !s.Cluster.Quorum:
		sum.Level = LevelBad
		sum.Text = "No quorum; when last heard, " + sum.Text
		sum.Notes = append([]string{"This node does not hear a majority: it keeps or releases its VIPs as the on_quorum_loss of each says, acquires nothing and takes no changes."}, sum.Notes...)
	case s.Cluster.Leader == "":
		sum.Level = LevelBad
		sum.Text += ", no leader"
		sum.Notes = append([]string{"The members are electing a leader: traffic goes on, changes have to wait."}, sum.Notes...)
	default:
		sum.Text += fmt.Sprintf(", %s leads", s.Cluster.Leader)
	}
	sum.Notes = notNil(sum.Notes)
	return sum
}

// noteInstances says of instances, and of the services of those without a master, what a person has to know.
func noteInstances(s Status, note func(l Level, format string, args ...any)) {
	kinds := map[string]fsm.InstanceKind{}
	for _, i := range s.Instances {
		kinds[i.Name] = i.Kind
		switch {
		case len(i.VIPs) == 0:
		case i.Kind == fsm.InstanceECMP && len(i.Succession) == 0:
			note(LevelBad, "Instance %s is served by no node: its addresses are not served.", i.Name)
		case i.Kind == fsm.InstanceECMP && len(i.Succession) == 1 && len(s.Nodes) > 1:
			note(LevelWarn, "Instance %s is served by %s alone: no other node is eligible.", i.Name, i.Succession[0])
		case i.Kind != fsm.InstanceECMP && i.Master == "":
			note(LevelBad, "Instance %s has no master: its addresses are not served.", i.Name)
		}
	}
	for _, svc := range s.Services {
		for _, words := range choiceNotes(svc.Service, svc.Instance, kinds[svc.Instance]) {
			note(LevelOK, "%s", words)
		}
	}
}

// poolNotes says which pools are exhausted: no harm to what is served.
func poolNotes(pools []PoolBrief, note func(l Level, format string, args ...any)) {
	for _, p := range pools {
		if p.Free == 0 {
			note(LevelOK, "Pool %s has no free address left: the next service that asks it for one is refused.", p.Name)
		}
	}
}

// choiceNotes says what comes of it when every node gets new connections of a service and chooses for itself.
func choiceNotes(svc fsm.Service, instance string, kind fsm.InstanceKind) []string {
	if kind != fsm.InstanceECMP || svc.Algorithm == fsm.Maglev {
		return nil
	}
	return []string{fmt.Sprintf("Service %s chooses endpoints by %s, which each node does for itself, and all nodes serve instance %s: "+
		"a connection whose first packet is repeated past another node may begin at two endpoints. With maglev every node chooses the same.", svc.Name, svc.Algorithm, instance)}
}

// nodeTrouble says what is wrong with a node, as the end of a sentence, or "".
func nodeTrouble(n NodeStatus) string {
	if !n.Alive {
		return "is down"
	}
	if n.Role == fsm.RoleWitness {
		return ""
	}
	var parts []string
	if !n.Ready {
		parts = append(parts, "its data plane is not ready")
	}
	if !n.LinksUp {
		parts = append(parts, "a link is down")
	}
	if !n.InSync {
		parts = append(parts, "it does not hold every flow yet")
	}
	if len(parts) == 0 {
		return ""
	}
	return "cannot take over: " + strings.Join(parts, ", ")
}

// worse returns the graver of two levels.
func worse(a, b Level) Level {
	rank := func(l Level) int {
		switch l {
		case LevelBad:
			return 2
		case LevelWarn:
			return 1
		default:
			return 0
		}
	}
	if rank(b) > rank(a) {
		return b
	}
	return a
}

// count writes "1 node" and "2 nodes".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
