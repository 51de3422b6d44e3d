package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// takeoverSettles is how long after a takeover the adopted connections are
// told as an event: those that talk have shown up by then.
const takeoverSettles = 10 * time.Second

// takeovers remembers the last time this node became master, and how many
// connections of others went on here before that.
type takeovers struct {
	mu     sync.Mutex
	last   web.Takeover
	before uint64 // adopted when it began
	due    bool   // the event is still to come
}

// note takes the last change of mastership to self between two states, if
// there is one. adopted is called only then.
func (t *takeovers) note(prev, next *fsm.State, self fsm.NodeID, now time.Time, adopted func() uint64) {
	for _, in := range next.Instances() {
		was, _ := prev.Instance(in.Name)
		if in.Master != self || was.Master == self && was.Epoch == in.Epoch {
			continue
		}
		t.mu.Lock()
		t.last = web.Takeover{Instance: in.Name, From: was.Master, Epoch: in.Epoch, At: now}
		t.before, t.due = adopted(), true
		t.mu.Unlock()
	}
}

// view is the last takeover with what was adopted since, nil if there was none.
func (t *takeovers) view(adopted uint64) *web.Takeover {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.last.At.IsZero() {
		return nil
	}
	out := t.last
	if adopted > t.before {
		out.Adopted = adopted - t.before
	}
	return &out
}

// settled returns the last takeover once, when it is long enough ago.
func (t *takeovers) settled(now time.Time, adopted uint64) *web.Takeover {
	v := t.view(adopted)
	t.mu.Lock()
	defer t.mu.Unlock()
	if v == nil || !t.due || now.Sub(v.At) < takeoverSettles {
		return nil
	}
	t.due = false
	return v
}

// watchTakeovers tells what each takeover kept.
func (m *member) watchTakeovers(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			if v := m.takeovers.settled(now, m.adopted()); v != nil {
				m.events.add(takeoverEvent(*v, fsm.NodeID(m.cfg.Name)))
			}
		}
	}
}

func takeoverEvent(v web.Takeover, self fsm.NodeID) Event {
	text := fmt.Sprintf("%s adopted %d connections since it became master of %s", self, v.Adopted, v.Instance)
	if v.From != "" && v.From != self {
		text += " after " + string(v.From)
	}
	return Event{
		Kind: web.EventReplication, Node: self, Instance: v.Instance, Text: text,
		Fields: map[string]string{"adopted": fmt.Sprint(v.Adopted), "from": string(v.From), "epoch": fmt.Sprint(v.Epoch)},
	}
}

// adopted is how many connections of others have gone on here.
func (m *member) adopted() uint64 {
	if m.dp == nil {
		return 0
	}
	return m.dp.Stats().Adopted
}
