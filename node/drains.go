package node

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

const (
	// drainLookEvery is how often a node looks how many flows the endpoints that are drained have left.
	drainLookEvery = time.Second
	// drainTellEvery is the least time between two events about the same drain that is not over. Besides, half
	// of the flows that were told of have to be gone: so there are few, however long it takes.
	drainTellEvery = 10 * time.Second
)

// draining is an endpoint that takes no new flows by the operator's wish.
type draining struct {
	id       uint32
	service  string
	endpoint fsm.Endpoint
	keeps    bool   // what is left at the deadline goes on
	left     uint64 // connections it has on this node, copies of other nodes' included
	unseen   bool   // it has some on another node, of which there are no copies here: what is left is not all
	on       string // the node whose flows alone are counted, where each has its own; "" if what is left is all
}

// drains knows how far the draining of each endpoint has come. The zero value knows of none.
type drains struct {
	rows   map[uint32]drainRow
	looked bool
}

type drainRow struct {
	until time.Time // the deadline: with another one it is another drain
	last  uint64    // flows at the last look
	told  uint64    // flows when something was told last; 0: nothing was yet
	at    time.Time // when that was
	done  bool      // told, or it was over before this process looked
}

// step takes in the endpoints that are drained at now, and returns what there is to tell: that a drain has begun, that
// half of its flows are gone, that it is over. What was so before the first look is old news.
func (d *drains) step(all []draining, now time.Time) []Event {
	rows := make(map[uint32]drainRow, len(all))
	var out []Event
	for _, e := range all {
		row, known := d.rows[e.id]
		if !row.until.Equal(e.endpoint.DrainUntil) {
			row, known = drainRow{until: e.endpoint.DrainUntil}, false
		}
		late := !row.until.IsZero() && !now.Before(row.until)
		over := e.left == 0 || late
		switch {
		case e.unseen:
			row.done = over // whoever sees all tells; this node has nothing to add when it becomes that
		case !known && !d.looked:
			row.done, row.told, row.at = over, e.left, now
		case row.done:
		case over:
			row.done = true
			out = append(out, drainedEvent(e, max(e.left, row.last), late))
		case row.told == 0, 2*e.left <= row.told && now.Sub(row.at) >= drainTellEvery:
			row.told, row.at = e.left, now
			out = append(out, drainEvent(e, false, "drains", counted(int(e.left), "flow")+" left"))
		}
		row.last = e.left
		rows[e.id] = row
	}
	d.rows, d.looked = rows, true
	return out
}

// drainedEvent tells of a drain that is over. had is how many flows it had at the last look, if not now: those were ended since,
// unless they are kept.
func drainedEvent(e draining, had uint64, late bool) Event {
	if e.keeps {
		had = e.left
	}
	switch flows := counted(int(had), "flow"); {
	case !late || had == 0:
		return drainEvent(e, true, "is drained", "no flow is left")
	case !e.keeps:
		return drainEvent(e, true, "is drained", "its time is over, "+flows+" ended")
	case had == 1:
		return drainEvent(e, true, "is drained", "its time is over, "+flows+" goes on")
	default:
		return drainEvent(e, true, "is drained", "its time is over, "+flows+" go on")
	}
}

func drainEvent(e draining, over bool, what, text string) Event {
	if e.on != "" {
		what += " on " + e.on
	}
	fields := map[string]string{
		"service": e.service, "endpoint": e.endpoint.Address.String(), "drained": strconv.FormatBool(over), "left": strconv.FormatUint(e.left, 10),
	}
	return Event{Kind: web.EventHealth, Text: fmt.Sprintf("endpoint %s of service %s %s: %s", e.endpoint.Address, e.service, what, text), Fields: fields}
}

// drainingAt lists the endpoints that are drained, by service and address, without their flows, as self knows of them.
func drainingAt(s *fsm.State, self fsm.NodeID) []draining {
	var out []draining
	for _, svc := range s.Services() {
		unseen, on := false, ""
		if in, ok := s.Instance(instanceFor(s, svc)); ok && !allCopied(svc) {
			if unseen = in.Master != "" && in.Master != self; in.Kind == fsm.InstanceECMP {
				on = string(self) // all forward for it
			}
		}
		for _, e := range svc.Endpoints {
			if e.Admin == fsm.AdminDrain {
				out = append(out, draining{id: e.ID, service: svc.Name, endpoint: e, keeps: svc.OnRemove == fsm.RemoveKeep, unseen: unseen, on: on})
			}
		}
	}
	return out
}

// allCopied says whether the other nodes hold copies of all connections of a service.
func allCopied(svc fsm.Service) bool {
	return svc.Replicate != fsm.ReplicateNone && svc.ReplicateMinAge == 0
}

// watchDrains raises events as endpoints that are drained lose their flows, and when none is left or their time is over. All nodes do, from
// their copies; where those are not of all flows, the master alone, or without a master each of its own.
func (m *member) watchDrains(ctx context.Context) error {
	tick := time.NewTicker(drainLookEvery)
	defer tick.Stop()
	var d drains
	for {
		if s := m.store.State(); m.contact.everFresh() {
			all := drainingAt(s, fsm.NodeID(m.cfg.Name))
			if len(all) > 0 {
				m.countFlows(s, all)
			}
			for _, e := range d.step(all, time.Now()) {
				m.events.add(e)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// countFlows fills in what each of them has left.
func (m *member) countFlows(s *fsm.State, all []draining) {
	stats := m.dp.Stats()
	for i := range all {
		if svc, ok := s.Service(all[i].service); ok {
			all[i].left = stats.Services[svc.ID].Endpoints[all[i].endpoint.Address].Active
		}
	}
}
