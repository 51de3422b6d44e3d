package node

import (
	"sync"
	"time"
)

// contact decides whether what this node knows is what the cluster has
// decided. A Raft heartbeat alone does not show it: it carries no commit index,
// so a node that was cut off, stopped or restarted hears from the leader before
// it hears what it missed. Contact is therefore confirmed by an answer that
// names the leader's commit index, and lost by silence or by a gap in this
// process's own time (it was stopped or starved).
type contact struct {
	mu        sync.Mutex
	confirmed bool
	target    uint64    // commit index to have applied before confirmed
	pending   bool      // target is set
	heard     time.Time // last sign of a leader, or proof of leading
	checked   time.Time // last call of fresh; a gap means this process slept
	ever      bool
}

// contactLost is the silence after which a node no longer trusts what it knows.
const contactLost = time.Second

// answer records that the leader said, at now, what it has committed.
func (c *contact) answer(now time.Time, commit uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = now
	if !c.confirmed {
		c.target, c.pending = commit, true
	}
}

// fresh says at now whether this node's applied state may be acted upon to
// take something up. lastContact is Raft's last word from a leader (the zero
// time on the leader itself, whose proof is answer).
func (c *contact) fresh(now, lastContact time.Time, applied uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	slept := !c.checked.IsZero() && now.Sub(c.checked) > contactLost
	c.checked = now
	if lastContact.After(c.heard) && !slept {
		c.heard = lastContact
	}
	if slept || now.Sub(c.heard) > contactLost {
		c.confirmed, c.pending = false, false
		return false
	}
	if !c.confirmed && c.pending && applied >= c.target {
		c.confirmed, c.pending, c.ever = true, false, true
	}
	return c.confirmed
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
