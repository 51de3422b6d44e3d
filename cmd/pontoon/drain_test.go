package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

// lonely is a cluster whose master nobody could follow without loss.
func lonely() *fakeDaemon {
	d := newFakeCluster()
	d.must(fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.80.200")}})
	for _, n := range []fsm.NodeID{"lb2", "lb3"} {
		d.must(fsm.NodeReport{Node: n, Ready: true, LinksUp: true})
	}
	return d
}

func TestDrainWaitsForAnotherNodeAndSaysForWhat(t *testing.T) {
	d := lonely()
	a, out, errOut := testApp(startFake(t, d))
	timer := time.AfterFunc(100*time.Millisecond, func() {
		_, _ = d.Propose(t.Context(), fsm.NodeReport{Node: "lb3", Ready: true, LinksUp: true, InSync: true})
	})
	defer timer.Stop()
	if err := execute(t.Context(), a, "node", "drain", "lb1"); err != nil {
		t.Fatal(err)
	}
	if n, _ := d.State().Node("lb1"); !n.Draining || !strings.Contains(out.String(), "lb1 is drained") {
		t.Errorf("draining %v: %s", n.Draining, out)
	}
	if strings.Count(errOut.String(), "lb2 does not hold all flows yet") != 1 {
		t.Errorf("it does not say once what it waits for: %q", errOut)
	}
}

func TestDrainGivesUpWithNothingChanged(t *testing.T) {
	d := lonely()
	a, _, _ := testApp(startFake(t, d))
	err := execute(t.Context(), a, "node", "drain", "lb1", "--timeout", "50ms")
	if err == nil || !strings.Contains(err.Error(), "not drained within 50ms") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if n, _ := d.State().Node("lb1"); n.Draining {
		t.Error("it drains all the same")
	}
	if err := execute(t.Context(), a, "node", "drain", "lb1", "--force"); err != nil {
		t.Fatal(err)
	}
	if n, _ := d.State().Node("lb1"); !n.Draining {
		t.Error("not by force either")
	}
}
