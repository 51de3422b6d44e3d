package chaostest

import (
	"fmt"
	"slices"
	"time"
)

// Limits are the bounds that are no laws of logic.
type Limits struct {
	// Lease is how long after it can hear nobody any more a node may answer for an
	// address. 0 leaves the fence unchecked.
	Lease time.Duration
	// Margin is added to each bound for what this machine adds: the pace of the
	// observers, and processes that wait for their turn.
	Margin time.Duration
	// Converge is how long after the last fault the cluster may take to be whole.
	Converge time.Duration
	// Silence is how long nobody may answer for an address once it is whole.
	Silence time.Duration
}

// DefaultLimits are those of the product's defaults on a machine of its own.
func DefaultLimits() Limits {
	return Limits{Lease: time.Second, Margin: 500 * time.Millisecond, Converge: 20 * time.Second, Silence: 500 * time.Millisecond}
}

// Violation is an invariant that did not hold.
type Violation struct {
	Invariant string
	At        time.Duration
	Text      string
}

func (v Violation) String() string {
	return fmt.Sprintf("%8.3fs %s: %s", v.At.Seconds(), v.Invariant, v.Text)
}

// Check holds the history against every invariant. It is pure.
func Check(h *History, l Limits) []Violation {
	var all []Violation
	for _, check := range []func(*History, Limits) []Violation{
		oneMasterPerEpoch, epochsGrow, converges, oneAnswerer, noTwoAnswer, fenced, heldIsHeld, readyBeforeAnswer,
		configurationKept, connectionsKept, flowsAgree, cleanLogs,
	} {
		all = append(all, check(h, l)...)
	}
	slices.SortStableFunc(all, func(a, b Violation) int { return int(a.At - b.At) })
	return all
}

// oneMasterPerEpoch: an instance has at most one master in an epoch, whoever is asked.
func oneMasterPerEpoch(h *History, _ Limits) (out []Violation) {
	type key struct {
		instance string
		epoch    uint64
	}
	type word struct{ master, node string }
	seen := map[key]word{}
	for _, v := range h.Views {
		for _, i := range v.Instances {
			k := key{i.Name, i.Epoch}
			first, known := seen[k]
			switch {
			case i.Master == "":
			case !known:
				seen[k] = word{i.Master, v.Node}
			case first.master != i.Master:
				out = append(out, Violation{"one master per epoch", v.At, fmt.Sprintf(
					"in epoch %d of %s the master is %s for %s and %s for %s", i.Epoch, i.Name, first.master, first.node, i.Master, v.Node)})
			}
		}
	}
	return out
}

// epochsGrow: within one life of a daemon the epoch it knows never goes back.
func epochsGrow(h *History, _ Limits) (out []Violation) {
	type key struct {
		node     string
		life     int
		instance string
	}
	newest := map[key]uint64{}
	for _, v := range h.Views {
		for _, i := range v.Instances {
			k := key{v.Node, v.Life, i.Name}
			if i.Epoch < newest[k] {
				out = append(out, Violation{"epochs only grow", v.At, fmt.Sprintf(
					"%s went back from epoch %d of %s to %d", v.Node, newest[k], i.Name, i.Epoch)})
			}
			newest[k] = max(newest[k], i.Epoch)
		}
	}
	return out
}

// converges: the cluster is whole again soon after the last fault.
func converges(h *History, l Limits) []Violation {
	const name = "whole again in time"
	switch took := h.Converged - h.Healed; {
	case h.Converged == 0:
		return []Violation{{name, h.Ended, "it never became whole: " + h.Why}}
	case took > l.Converge:
		return []Violation{{name, h.Converged, fmt.Sprintf("it took %s", took)}}
	}
	return nil
}

// oneAnswerer: once the cluster is whole, the committed master and nobody else
// answers for each address, without a break.
func oneAnswerer(h *History, l Limits) (out []Violation) {
	if h.Converged == 0 {
		return nil
	}
	const name = "exactly one answerer"
	masters := map[string]string{}
	for _, v := range h.Views {
		for _, i := range v.Instances {
			masters[i.Name] = i.Master
		}
	}
	for _, address := range sortedKeys(h.VIPs) {
		want, last := masters[h.VIPs[address]], h.Converged
		for _, c := range h.answersFor(address) {
			if c.At < h.Converged {
				continue
			}
			if c.Node != want {
				out = append(out, Violation{name, c.At, fmt.Sprintf("%s answers for %s, whose master is %s", c.Node, address, want)})
				break
			}
			if c.At-last > l.Silence {
				break
			}
			last = c.At
		}
		if next := h.nextAnswer(address, last); next-last > l.Silence {
			out = append(out, Violation{name, last, fmt.Sprintf("nobody answers for %s for %s", address, next-last)})
		}
	}
	return out
}

// nextAnswer is when the address is answered for after a time, or when the
// observers stopped.
func (h *History) nextAnswer(address string, after time.Duration) time.Duration {
	for _, c := range h.answersFor(address) {
		if c.At > after {
			return c.At
		}
	}
	return h.Ended
}

