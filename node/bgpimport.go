package node

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"pontoon/fsm"
	"pontoon/node/announce"
	"pontoon/node/host"
)

// Routes in: what neighbours tell and the import rules let in goes into the kernel.
// A daemon that stops leaves the routes where they are, like all it forwards by; the
// next one takes over those it is told of again, and removes the others once every
// neighbour has had the time to tell.
const (
	// importSettles is how long after all sessions are up nothing more is waited for.
	importSettles = 3 * time.Second
	// importLook is how often the kernel is looked at although nothing has changed.
	importLook = 10 * time.Second
)

// imports is the state of the routes in the kernel.
type imports struct {
	began    time.Time // since when there are rules
	settled  bool      // what an earlier life has left was told of again, or is gone
	clean    bool      // there are no rules, and no routes of ours
	looked   time.Time
	routes   []host.Route // of the last look
	problems []string
}

// importRoutes makes the kernel hold what is learned, if anything is to be.
func (r *routing) importRoutes(now time.Time) error {
	r.mu.Lock()
	set, config, is := r.set, r.config, r.imports
	r.mu.Unlock()
	if !set {
		return nil // what the cluster wants is not known yet, or not to the speaker
	}
	if len(config.Import) == 0 {
		if is.clean {
			return nil
		}
		_, _, err := r.m.host.SyncRoutes(nil, false)
		r.setImports(imports{clean: err == nil, problems: lines(err)})
		return err
	}
	if is.began.IsZero() {
		is.began = now
	}
	was := is.settled
	is.clean, is.settled = false, was || settled(r.bgp.Peers(), is.began, config.RestartTime, now)
	links, err := r.m.allLinks()
	if err != nil {
		return err
	}
	routes, refused := importable(r.bgp.Learned(), r.m.store.State().VIPs(), links)
	stale := r.stale.Swap(false)
	same := slices.EqualFunc(routes, is.routes, func(a, b host.Route) bool { return a.Prefix == b.Prefix && slices.Equal(a.NextHops, b.NextHops) })
	if same && !stale && len(is.problems) == 0 && now.Sub(is.looked) < importLook && is.settled == was {
		return nil
	}
	added, removed, err := r.m.host.SyncRoutes(routes, !is.settled)
	if len(added)+len(removed) > 0 {
		r.logger.Info("learned routes in the kernel", "set", len(added), "removed", len(removed), "all", len(routes))
	}
	is.looked, is.routes, is.problems = now, routes, append(refused, lines(err)...)
	r.setImports(is)
	return err
}

// lookAgain has learned routes compared with the kernel's at once: it drops those by a
// link that goes down, or by an address that is taken away, and tells nobody to put them back.
func (r *routing) lookAgain() {
	r.stale.Store(true)
	wake(r.stir)
}

func (r *routing) setImports(is imports) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.imports = is
}

// settled says at now whether the neighbours have had the time to tell what they know
// since a moment: all sessions are up for a while, or it is over for how long routes
// are kept for the sake of a restart.
func settled(peers []announce.PeerStatus, since time.Time, restart time.Duration, now time.Time) bool {
	up := func(p announce.PeerStatus) bool {
		return p.State == announce.StateEstablished && now.Sub(p.Since) >= importSettles
	}
	return now.Sub(since) >= restart || !slices.ContainsFunc(peers, func(p announce.PeerStatus) bool { return !up(p) })
}

// importable picks what may go into the kernel of what the rules let in. A route to
// an address of the cluster's own, or into a subnet this machine is on, would take
// traffic away from where it already gets; and a next hop has to be somebody else.
func importable(learned []announce.Learned, vips []fsm.VIP, links []host.Link) (routes []host.Route, refused []string) {
	own := map[netip.Addr]bool{}
	for _, v := range vips {
		own[v.Address] = true
	}
	for _, l := range links {
		for _, p := range l.Prefixes {
			own[p.Addr()] = true
		}
	}
	for _, l := range learned {
		hops := slices.DeleteFunc(slices.Clone(l.NextHops), func(a netip.Addr) bool { return own[a] })
		link, subnet := within(l.Prefix, links)
		switch {
		case l.Prefix.IsSingleIP() && own[l.Prefix.Addr()]:
			refused = append(refused, fmt.Sprintf("the learned route to %s is not taken: it is an address of this cluster", l.Prefix))
		case link != "":
			refused = append(refused, fmt.Sprintf("the learned route to %s is not taken: it is in subnet %s of %s here", l.Prefix, subnet, link))
		case len(hops) == 0:
			refused = append(refused, fmt.Sprintf("the learned route to %s is not taken: its next hop is this machine", l.Prefix))
		default:
			routes = append(routes, host.Route{Prefix: l.Prefix, NextHops: hops})
		}
	}
	return routes, refused
}

// within is the link in whose subnet the whole prefix lies, "" if there is none.
func within(prefix netip.Prefix, links []host.Link) (link string, subnet netip.Prefix) {
	for _, l := range links {
		for _, p := range l.Prefixes {
			if !p.IsSingleIP() && p.Bits() <= prefix.Bits() && p.Contains(prefix.Addr()) {
				return l.Name, p.Masked()
			}
		}
	}
	return "", netip.Prefix{}
}

// lines are the single errors of a joined one, in words.
func lines(err error) []string {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return nil
	case errors.As(err, &joined):
		var out []string
		for _, e := range joined.Unwrap() {
			out = append(out, e.Error())
		}
		return out
	}
	return []string{err.Error()}
}
