package node

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/web"
)

// status is the watched ways as the API shows them, and for each node that cannot be watched, why.
func (d *detector) status(s *fsm.State) []web.BFDSession {
	d.mu.Lock()
	w, routers := d.watch, d.routers
	d.mu.Unlock()
	var out []web.BFDSession
	for _, p := range d.echo.Paths() {
		if name, ok := w.owner[p.Key]; ok {
			out = append(out, d.echoStatus(name, p))
		}
	}
	for _, p := range d.sessions.Sessions() {
		if name, ok := w.owner[p.Key]; ok {
			out = append(out, d.sessionStatus(name, p))
		}
		for _, r := range routers {
			if r.Key == p.Key {
				is := d.sessionStatus(fsm.NodeID(p.Remote.String()), p)
				is.Multiplier = int(r.Config.DetectMult)
				out = append(out, is)
			}
		}
	}
	return withUnwatched(out, s.Nodes(), fsm.NodeID(d.m.cfg.Name))
}

// withUnwatched adds the nodes that are not among the watched, and puts all in order.
func withUnwatched(watched []web.BFDSession, nodes []fsm.Node, self fsm.NodeID) []web.BFDSession {
	for _, n := range nodes {
		is := slices.ContainsFunc(watched, func(b web.BFDSession) bool { return b.Peer == n.Name })
		if n.Name == self || is {
			continue
		}
		watched = append(watched, web.BFDSession{
			Peer: n.Name, Kind: web.BFDNone, State: web.BFDNone,
			Why: "no common subnet", Error: "gossip and its kernel alone tell whether it lives, in about half a second",
		})
	}
	slices.SortStableFunc(watched, func(a, b web.BFDSession) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), -cmp.Compare(a.Kind, b.Kind))
	})
	return watched
}

func (d *detector) echoStatus(peer fsm.NodeID, p detect.EchoStatus) web.BFDSession {
	return web.BFDSession{
		Peer: peer, Kind: web.BFDEcho, Address: p.Remote.String(), Interface: p.Interface, State: p.State.String(), Why: string(p.Why), Error: p.Error,
		IntervalMS: inMS(d.cfg.EchoInterval), Multiplier: d.cfg.EchoMisses, DetectionMS: inMS(time.Duration(d.cfg.EchoMisses) * d.cfg.EchoInterval),
		RTTMS: inMS(p.RTT),
	}
}

func (d *detector) sessionStatus(peer fsm.NodeID, p detect.Status) web.BFDSession {
	state := p.State.String()
	if p.State == detect.AdminDown {
		state = detect.Down.String()
	}
	out := web.BFDSession{
		Peer: peer, Kind: web.BFDAsync, Address: p.Remote.String(), Interface: p.Interface, State: state, Error: p.Error,
		IntervalMS: inMS(p.TxInterval), Multiplier: d.cfg.BFDMultiplier, DetectionMS: inMS(p.DetectionTime),
	}
	switch {
	case p.State == detect.Up || p.State == detect.Init:
	case p.Error != "":
		out.Why = string(detect.Unsent)
	case p.Farewell:
		out.Why = "stopped"
	case !p.WasUp:
		out.Why = "not up yet"
	case p.Diag == detect.DiagNeighbourDown:
		out.Why = "not heard there"
	default:
		out.Why = "silent"
	}
	return out
}

func inMS(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// warnings is what an operator should know of what this node and the others see.
func (d *detector) warnings(s *fsm.State) []string {
	var out []string
	if err := d.sessions.ReceiveError(); err != nil {
		out = append(out, "BFD sessions cannot be: "+brief(err)+"; echoes go on")
	}
	reports := d.m.reports.all(time.Now(), d.m.knownNode)
	lost := losses(reports)
	for _, n := range d.lostNow() {
		if node, ok := s.Node(n); ok && node.Alive && d.m.raft.hasQuorum() && lost[n] < majority(len(s.Nodes())) {
			out = append(out, fmt.Sprintf("this node reaches %s on no path, while others do: the network between the two is cut", n))
		}
	}
	cut := cutOff(reports)
	for _, n := range s.Nodes() {
		if links := cut[n.Name]; n.Alive && len(links) > 0 {
			out = append(out, fmt.Sprintf("%s is cut off on %s: most nodes there do not reach its data plane, so it is given nothing", n.Name, wordLinks(links)))
		}
	}
	return out
}

func wordLinks(links []linkAddr) string {
	var words []string
	for _, l := range links {
		words = append(words, fmt.Sprintf("%s (%s)", l.Interface, l.Prefix.Addr()))
	}
	slices.Sort(words)
	return strings.Join(words, " and ")
}
