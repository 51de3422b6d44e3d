package roottest

import "testing"

// told is a test that notes how it was ended.
type told struct {
	testing.TB
	failed, skipped bool
}

func (t *told) Helper()               {}
func (t *told) Fatalf(string, ...any) { t.failed = true; panic(t) }
func (t *told) Skipf(string, ...any)  { t.skipped = true; panic(t) }

func TestAMissingProgramFailsWhereSkippingIsForbidden(t *testing.T) {
	for value, fails := range map[string]bool{"1": true, "": false} {
		t.Setenv("PONTOON_REQUIRE_PRIV", value)
		tb := &told{}
		func() {
			defer func() { _ = recover() }() // as ending a test ends its goroutine
			NeedProgram(tb, "/nowhere/pt-no-such-program")
		}()
		if tb.failed != fails || tb.skipped == fails {
			t.Errorf("PONTOON_REQUIRE_PRIV=%q: %+v", value, tb)
		}
	}
}
