package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab/traffic"
	"pontoon/internal/roottest"
)

// runDemo runs a demo against the stand-in and checks that nothing is left.
func runDemo(t *testing.T, ctx context.Context, cfg DemoConfig) (Report, string, error) {
	t.Helper()
	roottest.Need(t)
	var out, errOut bytes.Buffer
	cfg.Binary, cfg.Dir, cfg.Out, cfg.Err = standin.path(t), t.TempDir(), &out, &errOut
	r, err := RunDemo(ctx, cfg)
	t.Logf("stdout:\n%s\nerror: %v", out.String(), err)
	if err != nil {
		t.Logf("stderr:\n%.4000s", errOut.String())
	}
	if !cfg.Keep {
		if left, _ := os.ReadDir(cfg.Dir); len(left) > 0 {
			t.Errorf("left in the directory: %v", left)
		}
	}
	return r, out.String(), err
}

func TestDemoWithoutFailuresCarriesItsConnections(t *testing.T) {
	r, out, err := runDemo(t, deadline(t, time.Minute), DemoConfig{Connections: 40, Failures: []string{}, JSON: true})
	if err != nil || !r.OK {
		t.Fatalf("got %+v, %v", r, err)
	}
	var parsed Report
	dec := json.NewDecoder(strings.NewReader(out))
	if err := dec.Decode(&parsed); err != nil || dec.More() {
		t.Errorf("stdout is not one JSON object: %v\n%s", err, out)
	}
	if parsed.Nodes != 3 || parsed.Connections != 40 {
		t.Errorf("got %+v", parsed)
	}
}

func TestDemoNoticesThatAProxyLosesItsConnections(t *testing.T) {
	r, out, err := runDemo(t, deadline(t, 2*time.Minute), DemoConfig{Connections: 40, Failures: []string{FailKill, FailPause}})
	if !errors.Is(err, ErrVerdict) || r.OK || len(r.Failures) != 2 {
		t.Fatalf("got %+v, %v", r, err)
	}
	f := r.Failures[0]
	if f.Victim != "lb1" || f.Successor != "lb2" || f.Reset != 40 || f.Survived != 0 || f.Connections != 40 ||
		!f.NewConnectionsOK || f.TakeoverMS < 400 || f.NewOutageMS < 400 {
		t.Errorf("got %+v", f)
	}
	// The second round began whole: with a new master and as many connections.
	f = r.Failures[1]
	if f.Kind != FailPause || f.Victim != "lb2" || f.Successor != "lb1" || f.Reset != 40 || f.Connections != 40 || !f.NewConnectionsOK {
		t.Errorf("got %+v", f)
	}
	// Between the two an endpoint died and came back. The proxies of the stand-in send nobody there.
	if len(r.Endpoints) != 2 {
		t.Fatalf("endpoints: %+v", r.Endpoints)
	}
	e := r.Endpoints[0]
	if e.Kind != endpointDeath || e.Endpoint != "ep2" || !e.ok() || e.Connections != 40 || e.Own < 15 ||
		e.Survived < 15 || e.Survived > 25 || e.New < 10 || e.Misdirected != 0 {
		t.Errorf("got %+v", e)
	}
	if e = r.Endpoints[1]; e.Kind != endpointReturn || !e.ok() || e.Connections != 40 || e.Survived != 40 {
		t.Errorf("got %+v", e)
	}
	for _, want := range []string{
		"endpoint ep2 died: out after ", "0 new connections misdirected after that", "endpoint ep2 is back: in after ",
		"lb1, the master, has lost its power", "lb2 is the new master", "FAIL: ", "80 connections lost", "lb2 goes on",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("nothing said about %q", want)
		}
	}
}

func TestInterruptedDemoCleansUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &trigger{on: "connections are open", fire: cancel}
	dir := t.TempDir()
	roottest.Need(t)
	_, err := RunDemo(ctx, DemoConfig{Binary: standin.path(t), Dir: dir, Connections: 20, Out: out})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left in the directory: %v", left)
	}
}

// trigger fires once something was written.
type trigger struct {
	on   string
	fire func()
}

func (w *trigger) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.on) {
		w.fire()
	}
	return len(b), nil
}

