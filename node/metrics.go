package node

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"pontoon/fsm"
	"pontoon/web"
)

// metrics is read when /metrics is: there are no counters to keep in step.
type metrics struct{ d *daemon }

var _ prometheus.Collector = (*metrics)(nil)

// Describe implements prometheus.Collector; what is collected depends on the
// state, so nothing is promised.
func (*metrics) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *metrics) Collect(ch chan<- prometheus.Metric) {
	out := func(kind prometheus.ValueType, name, help string, v float64, labels ...string) {
		var names, values []string
		for i := 0; i+1 < len(labels); i += 2 {
			names, values = append(names, labels[i]), append(values, labels[i+1])
		}
		ch <- prometheus.MustNewConstMetric(prometheus.NewDesc("pontoon_"+name, help, names, nil), kind, v, values...)
	}
	gauge := func(name, help string, v float64, labels ...string) {
		out(prometheus.GaugeValue, name, help, v, labels...)
	}
	counter := func(name, help string, v float64, labels ...string) {
		out(prometheus.CounterValue, name, help, v, labels...)
	}
	m, err := c.d.current()
	if err != nil {
		gauge("member", "1 while this node is in a cluster.", 0)
		return
	}
	s := m.status()
	gauge("member", "1 while this node is in a cluster.", 1)
	gauge("raft_leader", "1 while this node leads.", truth(s.Cluster.Leader == s.Self))
	gauge("raft_quorum", "1 while this node hears from a majority.", truth(s.Cluster.Quorum))
	gauge("raft_term", "Raft term.", float64(s.Cluster.Term))
	gauge("raft_applied_index", "Raft index applied on this node.", float64(s.Cluster.Applied))
	gauge("plan_index", "Raft index whose plan this node has carried out.", float64(m.local.get().plan))
	clusterMetrics(s, gauge)
	poolMetrics(web.PoolBriefs(m.store.State()), gauge)
	detectionMetrics(s.BFD, gauge)
	flowMetrics(s, gauge, counter)
	m.healthMetrics(m.store.State(), gauge, counter)
	if m.routing != nil {
		bgpMetrics(s.BGP, m.routing.announcedNow(), m.routing.importedNow(), gauge, counter)
	}
	if m.l2 != nil {
		st := m.l2.Stats()
		counter("arp_sent_total", "Frames sent that announce VIPs: gratuitous ARP and neighbour advertisements.", float64(st.Sent))
		counter("arp_foreign_claims_total", "ARP and neighbour discovery frames in which somebody else claimed a VIP of this node.", float64(st.ForeignClaims))
	}
}

type metricFunc func(name, help string, v float64, labels ...string)

func clusterMetrics(s web.Status, gauge metricFunc) {
	for _, n := range s.Nodes {
		node := string(n.Name)
		gauge("node_alive", "1 while the cluster holds the node for alive.", truth(n.Alive), "node", node)
		gauge("node_ready", "1 while the node's data plane is ready.", truth(n.Ready), "node", node)
		gauge("node_in_sync", "1 while the node holds every flow its peers hold.", truth(n.InSync), "node", node)
	}
	for _, in := range s.Instances {
		gauge("instance_epoch", "Raft index of the instance's last election.", float64(in.Epoch), "instance", in.Name)
		gauge("instance_master", "1 while this node is master of the instance.", truth(in.Master == s.Self), "instance", in.Name)
		if in.Kind == fsm.InstanceECMP {
			gauge("instance_serving", "1 while this node is one of those that serve the instance, which has no master.", truth(slices.Contains(in.Succession, s.Self)), "instance", in.Name)
		}
	}
	failoverMetrics(s.Failovers, gauge)
}

// poolMetrics tells what has become of the addresses of the pools.
func poolMetrics(pools []web.PoolBrief, gauge metricFunc) {
	for _, p := range pools {
		gauge("pool_size", "Addresses the pool may hand out.", float64(p.Size), "pool", p.Name)
		gauge("pool_used", "Addresses of the pool that are in use.", float64(p.Used), "pool", p.Name)
		gauge("pool_reserved", "Addresses of the pool that are kept back and not in use.", float64(p.Reserved), "pool", p.Name)
		gauge("pool_free", "Addresses of the pool that are left.", float64(p.Free), "pool", p.Name)
	}
}

