package main

import (
	"fmt"
	"strings"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

func drawBGPSettings(t *table, b web.BGPSettings) {
	port := "none: the nodes only connect"
	if b.Port != 0 {
		port = fmt.Sprint(b.Port)
	}
	rules := make([]string, len(b.Import))
	for i, r := range b.Import {
		rules[i] = importWords(r)
	}
	t.row("as", b.AS)
	t.row("listen port", port)
	t.row("restart time", b.RestartTime)
	t.row("import", join(rules))
	t.row("max import", b.MaxImport)
	t.line("")
	own := map[fsm.NodeID]fsm.BGPNode{}
	for _, n := range b.Nodes {
		own[n.Node] = n
	}
	t.head("NODE", "AS", "ROUTER ID")
	for _, s := range b.Speakers {
		t.row(s.Node, ownOr(s.AS, own[s.Node].AS != 0), ownOr(s.RouterID, own[s.Node].RouterID.IsValid()))
	}
}

// ownOr marks what a node has of its own.
func ownOr(value any, own bool) string {
	if own {
		return fmt.Sprintf("%v (its own)", value)
	}
	return fmt.Sprint(value)
}

// drawPeers shows sessions as they are at now.
func drawPeers(t *table, peers []web.BGPPeerStatus, now time.Time) {
	t.head("PEER", "NODE", "AS", "STATE", "FOR", "RECEIVED", "ADVERTISED", "LOST", "BFD", "WHY")
	for _, p := range peers {
		node := string(p.Node)
		if node == "" {
			node = "all"
		}
		s := p.Session
		if s == nil {
			t.row(p.Address, node, p.AS, "-", "-", "-", "-", "-", "-", "-")
			continue
		}
		t.row(p.Address, node, p.AS, bgpState(s.State), sinceWords(s.Since, now), s.Received, s.Advertised, s.Flaps, s.BFD, s.Error)
	}
}

func bgpState(s web.BGPState) cell {
	c := cell{string(s), bad}
	if s == web.BGPEstablished {
		c.style = good
	}
	return c
}

// sinceWords is how long something has lasted.
func sinceWords(since, now time.Time) string {
	if since.IsZero() {
		return ""
	}
	return max(now.Sub(since), 0).Round(time.Second).String()
}

func drawRoutes(t *table, routes []web.BGPRoute) {
	t.head("PREFIX", "PEER", "NEXT HOP", "MED", "PREF", "AS PATH", "COMMUNITIES", "BEST", "INSTANCE")
	for _, r := range routes {
		hop := ""
		if r.NextHop.IsValid() {
			hop = r.NextHop.String()
		}
		path := strings.Trim(fmt.Sprint(r.ASPath), "[]")
		t.row(r.Prefix, r.Peer, hop, r.MED, r.LocalPref, path, join(r.Communities), yesNo(r.Best), r.Instance)
	}
}

// drawBGP is one line for each session in the status.
func drawBGP(t *table, sessions []web.BGPPeer) {
	for _, s := range sessions {
		line := fmt.Sprintf("  bgp with %s (AS %d): %s", s.Peer, s.AS, s.State)
		if s.State == web.BGPEstablished {
			line += fmt.Sprintf(", %d advertised, %d received", s.Advertised, s.Received)
		}
		if s.Error != "" {
			line += ": " + s.Error
		}
		t.line("%s", line)
	}
}

// sessionLines says what happens to sessions, those alike in one line:
// "192.0.2.1 on lb1, lb2: the session is reset (hold time 9s -> 30s)".
func sessionLines(changes []fsm.SessionChange) []string {
	if len(changes) == 0 {
		return []string{"no session is touched"}
	}
	type kind struct {
		peer string
		verb fsm.SessionVerb
		why  string
		kept bool
	}
	nodes := map[kind][]fsm.NodeID{}
	var kinds []kind
	for _, c := range changes {
		k := kind{c.Peer.String(), c.Verb, c.Why, c.RoutesKept}
		if nodes[k] == nil {
			kinds = append(kinds, k)
		}
		nodes[k] = append(nodes[k], c.Node)
	}
	lines := make([]string, len(kinds))
	for i, k := range kinds {
		what := "the session is"
		if len(nodes[k]) > 1 {
			what = "the sessions are"
		}
		lines[i] = fmt.Sprintf("%s on %s: %s %s", k.peer, join(nodes[k]), what, k.verb)
		if k.why != "" {
			lines[i] += " (" + k.why + ")"
		}
		if k.kept {
			lines[i] += "; with graceful restart it keeps the routes meanwhile"
		}
	}
	return lines
}
