package node

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// contact decides whether what this node knows is what the cluster has
// decided. A Raft heartbeat alone does not show it: it carries no commit index,
// so a node that was cut off, stopped or restarted hears from the leader before
// it hears what it missed. Contact is therefore confirmed by an answer that
// names the leader's commit index, and lost by silence, by falling behind what
// the leader says, or by a gap in this process's own time (it was stopped,
// starved, or asleep with its machine).
type contact struct {
	mu        sync.Mutex
	confirmed bool
	pending   bool      // target waits to be applied
	target    uint64    // commit index of an answer
	targetAt  time.Time // when the question was asked that target answers
	level     time.Time // targetAt of the last target that was applied
	heard     time.Time // last sign of a leader, or proof of leading
	checked   time.Time // last call of fresh; a gap means this process slept
	awake     time.Time // when the last gap was found: questions before it do not count
	ever      bool

	boot        time.Duration // the machine's own clock at bootAt (see clock)
	bootAt      time.Time
	slept       time.Duration // by how much that clock has run ahead of Go's so far
	targetSlept time.Duration // slept when the question of target was answered
	levelSlept  time.Duration // and of level
}

const (
	// contactLost is the silence after which a node no longer trusts what it knows.
	contactLost = time.Second
	// contactBehind is how long a node that hears heartbeats may go without
	// having applied what the leader says is committed: its log may be stuck.
	contactBehind = 5 * time.Second
	// contactEvery is the pace at which gaps are looked for.
	contactEvery = 100 * time.Millisecond
)

// answer records that the leader, asked at the given time, said what it has
// committed. How long the answer took is unknown to the leader and may be long
// here, so it counts from the question.
func (c *contact) answer(asked time.Time, commit uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if asked.Before(c.awake) {
		return // this process slept over the answer
	}
	if asked.After(c.heard) {
		c.heard = asked
	}
	if !c.pending {
		c.target, c.targetAt, c.pending = commit, asked, true
		c.targetSlept = c.slept
	}
}

// fresh says at now whether this node's applied state may be acted upon to
// take something up. lastContact is Raft's last word from a leader (the zero
// time on the leader itself, whose proof is answer); applied is what the state
// machine has taken in.
func (c *contact) fresh(now, lastContact time.Time, applied uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.checked.IsZero() && now.Sub(c.checked) > contactLost {
		c.awake, c.confirmed, c.pending = now, false, false
	}
	if now.After(c.checked) {
		c.checked = now
	}
	if lastContact.After(c.heard) && !lastContact.Before(c.awake) {
		c.heard = lastContact
	}
	if now.Sub(c.heard) > contactLost {
		c.confirmed, c.pending = false, false
		return false
	}
	if c.pending && applied >= c.target {
		c.confirmed, c.pending, c.ever, c.level = true, false, true, c.targetAt
		c.levelSlept = c.targetSlept
	}
	if now.Sub(c.level) > contactBehind {
		c.confirmed = false // but what is pending stays: it may yet be applied
	}
	return c.confirmed
}

// stuck says at now whether the leader is heard, and what it said it had committed is not applied here for
// that long: the log does not get on, for example because the disk does not answer.
func (c *contact) stuck(now time.Time, after time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending && now.Sub(c.heard) <= contactLost && now.Sub(c.targetAt) > after
}

// clock compares Go's clock, which stands still while the machine is suspended,
// with one that does not. It comes before each call of fresh.
func (c *contact) clock(now time.Time, sinceBoot time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.bootAt.IsZero() {
		ahead := (sinceBoot - c.boot) - now.Sub(c.bootAt)
		c.slept += max(ahead, 0)
		if ahead > contactLost {
			c.awake, c.confirmed, c.pending = now, false, false
		}
	}
	c.boot, c.bootAt = sinceBoot, now
}

// everFresh says whether this process has known the cluster's state at all.
func (c *contact) everFresh() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ever
}

// stale says at now whether nothing was heard from the cluster for a while, or
// nothing was confirmed yet. It does not touch the clock fresh keeps.
func (c *contact) stale(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.confirmed || now.Sub(c.heard) > contactLost
}

// watchContact looks for gaps in this process's time whatever else runs, and
// wakes who waits for contact.
func (m *member) watchContact(ctx context.Context) error {
	tick := time.NewTicker(contactEvery)
	defer tick.Stop()
	was := false
	for {
		if is := m.fresh(); is != was {
			m.logger.Debug("contact with the cluster", "fresh", is)
			was = is
			if is {
				m.dismissGuests()
			}
			m.wakeDriver()
			m.wakeReport()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// fresh says whether what this node knows may be acted upon now to take
// something up (see contact, and watchSuperseded).
func (m *member) fresh() bool {
	now := time.Now()
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err == nil {
		m.contact.clock(now, time.Duration(boot.Nano()))
	}
	fresh := m.contact.fresh(now, m.lastContact(), m.consumed())
	if fresh {
		m.store.live.Store(true)
	}
	return fresh && m.asked.Load()
}

// lastContact is Raft's last word from a leader; a leader has its proof from
// reportOnce instead.
func (m *member) lastContact() time.Time {
	if m.raft.isLeader() {
		return time.Time{}
	}
	return m.raft.LastContact()
}

// consumed is an index up to which the state machine has taken in every
// command.
func (m *member) consumed() uint64 {
	queued := m.raft.AppliedIndex() // before the state is looked at
	return m.raft.consumed(queued, m.store.State().Index())
}
