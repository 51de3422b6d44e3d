package node

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
	"pontoon/web"
)

// A BGP neighbour with BFD has a session of this node's BFD driver beside those with
// the other members. It tells in milliseconds what BGP's hold time tells in seconds,
// both ways: the router learns by it that this node is gone. It says nothing about
// members, so verdicts do not look at it.

// routerSessions are the BFD sessions with neighbours, each on the link whose subnet
// the neighbour is in, and in words those that cannot be.
func routerSessions(peers []fsm.BGPPeer, links []host.Link) (out []detect.Session, problems []string) {
	for _, p := range peers {
		if !p.BFD {
			continue
		}
		key, ok := wayTo(p, links)
		if !ok {
			problems = append(problems, fmt.Sprintf("BGP peer %s cannot be watched by BFD: it is in no subnet of this machine%s", p.Address, ofSource(p.Source)))
			continue
		}
		interval := time.Duration(p.BFDInterval)
		out = append(out, detect.Session{Key: key, Config: detect.Config{
			DesiredMinTx: interval, RequiredMinRx: interval, DetectMult: p.BFDMultiplier,
		}})
	}
	return out, problems
}

func ofSource(source netip.Addr) string {
	if !source.IsValid() {
		return ""
	}
	return fmt.Sprintf(" that %s is in, too", source)
}

// wayTo is where a neighbour is reached in one hop: the longest prefix wins, and of
// several the first.
func wayTo(p fsm.BGPPeer, links []host.Link) (detect.Key, bool) {
	found, bits := detect.Key{}, -1
	for _, l := range links {
		for _, prefix := range l.Prefixes {
			mine := !p.Source.IsValid() || p.Source == prefix.Addr()
			if mine && prefix.Contains(p.Address) && prefix.Addr() != p.Address && prefix.Bits() > bits {
				found, bits = detect.Key{Local: prefix.Addr(), Remote: p.Address, Interface: l.Name}, prefix.Bits()
			}
		}
	}
	return found, bits >= 0
}

// wantRouters gives the detector the sessions with neighbours there are now. links
// are all of this machine.
func (d *detector) wantRouters(links []host.Link) {
	var want []detect.Session
	var problems []string
	switch {
	case d.m.routing == nil || d.m.removed():
	case !d.m.contact.everFresh():
		return // what was taken up stays
	default:
		want, problems = routerSessions(d.m.store.State().BGPPeersOf(fsm.NodeID(d.m.cfg.Name)), links)
	}
	d.mu.Lock()
	want = resuming(want, d.routers)
	same := reflect.DeepEqual(want, d.routers) && slices.Equal(problems, d.unwatched)
	d.routers, d.unwatched = want, problems
	d.mu.Unlock()
	if same {
		return
	}
	if err := d.setSessions(); err != nil {
		d.m.logger.Warn("some BGP neighbours cannot be watched by BFD", "err", err)
	}
}

// setSessions gives the driver all sessions that are wanted, with members and with routers.
func (d *detector) setSessions() error {
	d.setting.Lock()
	defer d.setting.Unlock()
	if d.rested {
		return nil
	}
	d.mu.Lock()
	w, all := d.watch, slices.Clone(d.routers)
	d.mu.Unlock()
	members := detect.Config{
		DesiredMinTx: d.cfg.BFDInterval, RequiredMinRx: d.cfg.BFDInterval, DetectMult: uint8(d.cfg.BFDMultiplier), //nolint:gosec // at most 50
	}
	for _, k := range w.sessions {
		all = append(all, detect.Session{Key: k, Config: members})
	}
	return d.sessions.SetSessions(eachOnce(all))
}

// eachOnce leaves one session of those with the same key: a member that is a BGP neighbour, too, has one for both, which tells
// as soon as the quicker of the two would have.
func eachOnce(all []detect.Session) []detect.Session {
	at := make(map[detect.Key]int, len(all))
	out := make([]detect.Session, 0, len(all))
	for _, s := range all {
		i, twice := at[s.Key]
		switch {
		case !twice:
			at[s.Key] = len(out)
			out = append(out, s)
		case detects(s.Config) < detects(out[i].Config):
			out[i].Config = s.Config
		}
	}
	return out
}

// detects is how long a silence is that counts as a death.
func detects(c detect.Config) time.Duration { return c.RequiredMinRx * time.Duration(c.DetectMult) }

// sessionChanged is told of each change while the sessions are locked.
func (d *detector) sessionChanged(k detect.Key, c detect.Change) {
	wake(d.poke)
	if c.From != detect.Up {
		return
	}
	d.mu.Lock()
	router := slices.ContainsFunc(d.routers, func(s detect.Session) bool { return s.Key == k })
	if router {
		d.fallen = append(d.fallen, fall{k, c.Diag})
	}
	d.mu.Unlock()
	if router {
		wake(d.fell)
	}
}

// fall is a session with a router that is up no more.
type fall struct {
	key  detect.Key
	diag detect.Diag
}

// takeFallen returns those since the last call.
func (d *detector) takeFallen() []fall {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := d.fallen
	d.fallen = nil
	return out
}

// routerSession is the session with a neighbour, if it is watched.
func (d *detector) routerSession(peer netip.Addr) (detect.Status, bool) {
	d.mu.Lock()
	i := slices.IndexFunc(d.routers, func(s detect.Session) bool { return s.Remote == peer })
	var key detect.Key
	if i >= 0 {
		key = d.routers[i].Key
	}
	d.mu.Unlock()
	for _, s := range d.sessions.Sessions() {
		if i >= 0 && s.Key == key {
			return s, true
		}
	}
	return detect.Status{}, false
}

// resets ends the BGP session with each neighbour that BFD says is gone.
func (r *routing) resets(ctx context.Context) error {
	for {
		for _, f := range r.m.detector.takeFallen() {
			r.resetFallen(f)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-r.m.detector.fell:
		}
	}
}

// resetFallen does so, and tells of it.
func (r *routing) resetFallen(f fall) {
	s, ok := r.m.detector.routerSession(f.key.Remote)
	if !ok || s.Key != f.key {
		return // it is not wanted any more
	}
	text, why := verdictOf(f, s)
	if why != "" {
		r.bgp.Reset(f.key.Remote, why)
	}
	r.m.events.add(Event{
		Kind: web.EventBGP, Node: fsm.NodeID(r.m.cfg.Name), Text: text,
		Fields: map[string]string{"peer": f.key.Remote.String(), "bfd": "down"},
	})
}

// verdictOf says what the end of a BFD session means for the BGP session, and why that
// is to end; "" if it goes on: a neighbour that takes its BFD session down by decision
// says nothing about the way to it (RFC 5882, 4.2).
func verdictOf(f fall, s detect.Status) (text, reset string) {
	if s.Farewell {
		return fmt.Sprintf("BGP neighbour %s has stopped its BFD session; the BGP session goes on", f.key.Remote), ""
	}
	why := wordFall(f.diag, s)
	return fmt.Sprintf("BFD with BGP neighbour %s is down: %s", f.key.Remote, why), "BFD: " + why
}

func wordFall(diag detect.Diag, s detect.Status) string {
	switch diag {
	case detect.DiagExpired:
		return "it has gone silent on " + s.Interface
	case detect.DiagNeighbourDown:
		return "it does not hear this node on " + s.Interface
	}
	return "it is not reached on " + s.Interface
}
