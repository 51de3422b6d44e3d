package fsm

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
)

// Move is one instance that Rebalance would give another master.
type Move struct {
	Instance string `json:"instance"`
	From     NodeID `json:"from"`
	To       NodeID `json:"to"`
	Why      string `json:"why"` // in words
}

// Rebalance tells which instances to move so that each is on an eligible node
// with the highest priority it has for any, and, among nodes that are equal to it
// in that, masters are spread as evenly as can be. It says nothing of instances
// without a master, and nothing of DefaultInstance while that has no VIPs, which
// burdens nobody. No instance is moved that could stay; without priorities the
// masterships of any two eligible nodes then differ by one at most.
//
// Instances and nodes are a bipartite graph, and wanted is an optimal semi-matching:
// it is reached when no path of moves leads from a node to one with two masterships
// less (Harvey, Ladner, Lovász, Tamir: Semi-matchings for bipartite graphs and load
// balancing, 2006).
func (s *State) Rebalance() []Move {
	b := newBalance(s)
	b.toPreferred()
	for b.improve() {
	}
	moves := []Move{}
	for _, p := range b.places {
		if p.at != p.was {
			moves = append(moves, Move{Instance: p.name, From: p.was, To: p.at, Why: p.why(b)})
		}
	}
	return moves
}

// place is where one instance is, and where it might be.
type place struct {
	name    string
	was, at NodeID
	may     []NodeID // eligible nodes with the highest priority, in the order of an election
}

// balance is a distribution of masterships that is being improved.
type balance struct {
	nodes  []NodeID // eligible, in order
	places []place  // in order of the instances
	load   map[NodeID]int
	before map[NodeID]int // load, as it was
}

func newBalance(s *State) *balance {
	able := eligible(s.nodes.values())
	b := &balance{load: s.masterships(), before: s.masterships()}
	for _, n := range able {
		b.nodes = append(b.nodes, n.Name)
	}
	for _, r := range s.instances.rows {
		if s.burdens(r.val) && len(able) > 0 {
			b.places = append(b.places, place{name: r.key, was: r.val.Master, at: r.val.Master, may: preferred(*r.val, able)})
		}
	}
	return b
}

// preferred are the nodes with the highest priority for an instance, in the order
// of an election.
func preferred(inst Instance, able []Node) []NodeID {
	order := rank(inst, able)
	for i, n := range order {
		if inst.Priorities[n] != inst.Priorities[order[0]] {
			return order[:i]
		}
	}
	return order
}

// masterships counts, for each node, the instances it is master of and that
// burden it.
func (s *State) masterships() map[NodeID]int {
	load := map[NodeID]int{}
	for _, r := range s.instances.rows {
		if s.burdens(r.val) {
			load[r.val.Master]++
		}
	}
	return load
}

// burdens says whether an instance is of some weight to its master. The default
// instance exists whether anybody wants it or not.
func (s *State) burdens(inst *Instance) bool {
	if inst.Master == "" || inst.Name != DefaultInstance {
		return inst.Master != ""
	}
	return slices.ContainsFunc(s.vips.rows, func(r row[netip.Addr, VIP]) bool { return r.val.Instance == DefaultInstance })
}

// leastLoaded is the preferred node with the fewest masterships, the first of them
// in the order of an election; "" if nobody is eligible.
func (d *draft) leastLoaded(inst Instance) NodeID {
	return fewest(preferred(inst, eligible(d.nodes.values())), d.masterships())
}

// fewest is the first of the nodes with the smallest load; "" without nodes.
func fewest(order []NodeID, load map[NodeID]int) NodeID {
	if len(order) == 0 {
		return ""
	}
	return slices.MinFunc(order, func(a, b NodeID) int { return cmp.Compare(load[a], load[b]) })
}

// toPreferred moves what is on a node that others are preferred to.
func (b *balance) toPreferred() {
	for i, p := range b.places {
		if !slices.Contains(p.may, p.at) {
			b.move(i, fewest(p.may, b.load))
		}
	}
}

func (b *balance) move(i int, to NodeID) {
	b.load[b.places[i].at]--
	b.load[to]++
	b.places[i].at = to
}

// improve finds the node with the most masterships from which a path of moves
// leads to one with two less or fewer, and makes these moves; false if there is
// none.
func (b *balance) improve() bool {
	order := slices.Clone(b.nodes)
	slices.SortStableFunc(order, func(x, y NodeID) int { return cmp.Compare(b.load[y], b.load[x]) })
	for _, from := range order {
		via, reached := b.reach(from)
		to := fewest(reached, b.load)
		if to == "" || b.load[from]-b.load[to] < 2 {
			continue
		}
		for to != from {
			step := via[to]
			b.move(step.place, to)
			to = step.from
		}
		return true
	}
	return false
}

// hop is the last move of a path: which instance, from which node.
type hop struct {
	place int
	from  NodeID
}

// reach finds, by breadth first, the nodes that moves lead to from one node, the
// nearest first, and how.
func (b *balance) reach(from NodeID) (map[NodeID]hop, []NodeID) {
	via := map[NodeID]hop{}
	var reached []NodeID
	for queue := []NodeID{from}; len(queue) > 0; queue = queue[1:] {
		for _, to := range b.nodes {
			if _, known := via[to]; known || to == from {
				continue
			}
			if i := b.best(queue[0], to); i >= 0 {
				via[to] = hop{i, queue[0]}
				reached, queue = append(reached, to), append(queue, to)
			}
		}
	}
	return via, reached
}

// best is the instance to move from one node to another: rather one that is being
// moved anyhow, then the one that an election would sooner bring there; -1 if
// there is none.
func (b *balance) best(from, to NodeID) int {
	found, foundStays, foundWeight := -1, false, uint64(0)
	for i, p := range b.places {
		if p.at != from || !slices.Contains(p.may, to) {
			continue
		}
		stays, weight := p.was == from && p.was != to, rendezvous(p.name, to)
		if found < 0 || foundStays && !stays || foundStays == stays && weight > foundWeight {
			found, foundStays, foundWeight = i, stays, weight
		}
	}
	return found
}

// why says in words what a move is good for.
func (p place) why(b *balance) string {
	if !slices.Contains(p.may, p.was) {
		return fmt.Sprintf("%s is preferred to %s", p.at, p.was)
	}
	return fmt.Sprintf("%s is master of %d, %s of %d", p.was, b.before[p.was], p.at, b.before[p.at])
}
