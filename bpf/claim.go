package bpf

import "time"

// claim is what a node says about a connection that it forwards.
type claim struct {
	owner uint8         // slot
	epoch uint32        // of its mastership; 0: it is not the master
	idle  time.Duration // since the last packet it has forwarded
}

// doubt is by how much one of two last packets must be the younger one before that says anything.
// Stamps are as coarse as a jiffy, and records travel.
const doubt = 100 * time.Millisecond

// outranks says whether a owns the connection that b claims, too: by epoch, then by the last
// packet, then by slot. Both nodes, and whoever else hears of both claims, come to the same answer, so one of
// them gives it up and not both; who wrongly does adopts it with its next packet.
func (a claim) outranks(b claim) bool {
	switch {
	case a.epoch != b.epoch:
		return a.epoch > b.epoch
	case a.idle+doubt < b.idle:
		return true
	case b.idle+doubt < a.idle:
		return false
	}
	return a.owner < b.owner
}

// stands says whether the local connection l is to stay although a record says c.
func (in *importer) stands(l *connection, it *importItem) bool {
	c, reason := &it.c, it.reason
	mine, owner := l.forward.OwnerSlot, c.forward.OwnerSlot
	if owner == in.d.opts.Slot && mine == owner {
		return true
	}
	if it.bequeathed() {
		return in.holds(&l.key, &l.forward, c)
	}
	if reason == reasonHearsay {
		return l.idle(in.now) < c.idle(in.now)
	}
	switch apart := in.bornApart(c, l); { // a tuple that was used again
	case apart > 0 && FlowState(l.forward.State) == StateClosed:
		return false
	case apart < 0 && FlowState(c.forward.State) == StateClosed:
		return true
	}
	replica := l.forward.replica()
	if replica && (mine == owner || in.d.owners.orphan(&l.forward, in.now)) {
		return false
	}
	epoch := in.d.epochs.of(mine, l.forward.Service)
	if !replica || mine == in.d.opts.Slot {
		mine, epoch = in.d.opts.Slot, in.d.epochs.here(l.forward.Service)
	}
	return claim{mine, epoch, l.idle(in.now)}.outranks(claim{owner, it.epoch, c.idle(in.now)})
}
