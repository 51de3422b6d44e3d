package node

import (
	"testing"
	"time"

	"pontoon/node/detect"
)

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
