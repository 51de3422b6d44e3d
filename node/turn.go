package node

import (
	"context"
	"errors"
	"time"

	"pontoon/fsm"
	"pontoon/node/host"
	"pontoon/node/plan"
)

// turn is one pass of the driver over everything that it keeps.
type turn struct {
	s     *fsm.State
	fresh bool // this node may take something up
	was   localView
	links []host.Link
	lerr  error // some of them are gone
	plan  plan.Plan
	due   dataplaneDue
	derr  error // of the data plane
	view  outlook
	v     localView // becomes what others are told
}

// dataplaneDue says whether and when in a turn the data plane is given its services.
type dataplaneDue struct {
	news  bool // something of them is not as it was the last time
	first bool // before anything is taken up
}

// carryOut makes this machine what the state says. fresh says that it may take something up.
//
// A VIP is taken up only when its services are in the data plane. They are before, on every node, so what a
// takeover has to wait for is a change of services. The verdicts on endpoints that come with it, often many, are none,
// and come after it.
func (d *driver) carryOut(ctx context.Context, s *fsm.State, fresh bool) error {
	t := &turn{s: s, fresh: fresh, was: d.m.local.get()}
	if err := d.look(t); err != nil {
		return err
	}
	changed := d.draw(t)
	if t.fresh && takesUp(t.plan, t.was.holding) {
		d.m.dp.Reattach()
	}
	if changed {
		d.wantsIPv6 = usesIPv6(t.plan)
	}
	perr := d.prepareIPv6()
	if t.due.first {
		t.derr = d.syncDataplane(ctx, t)
	}
	d.consider(t)
	cerr := d.claim(ctx, t)
	if !t.due.first {
		t.derr = d.syncDataplane(ctx, t)
	}
	oerr := d.shareConnections(s, t.links)
	t.v.ready = t.derr == nil && attached(t.v.interfaces, d.m.cfg.DataPlane.Interfaces)
	if t.view.ready = t.v.ready; !t.view.ready {
		d.route(s, t.plan, t.view)
	}
	err := errors.Join(t.lerr, perr, t.derr, cerr, oerr, d.noticeDeath(s))
	if err == nil {
		t.v.plan = t.plan.Gen
	} else {
		t.v.problems = append(t.v.problems, brief(err))
	}
	d.m.setLocal(t.v)
	return err
}

// look reads the links. An error ends the turn.
func (d *driver) look(t *turn) error {
	m := d.m
	if t.links, t.lerr = m.links(); t.lerr != nil && !errors.Is(t.lerr, host.ErrNoLink) {
		m.setLocal(localView{addrs: t.was.addrs, plan: t.was.plan, problems: []string{brief(t.lerr)}, holding: t.was.holding})
		return t.lerr
	}
	if !d.carrierChanged(t.links) {
		return nil
	}
	// Whoever was without a link, however briefly, may have been replaced
	// meanwhile, and must not claim a VIP before it has asked.
	m.contact.unsettle(time.Now())
	if err := m.renewLease(); err != nil { // that is, it ends
		m.logger.Warn("lease not ended", "err", err)
	}
	m.wakeReport()
	t.fresh = false
	return nil
}

// draw makes the plan, and says whether its services were compiled anew.
func (d *driver) draw(t *turn) (changed bool) {
	self, member := d.selfAt(t.s, t.links)
	verdictsOnly := d.sharesServices(t.s, self, member)
	p, same := d.compile(t.s, t.links)
	moved := !d.sameParts(t.s)
	t.plan = p
	t.due = dataplaneDue{news: !same || moved, first: d.syncedAt.IsZero() || !same && !(verdictsOnly && moved)}
	return !same
}

// consider works out what this machine may claim, before it claims it.
func (d *driver) consider(t *turn) {
	m := d.m
	t.v = localView{
		addrs: probeAddrs(t.links), problems: t.plan.Problems, linksUp: t.lerr == nil && allUp(t.links),
		interfaces: m.dp.Interfaces(), plan: t.was.plan,
	}
	if !t.fresh {
		keepHeld(&t.plan, append(heldOf(t.plan.Addresses), t.was.holding...))
	}
	left := m.leaseLeft()
	t.view = outlook{
		attached: attached(t.v.interfaces, m.cfg.DataPlane.Interfaces), linksUp: t.v.linksUp,
		quorum: -left < leaseGrace(m.cfg.Failover.Lease), fresh: t.fresh,
	}
	t.view.ready = t.derr == nil && t.view.attached
	m.tellLease(left, boundAddresses(t.plan))
	if -left > m.cfg.Failover.Lease {
		dropBound(&t.plan)
	}
}

// claim gives up what is not this node's any more, and takes up and makes known what is.
func (d *driver) claim(ctx context.Context, t *turn) error {
	m := d.m
	if t.fresh {
		if err := d.askPredecessors(t.s, t.links); err != nil {
			m.logger.Warn("new connections may be late: the node that was master before is not asked", "err", err)
		}
	}
	d.route(t.s, t.plan, t.view) // from here on routers may turn to this node
	// What is lost is given up here before it is on the host.
	serr := m.dp.SyncLeases(leasesOf(t.plan))
	herr := d.holdAddresses(ctx, t.s, t.plan, t.links)
	t.v.holding = heldOf(t.plan.Addresses)
	if herr == nil {
		t.v.holding = addrsOf(t.plan.Addresses)
	}
	return errors.Join(serr, herr)
}
