package fsm

import (
	"fmt"
	"slices"
	"strings"
)

// HandOver returns nil if the instances of a node can move to others without
// loss of connections: each that has VIPs would find a master that holds all
// flows, and without a master another node that serves it. Otherwise the error matches ErrNotEligible and says what is in the way
// of each other node. A node that serves nothing loses nothing.
func (s *State) HandOver(node NodeID) error {
	var owned []string
	does := "is master of"
	for _, in := range s.instances.values() {
		used := slices.ContainsFunc(s.vips.values(), func(v VIP) bool { return v.Instance == in.Name })
		if used && in.Serves(node) {
			owned = append(owned, in.Name)
			if in.Kind == InstanceECMP {
				does = "serves"
			}
		}
	}
	if len(owned) == 0 {
		return nil
	}
	var why []string
	for _, n := range s.nodes.values() {
		if n.Name == node || n.Role != RoleLB {
			continue
		}
		reason := obstacle(n)
		if reason == "" && n.InSync {
			return nil
		} else if reason == "" {
			reason = "does not hold all flows yet"
		}
		why = append(why, fmt.Sprintf("%s %s", n.Name, reason))
	}
	if len(why) == 0 {
		why = []string{"there is no other node of role lb"}
	}
	return refuse(ErrNotEligible, "node %s %s %s, and no other node can take that over without loss of connections: %s",
		node, does, few(owned), strings.Join(why, ", "))
}
