package node

import (
	"testing"
	"time"
)

func TestRoutesAreFirstToldWhenNothingIsHeldBackAnyMore(t *testing.T) {
	begin := time.Unix(1000, 0)
	for _, tc := range []struct {
		name         string
		fresh, whole bool
		after        time.Duration
		want         bool
	}{
		{"nothing confirmed", false, true, time.Minute, false},
		{"confirmed, and the lease not there yet", true, false, time.Second, false},
		{"confirmed and whole", true, true, 0, true},
		{"something does not come", true, false, settleTime, true},
	} {
		d := &driver{}
		d.settled(tc.fresh, false, begin)
		if got := d.settled(tc.fresh, tc.whole, begin.Add(tc.after)); got != tc.want {
			t.Errorf("%s: %v", tc.name, got)
		}
	}
}
