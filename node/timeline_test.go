package node

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"pontoon/fsm"
)

func after(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

func TestTimelineOfALostLeaderIsPutTogetherFromWhatEachNodeSaw(t *testing.T) {
	// The reporters' durations count from when their reports came, at 65 and 70 ms.
	table := newReportTable()
	table.put(report{Node: "lb2", Lost: []fsm.NodeID{"lb1"}, Losses: []loss{{Node: "lb1", SilentMS: 63, LostMS: 4}}}, after(65))
	table.put(report{Node: "lb3", Lost: []fsm.NodeID{"lb1"}, Losses: []loss{{Node: "lb1", SilentMS: 70, LostMS: 12}}}, after(70))
	lost := table.lossOf("lb1", after(80))
	if lost.by != 2 || lost.lastGood != after(2) || lost.noticed != after(58) {
		t.Fatalf("%+v", lost)
	}
	if stale := table.lossOf("lb1", after(80).Add(lossAge)); stale.by != 0 {
		t.Errorf("reports of long ago count: %+v", stale)
	}

	var d decisions
	d.agree("lb1", after(63))
	d.agree("lb1", after(64)) // asked again
	d.nowLeading(after(72))
	one := d.ofDeath("lb1", lost, 2, after(1), after(80))
	one.committed = after(85)
	want := fsm.FailoverParts{Detected: 56, Confirmed: 61, Elected: 70, Committed: 83}
	if diff := cmp.Diff(want, one.parts()); diff != "" || one.cause != fsm.CauseLost {
		t.Errorf("%s %s", one.cause, diff)
	}

	a := accession{instance: "default", from: "lb1", epoch: 9, at: after(86), told: after(90), first: after(95)}
	rec := a.record("lb2", one.parts(), one.cause).Failover
	want.Announced, want.FirstPacket = 87, 92
	if diff := cmp.Diff(want, rec.Parts); diff != "" || rec.From != "lb1" || rec.To != "lb2" || rec.Epoch != 9 {
		t.Errorf("%+v %s", rec, diff)
	}
	if e := failoverEvent(rec); e.Text != "default moved from lb1 to lb2 in 92 ms: detected 56, confirmed 61, elected 70, committed 83, announced 87, first packet 92" {
		t.Errorf("event %q", e.Text)
	}
}

func TestTimelineWithoutEchoesCountsFromGossip(t *testing.T) {
	var d decisions
	d.nowLeading(after(-5000))
	one := d.ofDeath("lb1", lossTimes{}, 2, after(100), after(700))
	if one.cause != fsm.CauseSilent || one.began != after(100) || !one.elected.IsZero() {
		t.Errorf("%+v", one)
	}
	if p := one.parts(); p.Confirmed != 600 || p.Detected != 0 || p.Elected != 0 {
		t.Errorf("%+v", p)
	}
	// An agreement about an earlier loss is no part of this one.
	d.agree("lb1", after(50))
	if one := d.ofDeath("lb1", lossTimes{lastGood: after(60), by: 2}, 2, after(100), after(120)); one.confirmed != after(120) {
		t.Errorf("%+v", one)
	}
}

func TestTimelineOfNobodyKnowsWhatCounts(t *testing.T) {
	a := accession{instance: "default", from: "lb1", epoch: 9, at: after(0), told: after(4)}
	rec := a.record("lb2", fsm.FailoverParts{}, "").Failover
	if rec.Cause != fsm.CauseUnknown || rec.Parts != (fsm.FailoverParts{Announced: 4}) {
		t.Errorf("%+v", rec)
	}
}

// What one teller says does not make another's forgotten, and the first counts.
func TestAMastershipMayBeToldByLinkAndByRoute(t *testing.T) {
	l := accessions{wake: make(chan struct{}, 1), rows: []accession{{epoch: 7}, {epoch: 8}}}
	l.announced(byLink, map[uint64]bool{7: true}, after(1))
	l.announced(byRoute, map[uint64]bool{8: true}, after(2))
	l.announced(byLink, map[uint64]bool{7: true, 8: true}, after(3))
	l.announced(byRoute, map[uint64]bool{8: true}, after(4))
	if l.rows[0].told != after(1) || l.rows[1].told != after(2) {
		t.Errorf("%+v", l.rows)
	}
	if by := l.told[byRoute][8]; by != after(2) || earliest(l.told[byLink][8], by) != by || earliest(l.told[byLink][7], l.told[byRoute][7]) != after(1) {
		t.Errorf("%+v", l.told)
	}
}

func TestAccessionIsFollowedUntilItsFirstPacket(t *testing.T) {
	l := accessions{wake: make(chan struct{}, 1)}
	none, mine := history(t, oneNode(fsm.NodeReport{Node: "lb1", Ready: true, LinksUp: true, InSync: true})...)
	l.take(transition{none, mine, after(0)}, "lb1")
	if len(l.rows) != 0 {
		t.Fatal("the first master of all takes over from nobody")
	}
	l.announced(byLink, map[uint64]bool{7: true}, after(3)) // the driver was quicker
	l.announced(byLink, map[uint64]bool{7: true, 8: true}, after(5))
	l.rows = []accession{
		{instance: "a", epoch: 7, at: after(0), watched: []uint32{1}, told: l.told[byLink][7]},
		{instance: "b", epoch: 8, at: after(4), watched: []uint32{2}, told: l.told[byLink][8]},
	}
	packets := map[uint32]uint64{1: 100, 2: 200}
	count := func(ids []uint32) (uint64, error) {
		if packets[ids[0]] == 0 {
			return 0, errors.New("not read")
		}
		return packets[ids[0]], nil
	}
	if done, next := l.look(after(5), count); len(done) != 0 || next != packetPoll {
		t.Fatalf("%+v, look again after %v", done, next)
	}
	packets[1]++
	done, _ := l.look(after(6), count)
	if len(done) != 1 || done[0].told != after(3) || done[0].first != after(6) {
		t.Fatalf("%+v", done)
	}
	if done, next := l.look(after(400), count); len(done) != 0 || next != packetPollLate {
		t.Fatalf("%+v, look again after %v", done, next)
	}
	done, next := l.look(after(4).Add(firstPacketWait), count)
	if len(done) != 1 || done[0].told != after(5) || !done[0].first.IsZero() || next != 0 {
		t.Fatalf("%+v, look again after %v", done, next)
	}
}

func TestDecisionsOfLongAgoAreForgotten(t *testing.T) {
	var d decisions
	for i := range uint64(decisionsKept + 3) {
		d.put(i, decision{cause: fsm.CauseMove})
	}
	old, kept := len(d.get(2)) > 0, len(d.get(3)) > 0
	if old || !kept || len(d.rows) != decisionsKept {
		t.Errorf("%v %v %d", old, kept, len(d.rows))
	}
}

func TestCausesOfCommands(t *testing.T) {
	for want, c := range map[fsm.FailoverCause]fsm.Command{
		fsm.CauseMove: fsm.MoveInstance{}, fsm.CauseDrain: fsm.DrainNode{}, fsm.CauseRemove: fsm.RemoveNode{},
		fsm.CauseReport:  fsm.Batch{Commands: []fsm.Command{fsm.PutVIP{}, fsm.NodeReport{}}},
		fsm.CauseUnknown: fsm.PutInstance{},
	} {
		if got := causeOf(c); got != want {
			t.Errorf("%T: %s", c, got)
		}
	}
}

func TestNobodyWritesWhatAnotherCannotRead(t *testing.T) {
	table := newReportTable()
	nodes := []fsm.Node{{Name: "lb1"}, {Name: "lb2"}}
	table.put(report{Node: "lb1", Reads: 4}, t0)
	if table.reads(nodes, 4) {
		t.Error("nothing is known of lb2")
	}
	if table.put(report{Node: "lb2", Reads: 3}, t0); table.reads(nodes, 4) || !table.reads(nodes, 3) {
		t.Error("lb2 reads version 3")
	}
	if table.put(report{Node: "lb2", Reads: 3, ChangedMS: 5}, t0) {
		t.Error("an age is no news")
	}
}

func TestWhatWasSaidOfALostLeaderCountsAsReported(t *testing.T) {
	table := newReportTable()
	table.put(report{Node: "lb2"}, after(0))
	table.put(report{Node: "lb3"}, after(100))
	table.put(report{Node: "lb4", Lost: []fsm.NodeID{"lb1"}, Losses: []loss{{Node: "lb1", SilentMS: 60, LostMS: 2}}}, after(180))
	table.believe("lb1", []claim{
		{Node: "lb2", Lost: true, Loss: &loss{Node: "lb1", SilentMS: 90, LostMS: 10}, More: []loss{{Node: "lb5", SilentMS: 70, LostMS: 5}}},
		{Node: "lb3", Lost: false},
		{Node: "lb4", Lost: true, Loss: &loss{Node: "lb1", SilentMS: 80, LostMS: 22}}, // has said so itself
		{Node: "lb9", Lost: true, Loss: &loss{Node: "lb1", SilentMS: 80, LostMS: 22}}, // nobody knows it
	}, after(200))
	if n := losses(table.all(after(200), func(string) bool { return true }))["lb1"]; n != 2 {
		t.Errorf("%d have lost it", n)
	}
	if got := table.lossOf("lb1", after(200)); got.lastGood != after(120) || got.noticed != after(178) || got.by != 2 {
		t.Errorf("%+v", got)
	}
	if got := table.lossOf("lb5", after(200)); got.lastGood != after(130) || got.noticed != after(195) || got.by != 1 {
		t.Errorf("who died with it: %+v", got)
	}
	if n := losses(table.all(after(200), func(string) bool { return true }))["lb5"]; n != 1 {
		t.Errorf("%d have lost who died with it", n)
	}
	table.put(report{Node: "lb2"}, after(250)) // it is back, says who reports
	if got := table.lossOf("lb1", after(260)); got.by != 1 {
		t.Errorf("%+v", got)
	}
}
