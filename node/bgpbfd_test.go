package node

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"pontoon/node/detect"
)

// A member that is a BGP neighbour on the same link has one session for both.
func TestOneSessionServesAMemberThatIsARouterToo(t *testing.T) {
	key := func(last string) detect.Key {
		return detect.Key{Local: mustAddr("192.0.2.1"), Remote: mustAddr("192.0.2." + last), Interface: "eth1"}
	}
	every := func(d time.Duration) detect.Config {
		return detect.Config{DesiredMinTx: d, RequiredMinRx: d, DetectMult: 3}
	}
	got := eachOnce([]detect.Session{
		{Key: key("2"), Config: every(300 * time.Millisecond), Resume: detect.Resume{}},
		{Key: key("9"), Config: every(time.Second)},
		{Key: key("3"), Config: every(50 * time.Millisecond)},
		{Key: key("2"), Config: every(100 * time.Millisecond)},
		{Key: key("3"), Config: every(100 * time.Millisecond)},
	})
	want := []detect.Session{
		{Key: key("2"), Config: every(100 * time.Millisecond)},
		{Key: key("9"), Config: every(time.Second)},
		{Key: key("3"), Config: every(50 * time.Millisecond)},
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(detect.Key{}), cmpopts.EquateComparable(detect.Resume{})); diff != "" {
		t.Error(diff)
	}
}
