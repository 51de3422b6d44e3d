package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/plan"
	"pontoon/web"
)

// Bounds of FailoverConfig.Lease, and its default.
const (
	minLease     = 300 * time.Millisecond
	maxLease     = 10 * time.Second
	defaultLease = time.Second
)

// stuckAfter is the least time without any progress of the log after which a node calls itself not ready.
const stuckAfter = 2 * time.Second

// leaseTerm is what was last written of the lease, and may be asked from anywhere.
type leaseTerm struct {
	mu    sync.Mutex
	until time.Duration // by bpf.Boottime; 0: none
	told  bool          // that it has run out
}

// leaseLoop renews the lease at a third of its length. Each answered report renews it, too; the loop
// is for what the state machine takes in between them.
func (m *member) leaseLoop(ctx context.Context) error {
	tick := time.NewTicker(m.cfg.Failover.Lease / 3)
	defer tick.Stop()
	for {
		if err := m.renewLease(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// renewLease lets the host answer for the VIPs until a lease's length after the moment that what this
// node knows is from: not after now, for it may have been asleep, or its knowledge may be under way for
// long. So it may be called at any time, and says the same until something was heard.
func (m *member) renewLease() error {
	if m.dp == nil || !m.contact.everFresh() || !m.asked.Load() {
		return nil // what an earlier life has left runs out by itself
	}
	m.fresh() // takes in an answer that was applied meanwhile
	m.lease.mu.Lock()
	defer m.lease.mu.Unlock()
	// Not before the lock: who waits for it would bring back a lease that was ended meanwhile.
	until := m.contact.vouchedFor(m.cfg.Failover.Lease)
	if until == 0 {
		now, err := bpf.Boottime()
		if err != nil {
			return err
		}
		until = min(m.lease.until, now) // it ends now, unless it has ended before
	}
	if until == m.lease.until {
		return nil
	}
	if err := m.dp.RenewLease(until); err != nil {
		return err
	}
	m.lease.until = until
	return nil
}

// openLease takes note of what an earlier life has left. Nobody is told that a lease has run out
// that there never was.
func (m *member) openLease() error {
	now, err := bpf.Boottime()
	if err != nil {
		return err
	}
	left, err := m.dp.LeaseUntil()
	if err != nil {
		return err
	}
	m.lease.until = max(now, left)
	return nil
}

// doubt ends the lease when the ways to most of the members have gone: most likely it is this node that is
// cut off, and the others are about to replace it. If not, the leader's next answer, milliseconds later,
// brings it back. It is the lease that makes sure; this makes the time shorter in which two nodes answer.
func (m *member) doubt(lost, before []fsm.NodeID) {
	members := len(m.store.State().Nodes())
	if m.dp == nil || !outnumbered(len(lost), members) || outnumbered(len(before), members) {
		return
	}
	m.contact.unsettle(time.Now())
	if err := m.renewLease(); err != nil {
		m.logger.Warn("lease not ended", "err", err)
	}
	m.wakeReport()
	m.wakeDriver()
}

// outnumbered says whether a node that has lost so many of all members sees no majority, itself included.
func outnumbered(lost, members int) bool { return members-lost < majority(members) }

// logStuck says that this node hears the leader and does not learn what is decided. Its lease is over then,
// and as long as it calls itself ready nobody takes its place.
func (m *member) logStuck() bool {
	return m.contact.stuck(time.Now(), max(2*m.cfg.Failover.Lease, stuckAfter))
}

// leaseLeft is for how long the host may still answer; negative: since when not any more.
func (m *member) leaseLeft() time.Duration {
	m.lease.mu.Lock()
	until := m.lease.until
	m.lease.mu.Unlock()
	now, err := bpf.Boottime()
	if err != nil {
		return 0
	}
	return until - now
}

// vouchedFor is the time, as the boot clock has it, up to which a lease of the given length holds: it
// begins when the question was asked whose answer this node has applied last. 0: there is none.
func (c *contact) vouchedFor(length time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.level.IsZero() || c.bootAt.IsZero() {
		return 0
	}
	return max(0, c.boot+c.level.Add(length).Sub(c.bootAt)-(c.slept-c.levelSlept))
}

// leasesOf says for every VIP of the cluster whether this host may answer for it.
func leasesOf(p plan.Plan) map[netip.Addr]bpf.Lease {
	out := make(map[netip.Addr]bpf.Lease, len(p.Managed))
	for _, a := range p.Managed {
		out[a] = bpf.Lease{Bound: true}
	}
	for _, a := range p.Addresses {
		// What routes lead here several nodes hold at once: none answers for it on a link.
		out[a.Addr] = bpf.Lease{Epoch: a.Epoch, Held: a.Link != plan.Loopback, Bound: a.Bound}
	}
	return out
}

// dropBound takes from the plan what is bound to a lease that is over. It is for a node that is cut off
// for so long that it should not even have the addresses: the host's own traffic uses them, and its
// neighbours learn from that.
func dropBound(p *plan.Plan) {
	bound := map[netip.Addr]bool{}
	p.Addresses = slices.DeleteFunc(p.Addresses, func(a plan.Address) bool {
		if a.Bound {
			bound[a.Addr] = true
		}
		return a.Bound
	})
	p.Adverts = slices.DeleteFunc(p.Adverts, func(a plan.Advert) bool { return bound[a.Addr] })
}

// tellLease says once that the lease is over, and that it is back.
func (m *member) tellLease(left time.Duration, held int) {
	m.lease.mu.Lock()
	over := left <= 0 && held > 0
	tell := over != m.lease.told && (over || left > 0)
	if tell {
		m.lease.told = over
	}
	m.lease.mu.Unlock()
	if !tell {
		return
	}
	text := m.cfg.Name + " hears from a quorum and claims its VIPs again"
	if over {
		text = fmt.Sprintf("%s hears from no quorum: it claims none of its VIPs (%d) whose on_quorum_loss is release", m.cfg.Name, held)
	}
	m.events.add(Event{Kind: web.EventLease, Node: fsm.NodeID(m.cfg.Name), Text: text})
}

// boundVIPs are the VIPs that are this node's by s, to claim or to announce by BGP,
// and bound to its lease.
func boundVIPs(s *fsm.State, self fsm.NodeID) (bound, free int) {
	announcing := plan.Announcing(s, self)
	for _, v := range s.VIPs() {
		in, ok := s.Instance(v.Instance)
		switch {
		case !ok || in.Master != self && !(v.Announce == fsm.AnnounceBGP && announcing[v.Instance]):
		case v.OnQuorumLoss == fsm.QuorumHold:
			free++
		default:
			bound++
		}
	}
	return bound, free
}

// leaseStatus is the lease as the API shows it, with a warning when it is over.
func (m *member) leaseStatus(s *fsm.State, st *web.Status) {
	left := m.leaseLeft()
	bound, free := boundVIPs(s, fsm.NodeID(m.cfg.Name))
	st.Lease = &web.LeaseStatus{
		LengthMS: millis(m.cfg.Failover.Lease), LeftMS: max(0, millis(left)), Bound: bound, Free: free,
	}
	if left > 0 || bound == 0 || m.removed() {
		return
	}
	why := "nothing was heard from a quorum yet"
	switch {
	case m.logStuck():
		why = "what the cluster decides is not written here: look at the disk of " + m.cfg.DataDir
	case m.contact.everFresh():
		why = fmt.Sprintf("a quorum was last heard %s ago", (m.cfg.Failover.Lease - left).Round(100*time.Millisecond))
	}
	st.Warnings = append(st.Warnings, fmt.Sprintf("the lease has run out (%s): this node answers for none of its VIPs (%d) but those with on_quorum_loss hold (%d); what still reaches it is forwarded",
		why, bound, free))
}

// boundAddresses is how many VIPs of the plan are bound to the lease.
func boundAddresses(p plan.Plan) int {
	n := 0
	for _, a := range p.Addresses {
		if a.Bound {
			n++
		}
	}
	return n
}