func TestDemoConfigIsValidated(t *testing.T) {
	err := DemoConfig{Binary: "/nowhere", Nodes: 2, Connections: -1, Failures: []string{"flood"}}.Validate()
	for _, want := range []string{"binary", "2 nodes", "-1 connections", `failure "flood"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in: %v", want, err)
		}
	}
}

func TestReportHasTheContractsKeys(t *testing.T) {
	raw, err := json.Marshal(Report{Failures: []FailureReport{{}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{
		"nodes", "failures", "kind", "victim", "successor", "blackout_ms", "connections", "survived", "reset",
		"stalled", "corrupted", "new_connections_ok", "endpoints",
	} {
		if !strings.Contains(string(raw), `"`+key+`":`) {
			t.Errorf("no key %s in %s", key, raw)
		}
	}
}

func TestVerdictCountsEveryWayToFail(t *testing.T) {
	good := func() FailureReport {
		return FailureReport{Kind: FailKill, Victim: "lb1", Successor: "lb2", Connections: 10, Survived: 10, NewConnectionsOK: true, BlackoutMS: 812}
	}
	for name, tc := range map[string]struct {
		spoil func(*FailureReport)
		ok    bool
	}{
		"good":               {func(*FailureReport) {}, true},
		"one reset":          {func(f *FailureReport) { f.Reset, f.Survived = 1, 9 }, false},
		"one stalled":        {func(f *FailureReport) { f.Stalled, f.Survived = 1, 9 }, false},
		"one corrupted":      {func(f *FailureReport) { f.Corrupted, f.Survived = 1, 9 }, false},
		"nobody new":         {func(f *FailureReport) { f.NewConnectionsOK = false }, false},
		"no successor":       {func(f *FailureReport) { f.Successor = "" }, false},
		"victim stayed away": {func(f *FailureReport) { f.Error = "it did" }, false},
	} {
		f := good()
		tc.spoil(&f)
		r := Report{Connections: 10, Failures: []FailureReport{f}, wanted: 1}
		if r.conclude(); r.OK != tc.ok || r.Verdict == "" {
			t.Errorf("%s: %v, %s", name, r.OK, r.Verdict)
		}
	}
	r := Report{Failures: []FailureReport{good()}, wanted: 2}
	if r.conclude(); r.OK {
		t.Error("a failure that was not made counts as passed")
	}
}

func TestVerdictCountsEndpointsThatWentBadly(t *testing.T) {
	death := EndpointReport{Kind: endpointDeath, Connections: 10, Own: 4, Survived: 6, Failed: 9}
	back := EndpointReport{Kind: endpointReturn, Connections: 10, Survived: 10}
	for name, tc := range map[string]struct {
		spoil func(death, back *EndpointReport)
		ok    bool
	}{
		"good":                     {func(_, _ *EndpointReport) {}, true},
		"misdirected when known":   {func(d, _ *EndpointReport) { d.Misdirected = 1 }, false},
		"another's one lost":       {func(d, _ *EndpointReport) { d.Survived = 5 }, false},
		"one stalled":              {func(d, _ *EndpointReport) { d.Stalled = 1 }, false},
		"one corrupted":            {func(d, _ *EndpointReport) { d.Corrupted = 1 }, false},
		"never found":              {func(d, _ *EndpointReport) { d.Error = "it was not" }, false},
		"one lost when it is back": {func(_, b *EndpointReport) { b.Survived = 9 }, false},
	} {
		d, b := death, back
		tc.spoil(&d, &b)
		r := Report{Connections: 10, Endpoints: []EndpointReport{d, b}, endpoints: 2}
		if r.conclude(); r.OK != tc.ok || r.Verdict == "" {
			t.Errorf("%s: %v, %s", name, r.OK, r.Verdict)
		}
	}
	r := Report{Endpoints: []EndpointReport{death}, endpoints: 2}
	if r.conclude(); r.OK {
		t.Error("an endpoint that was not seen to come back counts as passed")
	}
}

func TestRoundAddsUp(t *testing.T) {
	var f FailureReport
	f.fill(traffic.Result{Connections: 10, Survived: 7, Reset: 1, Stalled: 2, Errors: []string{"reset"}, Blackout: 900 * time.Millisecond},
		traffic.Result{Connections: 9, Survived: 8, Corrupted: 1, Blackout: 120 * time.Millisecond}, nil)
	if f.Survived != 6 || f.Reset != 1 || f.Stalled != 2 || f.Corrupted != 1 || f.BlackoutMS != 900 || f.ReturnGapMS != 120 {
		t.Errorf("got %+v", f)
	}
	if !strings.Contains(f.Error, "reset") {
		t.Errorf("error %q", f.Error)
	}
}

func TestPreflightFindsThisMachineFit(t *testing.T) {
	roottest.Need(t)
	if err := Preflight(1000); err != nil {
		t.Error(err)
	}
	if err := Preflight(1 << 30); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("a billion connections: %v", err)
	}
	for release, ok := range map[string]bool{"5.10.0-8-amd64": false, "5.15.1": true, "6.1-rc2": true, "4.19": false, "strange": true} {
		if err := checkKernel(release); (err == nil) != ok {
			t.Errorf("%s: %v", release, err)
		}
	}
}
