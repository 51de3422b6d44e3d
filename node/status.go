package node

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/web"
)

// State implements web.Backend.
func (d *daemon) State() *fsm.State {
	if m, err := d.current(); err == nil {
		return m.store.State()
	}
	return fsm.New()
}

// Propose implements web.Backend.
func (d *daemon) Propose(ctx context.Context, cmd fsm.Command) (uint64, error) {
	m, err := d.current()
	if err != nil {
		return 0, err
	}
	return m.Propose(ctx, cmd)
}

// ProposeIf implements web.Backend.
func (d *daemon) ProposeIf(ctx context.Context, cmd fsm.Command, want string) (uint64, error) {
	m, err := d.current()
	if err != nil {
		return 0, err
	}
	return m.ProposeIf(ctx, cmd, want)
}

// Events implements web.Backend.
func (d *daemon) Events(since time.Time) ([]Event, func(context.Context) ([]Event, error)) {
	return d.events.since(since)
}

// Health implements web.Backend.
func (d *daemon) Health() web.Health {
	h := web.Health{Live: true}
	m, err := d.current()
	if err != nil {
		h.Reasons = append(h.Reasons, err.Error())
		return h
	}
	if m.removed() {
		h.Reasons = append(h.Reasons, removedText)
	}
	if !m.raft.hasQuorum() {
		h.Reasons = append(h.Reasons, "no leader is heard from: the cluster has no quorum, or this node is cut off")
	}
	l := m.local.get()
	if !l.ready {
		h.Reasons = append(h.Reasons, "the data plane is not ready")
	}
	if !l.linksUp {
		h.Reasons = append(h.Reasons, "a data plane interface has no carrier")
	}
	if !m.inSync(m.store.State()) {
		h.Reasons = append(h.Reasons, "the flow table is not in sync with the peers")
	}
	h.Ready = len(h.Reasons) == 0
	return h
}

// Status implements web.Backend.
func (d *daemon) Status(context.Context) (web.Status, error) {
	m, err := d.current()
	if err != nil {
		return web.Status{}, err
	}
	return m.status(), nil
}

func (m *member) status() web.Status {
	s := m.store.State()
	_, leader := m.raft.LeaderWithID()
	st := web.Status{
		Cluster: web.ClusterStatus{
			ID: s.Cluster().ID, Leader: fsm.NodeID(leader), Term: m.raft.CurrentTerm(),
			Applied: s.Index(), Quorum: m.raft.hasQuorum(),
			Recovered: s.Cluster().Recoveries, Without: s.Cluster().Without,
		},
		Self: fsm.NodeID(m.cfg.Name), Version: m.version, VIPs: s.VIPs(), Failovers: slices.Clone(s.Failovers()),
	}
	st.Nodes = m.nodeStatus(s, string(leader))
	st.Instances = web.InstanceStatuses(s)
	l := m.local.get()
	if m.removed() {
		st.Warnings = append(st.Warnings, removedText)
	}
	if trouble := m.raft.disk.trouble(time.Now()); trouble != "" {
		st.Warnings = append(st.Warnings, trouble)
	}
	st.Warnings = append(st.Warnings, l.problems...)
	st.Warnings = append(st.Warnings, m.detector.warnings(s)...)
	st.BFD = m.detector.status(s)
	if m.routing != nil {
		st.BGP = m.routing.status(s)
		st.Warnings = append(st.Warnings, m.routing.warnings()...)
	}
	if m.dp != nil {
		m.leaseStatus(s, &st)
		m.dataplaneStatus(s, l, &st)
	} else {
		st.Services = serviceStatus(s, bpf.Stats{})
	}
	m.healthStatus(st.Services)
	if m.probing != nil {
		if doubt := m.probing.warning(); doubt != "" {
			st.Warnings = append(st.Warnings, doubt)
		}
	}
	return st
}

func (m *member) nodeStatus(s *fsm.State, leader string) []web.NodeStatus {
	suffrage := map[string]raft.ServerSuffrage{}
	if servers, err := m.raft.servers(); err == nil {
		for _, srv := range servers {
			suffrage[string(srv.ID)] = srv.Suffrage
		}
	}
	applied := map[string]uint64{m.cfg.Name: m.local.get().plan}
	for _, r := range m.reports.all(time.Now(), m.knownNode) {
		if r.Node != m.cfg.Name {
			applied[r.Node] = r.Plan
		}
	}
	var out []web.NodeStatus
	for _, n := range s.Nodes() {
		ns := web.NodeStatus{Node: n, Raft: web.RaftNonvoter, Applied: applied[string(n.Name)]}
		switch {
		case string(n.Name) == leader:
			ns.Raft = web.RaftLeader
		case suffrage[string(n.Name)] == raft.Voter && n.Voter:
			ns.Raft = web.RaftVoter
		}
		for _, in := range s.Instances() {
			switch {
			case in.Master == n.Name:
				ns.MasterOf = append(ns.MasterOf, in.Name)
			case in.Serves(n.Name):
				ns.Serves = append(ns.Serves, in.Name)
			}
		}
		out = append(out, ns)
	}
	return out
}

