package node

import (
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/web"
)

// A witness elsewhere is not passed over in silence.
func TestANodeThatCannotBeWatchedIsListedWithTheReason(t *testing.T) {
	got := withUnwatched([]web.BFDSession{{Peer: "lb2", Kind: web.BFDAsync}, {Peer: "lb2", Kind: web.BFDEcho}},
		[]fsm.Node{{Name: "lb1"}, {Name: "lb2"}, {Name: "a9"}}, "lb1")
	if len(got) != 3 || got[0].Peer != "a9" || got[0].Kind != web.BFDNone || got[0].Why != "no common subnet" || got[1].Kind != web.BFDEcho {
		t.Errorf("%+v", got)
	}
}

func TestASessionThatIsDownSaysWhy(t *testing.T) {
	d := &detector{cfg: defaultFailover()}
	for name, tc := range map[string]struct {
		is         detect.Status
		state, why string
	}{
		"up":                     {up(front, 10), "up", ""},
		"coming up":              {detect.Status{Key: front, State: detect.Init}, "init", ""},
		"not yet":                {detect.Status{Key: front, State: detect.Down}, "down", "not up yet"},
		"nothing comes any more": {gone(front), "down", "silent"},
		"one direction":          {detect.Status{Key: front, State: detect.Down, WasUp: true, Diag: detect.DiagNeighbourDown}, "down", "not heard there"},
		"parted":                 {detect.Status{Key: front, State: detect.Down, WasUp: true, Diag: detect.DiagNeighbourDown, Farewell: true}, "down", "stopped"},
		"no port":                {detect.Status{Key: front, State: detect.Down, Error: "in use"}, "down", "unsent"},
	} {
		got := d.sessionStatus("lb2", tc.is)
		if got.State != tc.state || got.Why != tc.why || got.Kind != "async" || got.Peer != "lb2" || got.Multiplier != 3 {
			t.Errorf("%s: %+v, want %s because of %q", name, got, tc.state, tc.why)
		}
	}
	agreed := d.sessionStatus("lb2", detect.Status{Key: front, State: detect.Up, TxInterval: 100 * time.Millisecond, DetectionTime: 450 * time.Millisecond})
	if agreed.IntervalMS != 100 || agreed.DetectionMS != 450 {
		t.Errorf("%+v", agreed)
	}
}
