package node

import (
	"context"
	"fmt"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// drainLookEvery is how often a node looks how many flows the endpoints that are drained have left.
const drainLookEvery = time.Second

// draining is an endpoint that takes no new flows by the operator's wish.
type draining struct {
	id       uint32
	service  string
	endpoint fsm.Endpoint
	left     uint64 // connections it has on this node, copies of other nodes' included
	unseen   bool   // it has some on another node, of which there are no copies here: what is left is not all
}

// drains knows how far the draining of each endpoint has come. The zero value knows of none.
type drains struct {
	rows   map[uint32]drainRow
	looked bool
}

type drainRow struct {
	last uint64 // flows at the last look
	done bool   // told, or it was over before this process looked
}

// step takes in the endpoints that are drained at now, and returns what there is to tell. What was over before the first
// look is old news.
func (d *drains) step(all []draining, now time.Time) []Event {
	rows := make(map[uint32]drainRow, len(all))
	var out []Event
	for _, e := range all {
		row, known := d.rows[e.id]
		late := !e.endpoint.DrainUntil.IsZero() && !now.Before(e.endpoint.DrainUntil)
		switch {
		case e.unseen:
			row.done = e.left == 0 || late // whoever sees all tells; this node has nothing to add when it becomes that
		case !known && !d.looked && (e.left == 0 || late):
			row.done = true
		case row.done:
		case e.left == 0, late:
			row.done = true
			out = append(out, drainedEvent(e, max(e.left, row.last), late && e.left > 0))
		}
		row.last = e.left
		rows[e.id] = row
	}
	d.rows, d.looked = rows, true
	return out
}

func drainedEvent(e draining, had uint64, ended bool) Event {
	text := fmt.Sprintf("endpoint %s of service %s is drained: no flow is left", e.endpoint.Address, e.service)
	if ended {
		text = fmt.Sprintf("endpoint %s of service %s is drained: its time is over, %s ended", e.endpoint.Address, e.service, counted(int(had), "flow"))
	}
	return Event{
		Kind: web.EventHealth, Text: text,
		Fields: map[string]string{"service": e.service, "endpoint": e.endpoint.Address.String(), "drained": "true"},
	}
}

// drainingAt lists the endpoints that are drained, by service and address, without their flows, as self knows of them.
func drainingAt(s *fsm.State, self fsm.NodeID) []draining {
	var out []draining
	for _, svc := range s.Services() {
		unseen := !allCopied(svc) && forwardedElsewhere(s, svc, self)
		for _, e := range svc.Endpoints {
			if e.Admin == fsm.AdminDrain {
				out = append(out, draining{id: e.ID, service: svc.Name, endpoint: e, unseen: unseen})
			}
		}
	}
	return out
}

// allCopied says whether the other nodes hold copies of all connections of a service.
func allCopied(svc fsm.Service) bool {
	return svc.Replicate != fsm.ReplicateNone && svc.ReplicateMinAge == 0
}

// forwardedElsewhere says whether another node forwards for the service, as its master.
func forwardedElsewhere(s *fsm.State, svc fsm.Service, self fsm.NodeID) bool {
	in, ok := s.Instance(instanceFor(s, svc))
	return ok && in.Master != "" && in.Master != self
}

// watchDrains raises an event when an endpoint that is drained has no flows left, or its time is over. All nodes do, from
// their copies; where those are not of all flows, the master alone.
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