// failoverMetrics tells of each instance's newest failover.
func failoverMetrics(failovers []fsm.Failover, gauge metricFunc) {
	told := map[string]bool{}
	for _, f := range failovers {
		if told[f.Instance] {
			continue
		}
		told[f.Instance] = true
		gauge("failover_timestamp_seconds", "When the instance moved last.", float64(f.At.UnixMilli())/1000, "instance", f.Instance, "cause", string(f.Cause))
		for _, step := range web.FailoverSteps(f.Parts) {
			gauge("failover_step_seconds", "The instance's last failover: when each step was done, since the last sign of life of the old master or since the wish.",
				step.MS/1000, "instance", f.Instance, "step", strings.ReplaceAll(step.Name, " ", "_"))
		}
	}
}

func flowMetrics(s web.Status, gauge, counter metricFunc) {
	gauge("flows_established", "Established flows in this node's table.", float64(s.Flows.Established))
	gauge("flows_half_open", "Flows whose handshake is not complete.", float64(s.Flows.HalfOpen))
	gauge("flows_owned", "Flows this node forwards.", float64(s.Flows.Owned))
	gauge("flows_replica", "Flows of which this node holds a copy.", float64(s.Flows.Replica))
	gauge("flows_max", "Flows the table has room for.", float64(s.Flows.Max))
	counter("flows_adopted_total", "Replicas taken over by a packet.", float64(s.Flows.Adopted))
	counter("flows_orphans_learned_total", "Connections of nodes that died which other nodes made known here.", float64(s.Flows.Orphans))
	for name, n := range s.Counters {
		counter("dataplane_events_total", "What the data plane has counted, besides packets it did not pass on.", float64(n), "event", name)
	}
	for reason, n := range s.Drops {
		counter("dropped_packets_total", "Packets not passed on, by reason.", float64(n), "reason", reason)
	}
	for _, r := range s.Replication {
		replicationMetrics(r, gauge, counter)
	}
	if t := s.LastTakeover; t != nil {
		gauge("takeover_adopted_flows", "Connections of other nodes that went on here since this node last became master.", float64(t.Adopted))
		gauge("takeover_timestamp_seconds", "When this node last became master.", float64(t.At.UnixMilli())/1000)
	}
	for _, svc := range s.Services {
		for _, e := range svc.Endpoints {
			of := []string{"service", svc.Name, "endpoint", e.Address.String()}
			gauge("endpoint_flows", "Established flows to the endpoint on this node.", float64(e.Flows), of...)
			trafficMetrics("endpoint", e.Traffic, gauge, counter, of)
		}
		gauge("service_flows", "Established flows of the service on this node.", float64(svc.Flows), "service", svc.Name)
		trafficMetrics("service", svc.Traffic, gauge, counter, []string{"service", svc.Name})
	}
}

// trafficMetrics tells what this node did for a service, or for an endpoint.
func trafficMetrics(what string, t web.Traffic, gauge, counter metricFunc, of []string) {
	gauge(what+"_active_connections", "Connections that are not closed, copies of other nodes' flows included.", float64(t.Active), of...)
	counter(what+"_connections_total", "Connections completed.", float64(t.New), of...)
	for _, d := range []struct {
		direction      string
		packets, bytes uint64
	}{{"forward", t.ForwardPackets, t.ForwardBytes}, {"reply", t.ReplyPackets, t.ReplyBytes}} {
		of := append(of[:len(of):len(of)], "direction", d.direction)
		counter(what+"_packets_total", "Packets forwarded, by direction.", float64(d.packets), of...)
		counter(what+"_bytes_total", "Bytes of IP packets forwarded, by direction.", float64(d.bytes), of...)
	}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
