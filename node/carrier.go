package node

import (
	"time"

	"pontoon/node/host"
)

// carrierChanged says whether a link went up or down since the last pass.
func (d *driver) carrierChanged(links []host.Link) bool {
	for _, l := range links {
		if was, known := d.up[l.Name]; known && was != l.Up {
			return true
		}
	}
	return false
}

// unsettle drops the confirmation until a question asked from now on is
// answered: something happened that may keep this node, or have kept it, from hearing of a
// decision. The lease ends with it.
func (c *contact) unsettle(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.awake, c.confirmed, c.pending, c.level = now, false, false, time.Time{}
}
