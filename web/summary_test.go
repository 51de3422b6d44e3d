package web

import (
	"strings"
	"testing"

	"pontoon/fsm"
)

func TestSummaryPutsTheClusterIntoWords(t *testing.T) {
	healthy := func() Status {
		n := func(name string, raft RaftRole) NodeStatus {
			return NodeStatus{Raft: raft, Node: fsm.Node{
				Name: fsm.NodeID(name), Role: fsm.RoleLB, Voter: true, Alive: true, Ready: true, LinksUp: true, InSync: true,
			}}
		}
		s := Status{
			Cluster:   ClusterStatus{Leader: "lb1", Quorum: true},
			Nodes:     []NodeStatus{n("lb1", RaftLeader), n("lb2", RaftVoter), n("lb3", RaftVoter)},
			Instances: []InstanceStatus{{Name: "default", Assignment: fsm.Assignment{Master: "lb1"}}},
			VIPs:      []fsm.VIP{{}},
		}
		s.Instances[0].VIPs = append(s.Instances[0].VIPs, ap("192.0.2.1:1").Addr())
		return s
	}
	for _, c := range []struct {
		name   string
		change func(*Status)
		level  Level
		text   string
		note   string
	}{
		{"all well", func(*Status) {}, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"one down", func(s *Status) { s.Nodes[2].Alive = false }, LevelWarn, "2 of 3 nodes healthy, lb1 leads", "lb3 is down"},
		{"a node not in sync", func(s *Status) { s.Nodes[1].InSync = false }, LevelWarn, "2 of 3 nodes healthy, lb1 leads", "does not hold every flow"},
		{"a link down", func(s *Status) { s.Nodes[1].LinksUp = false }, LevelWarn, "2 of 3 nodes healthy, lb1 leads", "a link is down"},
		{"a drained node is healthy", func(s *Status) { s.Nodes[1].Draining = true }, LevelOK, "3 of 3 nodes healthy, lb1 leads", "lb2 is drained"},
		{"a witness needs no data plane", func(s *Status) {
			s.Nodes[2].Role, s.Nodes[2].Ready, s.Nodes[2].InSync, s.Nodes[2].LinksUp = fsm.RoleWitness, false, false, false
		}, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"no leader", func(s *Status) { s.Cluster.Leader = "" }, LevelBad, "3 of 3 nodes healthy, no leader", "electing"},
		{"no quorum", func(s *Status) { s.Cluster.Quorum = false }, LevelBad, "No quorum; when last heard, 3 of 3 nodes healthy", "acquires nothing"},
		{"none is wanted", func(s *Status) {
			s.Instances[0].Master, s.Instances[0].Kind, s.Instances[0].Succession = "", fsm.InstanceECMP, []fsm.NodeID{"lb1", "lb2"}
		}, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"one of all is left", func(s *Status) {
			s.Instances[0].Master, s.Instances[0].Kind, s.Instances[0].Succession = "", fsm.InstanceECMP, []fsm.NodeID{"lb2"}
		}, LevelWarn, "3 of 3 nodes healthy, lb1 leads", "served by lb2 alone"},
		{"nobody of all is left", func(s *Status) {
			s.Instances[0].Master, s.Instances[0].Kind, s.Instances[0].Succession = "", fsm.InstanceECMP, nil
		}, LevelBad, "3 of 3 nodes healthy, lb1 leads", "served by no node"},
		{"no master", func(s *Status) { s.Instances[0].Master = "" }, LevelBad, "3 of 3 nodes healthy, lb1 leads", "default has no master"},
		{"no master and nothing to serve", func(s *Status) { s.Instances[0].Master, s.Instances[0].VIPs = "", nil }, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"one node alone", func(s *Status) { s.Nodes = s.Nodes[:1] }, LevelWarn, "1 of 1 node healthy, lb1 leads", "1 voter"},
		{"a warning of this node", func(s *Status) { s.Warnings = []string{"the flow table is full"} }, LevelWarn, "3 of 3 nodes healthy, lb1 leads", ""},
		{"rebuilt from one node", func(s *Status) { s.Cluster.Without = []fsm.NodeID{"lb7", "lb8"} }, LevelWarn, "3 of 3 nodes healthy, lb1 leads", "rebuilt without lb7 and lb8"},
		{"a BGP session down", func(s *Status) {
			s.BGP = []BGPPeer{{Peer: "192.0.2.254", State: BGPActive, Error: "connection refused"}, {Peer: "192.0.2.253", State: BGPEstablished}}
		}, LevelWarn, "3 of 3 nodes healthy, lb1 leads", "BGP with 192.0.2.254 is not established (active): connection refused."},
		{"BGP is well", func(s *Status) {
			s.VIPs[0].Announce, s.BGP = fsm.AnnounceBGP, []BGPPeer{{Peer: "192.0.2.253", State: BGPEstablished}}
		}, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"nobody to tell", func(s *Status) {
			s.Self, s.VIPs[0].Announce, s.VIPs[0].Address = "lb1", fsm.AnnounceBGP, ap("192.0.2.1:1").Addr()
		}, LevelWarn, "3 of 3 nodes healthy, lb1 leads", "VIP 192.0.2.1 is announced by BGP, and lb1 has no peer to tell"},
		{"a witness tells nobody", func(s *Status) {
			s.Self, s.VIPs[0].Announce, s.Nodes[0].Role = "lb1", fsm.AnnounceBGP, fsm.RoleWitness
		}, LevelOK, "3 of 3 nodes healthy, lb1 leads", ""},
		{"two voters", func(s *Status) { s.Nodes[2].Raft = RaftNonvoter }, LevelWarn, "3 of 3 nodes healthy, lb1 leads", "2 voters"},
	} {
		t.Run(c.name, func(t *testing.T) {
			st := healthy()
			c.change(&st)
			got := Summarise(st)
			notes := strings.Join(got.Notes, " ")
			if got.Level != c.level || got.Text != c.text || !strings.Contains(notes, c.note) || (c.note == "") != (notes == "") {
				t.Errorf("got %+v, want %s %q with a note about %q", got, c.level, c.text, c.note)
			}
		})
	}
}

// Nodes that choose for themselves are told of, where any of them may be asked.
func TestChoicesOfEachNodeForItselfAreTold(t *testing.T) {
	s := Status{Cluster: ClusterStatus{Quorum: true, Leader: "lb1"}, Instances: []InstanceStatus{
		{Name: "wide", InstanceSettings: InstanceSettings{Kind: fsm.InstanceECMP}}, {Name: "default", InstanceSettings: InstanceSettings{Kind: fsm.InstanceBackup}},
	}}
	for name, c := range map[string]struct {
		svc  ServiceStatus
		want bool
	}{
		"rr":                {ServiceStatus{Service: fsm.Service{Name: "a", Algorithm: fsm.RoundRobin}, Instance: "wide"}, true},
		"lc":                {ServiceStatus{Service: fsm.Service{Name: "a", Algorithm: fsm.LeastConnections}, Instance: "wide"}, true},
		"maglev":            {ServiceStatus{Service: fsm.Service{Name: "a", Algorithm: fsm.Maglev}, Instance: "wide"}, false},
		"rr, with a master": {ServiceStatus{Service: fsm.Service{Name: "a", Algorithm: fsm.RoundRobin}, Instance: "default"}, false},
	} {
		s.Services = []ServiceStatus{c.svc}
		sum := Summarise(s)
		if got := strings.Contains(strings.Join(sum.Notes, "\n"), "for itself"); got != c.want || sum.Level == LevelBad {
			t.Errorf("%s: %+v", name, sum)
		}
	}
}
