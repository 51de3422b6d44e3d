package node

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// lost is the claim of a node that has lost the leader.
func lost(n string, last uint64, owns int) claim {
	return claim{Node: n, Lost: true, Last: last, Owns: owns}
}

func TestTheBestPlacedOfAMajorityStandsFirst(t *testing.T) {
	for _, tc := range []struct {
		name    string
		self    claim
		others  []claim
		members int
		rank    int
		enough  bool
	}{
		{"both followers of three", lost("lb2", 9, 0), []claim{lost("lb3", 9, 0)}, 3, 0, true},
		{"the other one is first by name", lost("lb3", 9, 0), []claim{lost("lb2", 9, 0)}, 3, 1, true},
		{"the longer log is first", lost("lb2", 8, 0), []claim{lost("lb3", 9, 0)}, 3, 1, true},
		{"who is master of nothing is first", lost("lb2", 9, 1), []claim{lost("lb3", 9, 0)}, 3, 1, true},
		{"the other one still reaches it", lost("lb2", 9, 0), []claim{{Node: "lb3", Last: 10}}, 3, 0, false},
		{"the other one is silent", lost("lb2", 9, 0), nil, 3, 0, false},
		{"this one reaches it itself", claim{Node: "lb2"}, []claim{lost("lb3", 9, 0), lost("lb4", 9, 0), lost("lb5", 9, 0)}, 5, 3, false},
		{"three of five", lost("lb2", 9, 0), []claim{lost("lb3", 9, 0), lost("lb4", 9, 0), {Node: "lb5"}}, 5, 0, true},
		{"two of five", lost("lb2", 9, 0), []claim{lost("lb3", 9, 0), {Node: "lb4"}}, 5, 0, false},
	} {
		if rank, enough := standing(tc.self, tc.others, tc.members); enough != tc.enough || enough && rank != tc.rank {
			t.Errorf("%s: rank %d, enough %v", tc.name, rank, enough)
		}
	}
}

func TestRanksOfAllFollowersDiffer(t *testing.T) {
	all := []claim{lost("lb2", 7, 0), lost("lb3", 9, 1), lost("lb4", 9, 0), lost("lb5", 7, 0)}
	seen := map[int]string{}
	for i, self := range all {
		others := append(append([]claim{}, all[:i]...), all[i+1:]...)
		rank, _ := standing(self, others, 5)
		if other, taken := seen[rank]; taken {
			t.Errorf("%s and %s both have rank %d", other, self.Node, rank)
		}
		seen[rank] = self.Node
	}
}

// Three real Raft nodes whose own timers would take seconds.
func TestStandingNowElectsALeaderWithoutWaitingForTimers(t *testing.T) {
	type server struct {
		*raft.Raft
		t    *raftTransport
		name string
	}
	var servers []server
	var conf raft.Configuration
	for i := range 3 {
		tcp, err := raft.NewTCPTransport("127.0.0.1:0", nil, 2, time.Second, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("lb%d", i+1)
		servers = append(servers, server{t: newRaftTransport(tcp), name: name})
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(name), Address: tcp.LocalAddr()})
	}
	for i := range servers {
		s := &servers[i]
		c := raftConfig(s.name, raftLogger(slog.New(slog.DiscardHandler)))
		c.HeartbeatTimeout, c.ElectionTimeout, c.LeaderLeaseTimeout = 10*time.Second, 10*time.Second, 10*time.Second
		store := raft.NewInmemStore()
		snaps := raft.NewInmemSnapshotStore()
		if err := raft.BootstrapCluster(c, store, store, snaps, s.t, conf); err != nil {
			t.Fatal(err)
		}
		r, err := raft.NewRaft(c, newStore(), store, store, snaps, s.t)
		if err != nil {
			t.Fatal(err)
		}
		s.Raft = r
		t.Cleanup(func() {
			_ = r.Shutdown().Error()
			_ = s.t.Close()
		})
	}
	leads := func(s server) func() bool { return func() bool { return s.State() == raft.Leader } }
	start := time.Now()
	if err := servers[0].t.standNow(t.Context(), "lb1", string(servers[0].t.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	await(t, "lb1 leads", leads(servers[0]))
	_ = servers[0].Shutdown().Error()
	_ = servers[0].t.Close()
	if err := servers[1].t.standNow(t.Context(), "lb2", string(servers[1].t.LocalAddr())); err != nil {
		t.Fatal(err)
	}
	await(t, "lb2 leads", leads(servers[1]))
	if took := time.Since(start); took > 8*time.Second {
		t.Fatalf("took %v: that was the timers' doing", took)
	}
	if err := servers[0].t.standNow(t.Context(), "lb1", ""); err == nil {
		t.Fatal("a closed transport lets its node stand")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-tick.C {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: not within 10 s", what)
}

// Who died with the leader and is not missed yet does not answer; the others do not wait for that.
func TestEnoughAnswersAreNotKeptWaiting(t *testing.T) {
	after := func(d time.Duration, c *claim) func(chan<- *claim) {
		return func(answers chan<- *claim) { time.AfterFunc(d, func() { answers <- c }) }
	}
	lost := func(name string) *claim {
		c := lost(name, 0, 0)
		return &c
	}
	for _, tc := range []struct {
		name    string
		answers []func(chan<- *claim) // by three that were asked
		want    int
		took    time.Duration
	}{
		{"all answer", []func(chan<- *claim){after(2, lost("a")), after(3, lost("b")), after(4, lost("c"))}, 3, 4},
		{"one never does", []func(chan<- *claim){after(2*time.Millisecond, lost("a")), after(3*time.Millisecond, lost("b"))}, 2, 3*time.Millisecond + succeedLinger},
		{"one does a little later", []func(chan<- *claim){after(0, lost("a")), after(0, lost("b")), after(9*time.Millisecond, lost("c"))}, 3, 9 * time.Millisecond},
		{"it does not hang on one that fails", []func(chan<- *claim){after(1, lost("a")), after(2, nil), after(3, nil)}, 1, 3},
		{"not enough", []func(chan<- *claim){after(time.Millisecond, lost("a")), after(time.Millisecond, &claim{Node: "b"})}, 2, succeedTimeout},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), succeedTimeout)
				defer cancel()
				answers := make(chan *claim, 3)
				for _, start := range tc.answers {
					start(answers)
				}
				began := time.Now()
				got := gather(ctx, answers, 3, func(others []claim) bool {
					_, enough := standing(claim{Node: "self", Lost: true}, others, 5)
					return enough
				})
				if took := time.Since(began); len(got) != tc.want || took != tc.took {
					t.Errorf("%d answers after %s, want %d after %s", len(got), took, tc.want, tc.took)
				}
			})
		})
	}
}
