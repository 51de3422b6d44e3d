package node

import (
	"testing"
	"time"
)

func TestAStartedDaemonWaitsForWhatItStillLacks(t *testing.T) {
	const grace = 8 * time.Second
	for _, tc := range []struct {
		whole, caught bool
		after         time.Duration
	}{{true, true, 0}, {false, true, settleTime}, {true, false, grace}, {false, false, grace}} {
		if !routesSettled(tc.whole, tc.caught, tc.after, grace) || tc.after > 0 && routesSettled(tc.whole, tc.caught, tc.after-1, grace) {
			t.Errorf("%+v", tc)
		}
	}
	for name, tc := range map[string]struct {
		peers []syncPeer
		want  bool
	}{
		"alone":                  {nil, true},
		"all stream":             {[]syncPeer{{true, true}, {true, true}}, true},
		"one does not yet":       {[]syncPeer{{true, true}, {true, false}}, false},
		"who is dead is no loss": {[]syncPeer{{false, false}, {true, true}}, true},
	} {
		if got := heardAll(tc.peers); got != tc.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}
