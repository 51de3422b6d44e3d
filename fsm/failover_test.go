package fsm

import (
	"strings"
	"testing"
	"time"
)

// failover is a timeline of the mastership that began at the epoch.
func failover(epoch uint64) Failover {
	return Failover{
		Instance: DefaultInstance, From: "lb1", To: "lb2", Epoch: epoch, At: epoch0, Cause: CauseLost,
		Parts: FailoverParts{Detected: 58.1, Confirmed: 63, Committed: 75, Announced: 79, FirstPacket: 83.4},
	}
}

func TestNewestFailoversAreKeptNewestFirst(t *testing.T) {
	s := threeNodes(t)
	first := s
	for i := range FailoversKept + 8 {
		f := failover(uint64((7 - i%7))) // out of order
		if i >= 7 {
			f.Epoch = s.Index()
		}
		s = do(t, s, RecordFailover{f})
	}
	got := s.Failovers()
	if len(got) != FailoversKept || got[0].Epoch != s.Index()-1 {
		t.Fatalf("%d kept, newest %d at index %d", len(got), got[0].Epoch, s.Index())
	}
	for i, f := range got[1:] {
		if f.Epoch >= got[i].Epoch {
			t.Errorf("epoch %d after %d", f.Epoch, got[i].Epoch)
		}
	}
	if len(first.Failovers()) != 0 {
		t.Error("recording changed an older state")
	}
	if all := NewFailovers(first, s); len(all) != FailoversKept || all[0].Epoch > all[1].Epoch {
		t.Errorf("%d new, %+v", len(all), all)
	}
	if more := NewFailovers(s, do(t, s, SetVoter{Node: "lb1"})); len(more) != 0 {
		t.Errorf("new: %+v", more)
	}
}

func TestFailoverIsReplacedByALaterRecordOfIt(t *testing.T) {
	s := do(t, threeNodes(t), RecordFailover{failover(2)})
	f := failover(2)
	f.Parts.FirstPacket = 99
	next := do(t, s, RecordFailover{f})
	if got := next.Failovers(); len(got) != 1 || got[0] != f {
		t.Errorf("%+v", got)
	}
	if f.Parts.Total() != 99 || (FailoverParts{}).Total() != 0 {
		t.Error("the total is the last step")
	}
}

func TestFailoverRefusals(t *testing.T) {
	s := threeNodes(t)
	for word, change := range map[string]func(*Failover){
		"instance": func(f *Failover) { f.Instance = "" },
		"to":       func(f *Failover) { f.To = "" },
		"from":     func(f *Failover) { f.From = "-" },
		"epoch":    func(f *Failover) { f.Epoch = s.Index() + 1 },
		"at":       func(f *Failover) { f.At = time.Time{} },
		"cause":    func(f *Failover) { f.Cause = "bad luck" },
		"parts_ms": func(f *Failover) { f.Parts.Elected = -1 },
	} {
		f := failover(2)
		change(&f)
		refused(t, s, RecordFailover{f}, ErrInvalid, word)
	}
}

func TestStateWithFailoversIsOfVersionFour(t *testing.T) {
	s := threeNodes(t)
	if peekVersion(snap(t, s)) != 2 {
		t.Fatalf("a state without is of version %d", peekVersion(snap(t, s)))
	}
	s = do(t, s, RecordFailover{failover(2)}, RecordFailover{failover(3)})
	b := snap(t, s)
	if peekVersion(b) != 4 {
		t.Errorf("version %d", peekVersion(b))
	}
	back, err := Restore(b)
	if err != nil {
		t.Fatal(err)
	}
	if got := back.Failovers(); len(got) != 2 || got[0] != s.Failovers()[0] {
		t.Errorf("%+v became %+v", s.Failovers(), got)
	}
	log, err := Encode(RecordFailover{failover(2)})
	if err != nil || !strings.HasPrefix(string(log), `{"v":4,"type":"record_failover",`) {
		t.Errorf("%s (%v)", log, err)
	}
	if VersionOf(SetVoter{}) != 2 || VersionOf(RecordFailover{}) > CommandVersion {
		t.Error("versions of commands")
	}
}
