package node

import (
	"net/netip"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
)

// What follows from echoes and sessions is decided here, from values alone: whom this node has
// lost, which links of others, and what the reports of all make of that.

// linkRef is a link of another node, by its address there.
type linkRef struct {
	Node fsm.NodeID `json:"node"`
	Addr netip.Addr `json:"addr"`
}

// sighting is what one node sees of the others.
type sighting struct {
	lost  []fsm.NodeID // out of reach by every way
	links []linkRef    // links of nodes that live, whose data plane does not answer there
}

func (s sighting) equal(o sighting) bool {
	return slices.Equal(s.lost, o.lost) && slices.Equal(s.links, o.links)
}

// see concludes from what echoes and sessions are at present. A node is lost when echoes went out
// on every way there is, there were answers before, none comes back now, and its daemon says
// nothing either, on no way, since the first echo stayed out. A refusal is an answer in this sense: the
// machine lives. What could not be sent says nothing. Of a witness, which has no data plane, the
// sessions alone tell; of a load balancer they never do, since a stopped daemon is not a dead machine.
func see(echoes []detect.EchoStatus, sessions []detect.Status, w watch) sighting {
	views := map[fsm.NodeID]*view{}
	of := func(k detect.Key) *view {
		name, ok := w.owner[k]
		if !ok {
			return nil
		}
		if views[name] == nil {
			views[name] = &view{witness: w.witness[name], links: map[netip.Addr]linkView{}}
		}
		return views[name]
	}
	for _, e := range echoes {
		if v := of(e.Key); v != nil {
			v.echo(e)
		}
	}
	for _, s := range sessions {
		if v := of(s.Key); v != nil {
			v.session(s)
		}
	}
	var out sighting
	for name, v := range views {
		if v.lost() {
			out.lost = append(out.lost, name)
			continue
		}
		for addr, l := range v.links {
			if v.cut(l) {
				out.links = append(out.links, linkRef{name, addr})
			}
		}
	}
	slices.Sort(out.lost)
	slices.SortFunc(out.links, func(a, b linkRef) int { return a.Addr.Compare(b.Addr) })
	return out
}

// view is what is known of one node.
type view struct {
	witness  bool
	known    bool // it answered before, and not for the first time just now
	answers  bool // to an echo, be it with a refusal, or an echo could not be sent
	doubted  time.Time
	answered time.Time // last answer to an echo
	refuses  bool      // its kernel does, on some way
	heard    time.Time // last word of a session that is up
	speaks   bool      // a session is up
	spoke    bool      // one was
	farewell bool      // it said that it stops
	links    map[netip.Addr]linkView
}

// linkView is what is known of one of its links.
type linkView struct {
	known   bool // it answered before
	silent  bool // no way to it is answered by a data plane now
	doubted time.Time
}

func (v *view) echo(e detect.EchoStatus) {
	// A way to a daemon that has just been started gets its first answers before it counts as up.
	known := !e.LastGood.IsZero() && !e.Rising
	v.known = v.known || known
	v.answers = v.answers || e.State == detect.Up || e.Why != detect.Unanswered
	v.refuses = v.refuses || e.State != detect.Up && e.Why == detect.Refused
	v.doubted, v.answered = later(v.doubted, e.Doubted), later(v.answered, e.LastGood)
	l, ok := v.links[e.Remote]
	silent := e.State != detect.Up && e.Why != detect.Unsent
	v.links[e.Remote] = linkView{known: l.known || known, silent: silent && (l.silent || !ok), doubted: later(l.doubted, e.Doubted)}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

func (v *view) session(s detect.Status) {
	v.spoke = v.spoke || s.WasUp
	v.farewell = v.farewell || s.Farewell
	if s.State != detect.Up {
		return
	}
	v.speaks, v.heard = true, later(v.heard, s.Heard)
}

func (v *view) lost() bool {
	if v.witness {
		return v.spoke && !v.speaks && !v.farewell
	}
	return v.known && !v.answers && !(v.speaks && v.heard.After(v.doubted))
}

// cut says whether a link of a node that is not lost is. When a machine dies its links do so
// one after another, each at its own next echo: so there has to be a sign of the node's life that is
// younger than the first echo which stayed out on the link.
func (v *view) cut(l linkView) bool {
	return l.known && l.silent && (v.refuses || v.answered.After(l.doubted) || v.speaks && v.heard.After(l.doubted))
}

// lossAge is how old a report may be whose word about lost nodes counts. Reports
// come three times a second.
const lossAge = time.Second

// losses counts for each node how many others have lost it, by their last reports.
func losses(reports []agedReport) map[fsm.NodeID]int {
	out := map[fsm.NodeID]int{}
	for _, r := range reports {
		if r.AgeMS > lossAge.Milliseconds() {
			continue
		}
		for _, n := range r.Lost {
			if string(n) != r.Node {
				out[n]++
			}
		}
	}
	return out
}

// cutOff lists for each node the links by which most nodes on that link do not reach its data plane,
// although the node as such is not lost: a wire without a signal of its own, one direction that is dead, a
// program that is gone. Nobody's word about others counts who has such trouble with its own carrier. If
// every load balancer that speaks is cut off on a link, the link between them is broken, or probing is,
// and none of them is worse than another: then none is.
func cutOff(reports []agedReport) map[fsm.NodeID][]linkAddr {
	out := map[fsm.NodeID][]linkAddr{}
	judged := map[netip.Prefix]bool{}
	for _, r := range reports {
		for _, l := range r.Links {
			subnet := l.Prefix.Masked()
			if judged[subnet] {
				continue
			}
			judged[subnet] = true
			broken, better := cutOffIn(subnet, reports)
			if !better {
				continue
			}
			for name, link := range broken {
				out[name] = append(out[name], link)
			}
		}
	}
	return out
}

// cutOffIn judges one subnet: who is cut off there, and whether a load balancer that speaks is better
// off, so that somebody who can judge does reach it.
func cutOffIn(subnet netip.Prefix, reports []agedReport) (broken map[fsm.NodeID]linkAddr, better bool) {
	members, votes := 0, map[linkRef]int{}
	var speak, judges []string
	for _, r := range reports {
		in := func(l linkAddr) bool { return l.Prefix.Masked() == subnet }
		balancer := slices.ContainsFunc(r.Links, in)
		if !balancer && (len(r.Links) > 0 || !slices.ContainsFunc(r.Control, in)) {
			continue
		}
		members++
		if r.AgeMS > lossAge.Milliseconds() {
			continue
		}
		if balancer {
			speak = append(speak, r.Node)
		}
		if !r.LinksUp {
			continue
		}
		judges = append(judges, r.Node)
		for _, lost := range r.LostLinks {
			if string(lost.Node) != r.Node {
				votes[lost]++
			}
		}
	}
	broken = map[fsm.NodeID]linkAddr{}
	for _, r := range reports {
		for _, l := range r.Links {
			if l.Prefix.Masked() != subnet {
				continue
			}
			against := votes[linkRef{fsm.NodeID(r.Node), l.Prefix.Addr()}]
			others := len(judges)
			if slices.Contains(judges, r.Node) {
				others--
			}
			if against >= majority(members) {
				broken[fsm.NodeID(r.Node)] = l
			} else if against < others && slices.Contains(speak, r.Node) {
				better = true
			}
		}
	}
	return broken, better
}
