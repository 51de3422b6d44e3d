package node

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/fsm"
	"pontoon/web"
)

// Event is one thing that happened, as operators read it.
type Event = web.Event

// maxEvents is how many are kept in memory.
const maxEvents = 2000

// eventLog keeps the newest events of this node for its life.
type eventLog struct {
	mu     sync.Mutex
	events []Event
	first  uint64 // sequence number of events[0]
	more   chan struct{}
	log    func(Event)
}

func newEventLog(log func(Event)) *eventLog {
	return &eventLog{more: make(chan struct{}), log: log}
}

// add records e; a zero time means now.
func (l *eventLog) add(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.mu.Lock()
	l.events = append(l.events, e)
	if over := len(l.events) - maxEvents; over > 0 {
		l.events = slices.Clone(l.events[over:])
		l.first += uint64(over)
	}
	close(l.more)
	l.more = make(chan struct{})
	l.mu.Unlock()
	l.log(e)
}

// since returns what happened at or after t, and a function that waits for more.
func (l *eventLog) since(t time.Time) ([]Event, func(context.Context) ([]Event, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var backlog []Event
	for _, e := range l.events {
		if !e.Time.Before(t) {
			backlog = append(backlog, e)
		}
	}
	next := l.first + uint64(len(l.events))
	return backlog, func(ctx context.Context) ([]Event, error) {
		events, seq, err := l.after(ctx, next)
		if err == nil {
			next = seq
		}
		return events, err
	}
}

// after waits until there are events from sequence number seq on.
func (l *eventLog) after(ctx context.Context, seq uint64) ([]Event, uint64, error) {
	for {
		l.mu.Lock()
		end, more := l.first+uint64(len(l.events)), l.more
		if end > seq {
			from := max(seq, l.first) - l.first
			out := slices.Clone(l.events[from:])
			l.mu.Unlock()
			return out, end, nil
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, seq, ctx.Err()
		case <-more:
		}
	}
}

// eventLoop turns each step of the state into the events it means.
func (m *member) eventLoop(ctx context.Context) error {
	for {
		for _, t := range m.store.takeTransitions() {
			m.takeovers.note(t.prev, t.next, fsm.NodeID(m.cfg.Name), time.Now(), m.adopted)
			if m.dp != nil {
				m.accessions.take(t, fsm.NodeID(m.cfg.Name))
			}
			for _, e := range stateEvents(t.prev, t.next) {
				m.events.add(e)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.store.wake:
		}
	}
}

// watchLeader tells who leads the Raft group, as seen from here.
func (m *member) watchLeader(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	changed := make(chan raft.Observation, 1)
	o := raft.NewObserver(changed, false, func(o *raft.Observation) bool { _, ok := o.Data.(raft.LeaderObservation); return ok })
	m.raft.RegisterObserver(o)
	defer m.raft.DeregisterObserver(o)
	last := ""
	for {
		if _, id := m.raft.LeaderWithID(); string(id) != last {
			last = string(id)
			m.dropReport() // it was for another one
			m.wakeReport()
			text := last + " leads the cluster"
			if last == "" {
				text = "the cluster has no leader, as seen from here"
			}
			m.events.add(Event{
				Kind: web.EventElection, Node: fsm.NodeID(last), Text: text,
				Fields: map[string]string{"term": fmt.Sprint(m.raft.CurrentTerm())},
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C: // an observation may be lost
		}
	}
}

// stateEvents says in words what changed between two states. A node that
// restored a snapshot while it lived, and so missed the steps, tells the outcome.
func stateEvents(prev, next *fsm.State) []Event {
	var out []Event
	add := func(e Event) {
		e.Index = next.Index()
		out = append(out, e)
	}
	nodeEvents(prev, next, add)
	instanceEvents(prev, next, add)
	for _, f := range fsm.NewFailovers(prev, next) {
		add(failoverEvent(f))
	}
	configEvents(prev, next, add)
	healthEvents(prev, next, add)
	return out
}

func nodeEvents(prev, next *fsm.State, add func(Event)) {
	for _, n := range next.Nodes() {
		p, known := prev.Node(n.Name)
		if !known || p.Joined != n.Joined {
			add(Event{Kind: web.EventJoin, Node: n.Name, Text: fmt.Sprintf("%s (%s, %s) joined", n.Name, n.Role, n.Address)})
			continue
		}
		switch {
		case n.Alive && !p.Alive:
			add(Event{Kind: web.EventVerdict, Node: n.Name, Text: fmt.Sprintf("%s is alive", n.Name)})
		case !n.Alive && p.Alive:
			add(Event{Kind: web.EventVerdict, Node: n.Name, Text: fmt.Sprintf("%s is dead", n.Name)})
			continue
		}
		if n.Voter && !p.Voter {
			add(Event{Kind: web.EventNode, Node: n.Name, Text: fmt.Sprintf("%s has caught up and votes", n.Name)})
		}
		var now []string
		for _, f := range []struct {
			is, was bool
			yes, no string
		}{
			{n.Ready, p.Ready, "its data plane is ready", "its data plane is not ready"},
			{n.LinksUp, p.LinksUp, "its links are up", "a link of it is down"},
			{n.InSync, p.InSync, "its flows are in sync", "its flows are not in sync"},
			{n.Draining, p.Draining, "it is draining", "it is no longer draining"},
		} {
			if f.is && !f.was {
				now = append(now, f.yes)
			} else if !f.is && f.was {
				now = append(now, f.no)
			}
		}
		if len(now) > 0 {
			add(Event{Kind: web.EventNode, Node: n.Name, Text: fmt.Sprintf("%s: %s", n.Name, strings.Join(now, ", "))})
		}
	}
	for _, p := range prev.Nodes() {
		if _, ok := next.Node(p.Name); !ok {
			add(Event{Kind: web.EventLeave, Node: p.Name, Text: fmt.Sprintf("%s is no longer a member", p.Name)})
		}
	}
}

func instanceEvents(prev, next *fsm.State, add func(Event)) {
	for _, in := range next.Instances() {
		p, known := prev.Instance(in.Name)
		if in.Kind == fsm.InstanceECMP {
			sharedEvent(p, in, add)
			continue
		}
		if known && p.Epoch == in.Epoch && p.Master == in.Master {
			continue
		}
		text := fmt.Sprintf("%s is master of %s", in.Master, in.Name)
		switch {
		case in.Master == "" && p.Master == "":
			continue
		case in.Master == "":
			text = fmt.Sprintf("%s has no master: no node is eligible", in.Name)
		case p.Master != "" && p.Master != in.Master:
			text += " after " + string(p.Master)
		}
		add(Event{
			Kind: web.EventFailover, Node: in.Master, Instance: in.Name, Text: text,
			Fields: map[string]string{"epoch": fmt.Sprint(in.Epoch), "from": string(p.Master)},
		})
	}
}

// sharedEvent tells who serves an instance without a master now.
func sharedEvent(was, is fsm.Instance, add func(Event)) {
	if was.Kind == is.Kind && slices.Equal(was.Succession, is.Succession) {
		return
	}
	names := func(nodes []fsm.NodeID) string {
		words := make([]string, len(nodes))
		for i, n := range nodes {
			words[i] = string(n)
		}
		return strings.Join(words, ", ")
	}
	text := fmt.Sprintf("%s is served by %s, without a master", is.Name, names(is.Succession))
	switch gone := slices.DeleteFunc(slices.Clone(was.Succession), is.Serves); {
	case len(is.Succession) == 0:
		text = is.Name + " is served by nobody: no node is eligible"
	case was.Kind == is.Kind && len(gone) > 0:
		text += ": no more by " + names(gone)
	}
	add(Event{
		Kind: web.EventFailover, Instance: is.Name, Text: text,
		Fields: map[string]string{"epoch": fmt.Sprint(is.Epoch), "nodes": names(is.Succession)},
	})
}

// configEvents tells what operators changed.
func configEvents(prev, next *fsm.State, add func(Event)) {
	for _, c := range fsm.ConfigChanges(prev, next) {
		add(Event{Kind: web.EventConfig, Text: fmt.Sprintf("%s %s was %s", c.Kind, c.Name, c.Verb)})
	}
}
