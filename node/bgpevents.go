package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/plan"
	"pontoon/web"
)

// session is what was told of a BGP session.
type session struct {
	announce.PeerStatus
	failures []string // told since it was last up
}

// mostFailures bounds how many different reasons are told for which a session does
// not come up: two that take turns must not fill the log.
const mostFailures = 5

// sessionNews compares the sessions with what was known of them.
func sessionNews(known map[netip.Addr]session, now []announce.PeerStatus, self fsm.NodeID) (map[netip.Addr]session, []Event) {
	next := make(map[netip.Addr]session, len(now))
	var out []Event
	tell := func(p announce.PeerStatus, format string, args ...any) {
		out = append(out, Event{
			Kind: web.EventBGP, Node: self, Text: fmt.Sprintf(format, args...),
			Fields: map[string]string{"peer": p.Address.String(), "as": strconv.FormatUint(uint64(p.AS), 10), "state": string(p.State)},
		})
	}
	for _, p := range now {
		was := known[p.Address]
		up, wasUp := p.State == announce.StateEstablished, was.State == announce.StateEstablished
		s := session{p, was.failures}
		switch {
		case wasUp && !up:
			tell(p, "the BGP session with %s (AS %d) is down: %s", p.Address, p.AS, orUnknown(p.Error))
			s.failures = []string{p.Error}
		case wasUp && p.Flaps > was.Flaps:
			tell(p, "the BGP session with %s (AS %d) was down and is up again", p.Address, p.AS)
		case up && !wasUp:
			tell(p, "the BGP session with %s (AS %d) is up", p.Address, p.AS)
			s.failures = nil
		case !up && p.Error != "" && !slices.Contains(was.failures, p.Error) && len(was.failures) < mostFailures:
			tell(p, "the BGP session with %s (AS %d) does not come up: %s", p.Address, p.AS, p.Error)
			s.failures = append(slices.Clone(was.failures), p.Error)
		}
		next[p.Address] = s
	}
	for addr, was := range known {
		if _, is := next[addr]; !is && was.State == announce.StateEstablished {
			was.State = announce.StateIdle
			tell(was.PeerStatus, "the BGP session with %s (AS %d) has ended: it is no neighbour any more", was.Address, was.AS)
		}
	}
	return next, out
}

func orUnknown(why string) string {
	if why == "" {
		return "nobody said why"
	}
	return why
}

// withheldEvents tells which VIPs have lost their routes for want of endpoints, and
// which have got them back.
func withheldEvents(before, now []netip.Addr, routes []plan.Route, self fsm.NodeID) []Event {
	var gone, back []netip.Addr
	for _, a := range now {
		if !slices.Contains(before, a) {
			gone = append(gone, a)
		}
	}
	for _, a := range before {
		announced := slices.ContainsFunc(routes, func(r plan.Route) bool { return r.Prefix.Addr() == a })
		if announced && !slices.Contains(now, a) {
			back = append(back, a)
		}
	}
	var out []Event
	for _, e := range []struct {
		vips []netip.Addr
		text string
	}{{gone, "not announced: no endpoint takes new connections"}, {back, "announced again: an endpoint takes new connections"}} {
		if len(e.vips) > 0 {
			out = append(out, Event{Kind: web.EventBGP, Node: self, Text: fewVIPs(e.vips) + " " + e.text})
		}
	}
	return out
}

// fewVIPs begins a sentence about VIPs, however many there are.
func fewVIPs(vips []netip.Addr) string {
	const most = 5
	words := make([]string, 0, most)
	for _, a := range vips[:min(len(vips), most)] {
		words = append(words, a.String())
	}
	text := strings.Join(words, ", ")
	switch more := len(vips) - most; {
	case more > 0:
		return fmt.Sprintf("VIPs %s and %d more are", text, more)
	case len(vips) > 1:
		return "VIPs " + text + " are"
	}
	return "VIP " + text + " is"
}