func (h *History) answersFor(address string) (out []Claim) {
	for _, c := range h.Claims {
		if c.Asked && c.Address == address {
			out = append(out, c)
		}
	}
	return out
}

// noTwoAnswer: at no time, faults or not, do two nodes go on answering for one
// address for longer than a lease.
func noTwoAnswer(h *History, l Limits) (out []Violation) {
	const window = 50 * time.Millisecond
	if l.Lease == 0 {
		return nil
	}
	for _, address := range sortedKeys(h.VIPs) {
		if slices.Contains(h.Held, address) {
			continue // two may, as long as they do not hear each other
		}
		var since, at time.Duration // of the windows with two answerers in a row
		var first, other string
		flush := func() {
			if at-since > l.Lease+l.Margin {
				out = append(out, Violation{"no two answer for long", since, fmt.Sprintf(
					"%s and %s both answered for %s, for %s", first, other, address, at-since)})
			}
			since, at = 0, 0
		}
		answers := h.answersFor(address)
		for i := 0; i < len(answers); {
			j := i
			for j < len(answers) && answers[j].At-answers[i].At < window {
				j++
			}
			two := slices.IndexFunc(answers[i:j], func(c Claim) bool { return c.Node != answers[i].Node })
			switch {
			case two < 0:
				flush()
			case since == 0:
				since, first, other = answers[i].At, answers[i].Node, answers[i+two].Node
				at = answers[j-1].At
			default:
				at = answers[j-1].At
			}
			i = j
		}
		flush()
	}
	return out
}

// fenced: a node that hears nobody answers for nothing any more once its lease has
// run out.
func fenced(h *History, l Limits) (out []Violation) {
	if l.Lease == 0 {
		return nil
	}
	for _, s := range h.Spans {
		if s.What != Stopped && s.What != Alone {
			continue
		}
		for _, c := range h.Claims {
			if c.Node == s.Node && c.Asked && !slices.Contains(h.Held, c.Address) && c.At > s.From+l.Lease+l.Margin && c.At < s.To {
				out = append(out, Violation{"silent after the lease", c.At, fmt.Sprintf(
					"%s answers for %s, %s after it was %s", c.Node, c.Address, c.At-s.From, s.What)})
				break
			}
		}
	}
	return out
}

// heldIsHeld: what is to be claimed without a quorum is answered for also while the daemon of its
// master does not run. Only times are looked at in which nothing else was hurt.
func heldIsHeld(h *History, l Limits) (out []Violation) {
	const before = 200 * time.Millisecond
	for _, s := range h.Spans {
		if s.What != Unattended || h.alsoHurt(s.From-time.Second, s.To) {
			continue
		}
		for _, address := range h.Held {
			last, mine := s.From, false
			for _, c := range h.answersFor(address) {
				mine = mine || c.Node == s.Node && c.At > s.From-before && c.At <= s.From
				if c.At > last && c.At <= s.To && c.At-last <= l.Silence {
					last = c.At
				}
			}
			if mine && s.To-last > l.Silence {
				out = append(out, Violation{"what is held is held", last, fmt.Sprintf(
					"nobody answers for %s, although the kernel of %s runs", address, s.Node)})
			}
		}
	}
	return out
}

// alsoHurt says whether more than one fault lay in a time.
func (h *History) alsoHurt(from, to time.Duration) bool {
	n := 0
	for _, f := range h.Faults {
		if f.From < to && f.To > from {
			n++
		}
	}
	return n > 1
}

// readyBeforeAnswer: nobody claims an address while all who were asked say that its
// data plane is not ready.
func readyBeforeAnswer(h *History, l Limits) (out []Violation) {
	type span struct{ from, to time.Duration }
	for _, node := range h.Nodes {
		var unready []span
		open := time.Duration(-1)
		latest := map[string]bool{} // who says so now
		for _, v := range h.Views {
			latest[v.Node] = slices.Contains(v.NotReady, node)
			all := len(latest) > 0
			for _, says := range latest {
				all = all && says
			}
			switch {
			case all && open < 0:
				open = v.At
			case !all && open >= 0:
				unready, open = append(unready, span{open, v.At}), -1
			}
		}
		if open >= 0 {
			unready = append(unready, span{open, h.Ended})
		}
		for _, c := range h.Claims {
			// What nodes say is looked at now and then: it may have been ready a little before it was seen so.
			in := slices.IndexFunc(unready, func(s span) bool { return c.At > s.from+l.Lease+l.Margin && c.At < s.to-l.Margin })
			// Who is taken for dead is not ready, and holds what is to be held.
			if c.Node == node && in >= 0 && !slices.Contains(h.Held, c.Address) {
				out = append(out, Violation{"ready before it answers", c.At, fmt.Sprintf("%s claims %s and is not ready", node, c.Address)})
				break
			}
		}
	}
	return out
}