func (m *member) dataplaneStatus(s *fsm.State, l localView, st *web.Status) {
	stats := m.dp.Stats()
	st.Services = serviceStatus(s, stats)
	st.Drops, st.Counters = stats.Drops, stats.Counters
	st.Flows = web.FlowCounts{
		Established: stats.Established, HalfOpen: stats.HalfOpen, Owned: stats.Owned,
		Replica: stats.Replica, Adopted: stats.Adopted, Orphans: m.orphans.Load(), Max: stats.Max,
	}
	for _, r := range m.repl.Status() {
		st.Replication = append(st.Replication, replication(r))
	}
	st.LastTakeover = m.takeovers.view(stats.Adopted)
	links, err := m.host.Links(m.cfg.DataPlane.Interfaces)
	up := map[string]bool{}
	for _, k := range links {
		up[k.Name] = k.Up
	}
	for _, name := range m.cfg.DataPlane.Interfaces {
		how := l.interfaces[name]
		st.Interfaces = append(st.Interfaces, web.InterfaceStatus{Name: name, Up: err == nil && up[name], Hook: how.Hook, HookReason: how.Reason})
	}
	if nearlyFull(stats.Connections, stats.Max) {
		st.Warnings = append(st.Warnings, fmt.Sprintf("the flow table is nine tenths full (%d of %d): raise data_plane.max_flows", stats.Connections, stats.Max))
	}
}

func serviceStatus(s *fsm.State, stats bpf.Stats) []web.ServiceStatus {
	var out []web.ServiceStatus
	for _, svc := range s.Services() {
		figures := stats.Services[svc.ID]
		ss := web.ServiceStatus{Service: svc, Flows: figures.Flows, Traffic: traffic(figures.EndpointStats)}
		for _, e := range svc.Endpoints {
			es := web.EndpointStatus{Address: e.Address, Weight: e.Weight, Admin: e.Admin, Health: web.EndpointUnknown}
			es.Flows = figures.Endpoints[e.Address].Flows
			es.Traffic = traffic(figures.Endpoints[e.Address])
			ss.Endpoints = append(ss.Endpoints, es)
		}
		out = append(out, ss)
	}
	return out
}

func traffic(s bpf.EndpointStats) web.Traffic {
	return web.Traffic{
		Active: s.Active, New: s.New,
		ForwardPackets: s.Forward.Packets, ForwardBytes: s.Forward.Bytes,
		ReplyPackets: s.Reply.Packets, ReplyBytes: s.Reply.Bytes,
	}
}

// Flows implements web.Backend.
func (d *daemon) Flows(ctx context.Context, f web.FlowFilter) ([]web.Flow, error) {
	m, err := d.current()
	if err != nil || m.dp == nil {
		return nil, err
	}
	s := m.store.State()
	names := map[uint32]string{}
	for _, svc := range s.Services() {
		names[svc.ID] = svc.Name
	}
	if f.Service != "" {
		if _, ok := s.Service(f.Service); !ok {
			return nil, fmt.Errorf("service %q: %w", f.Service, fsm.ErrNotFound)
		}
	}
	var out []web.Flow
	for fl, err := range m.dp.Flows(ctx) {
		if err != nil {
			return nil, err
		}
		if !f.Match(names[fl.Service], fl.Client) {
			continue
		}
		out = append(out, webFlow(fl, names[fl.Service], m.cfg.Name))
		if f.Limit > 0 && len(out) >= f.Limit {
			break
		}
	}
	slices.SortFunc(out, func(a, b web.Flow) int { return a.Client.Compare(b.Client) })
	return out, nil
}

// protocolName is what the configuration calls an IP protocol number.
func protocolName(number uint8) fsm.Protocol {
	switch number {
	case 17:
		return fsm.UDP
	case 132:
		return fsm.SCTP
	}
	return fsm.TCP
}

func webFlow(f bpf.Flow, service, node string) web.Flow {
	snat := f.SNAT
	if snat == f.Client {
		snat = netip.AddrPort{}
	}
	state := f.State.String()
	if f.Ended {
		state = "ended"
	}
	return web.Flow{
		Protocol: protocolName(f.Protocol), Client: f.Client, VIP: f.VIP, SNAT: snat, Endpoint: f.Endpoint, State: state,
		Service: service, Node: fsm.NodeID(node), Owner: f.Owner, AgeS: f.Age.Seconds(), IdleS: f.Idle.Seconds(),
		Packets: f.Packets, Bytes: f.Bytes,
	}
}

// FlushFlows implements web.Backend. The flows' owner forgets them and tells
// the others through replication, so every node is asked.
func (d *daemon) FlushFlows(ctx context.Context, service string) (int, error) {
	m, err := d.current()
	if err != nil {
		return 0, err
	}
	svc, ok := m.store.State().Service(service)
	if !ok {
		return 0, fmt.Errorf("service %q: %w", service, fsm.ErrNotFound)
	}
	for _, n := range m.store.State().Nodes() {
		if n.Role == fsm.RoleLB && n.Alive && string(n.Name) != m.cfg.Name {
			var res flushReply
			if err := m.peers.callFor(ctx, string(n.Name), "/internal/flush", flushRequest{svc.ID}, &res); err != nil {
				return 0, fmt.Errorf("flush on %s: %w", n.Name, err)
			}
		}
	}
	return m.flushHere(ctx, svc.ID)
}
