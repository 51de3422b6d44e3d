package traffic

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func checkSum(t *testing.T, r Result) {
	t.Helper()
	if r.Survived+r.Reset+r.Stalled+r.Corrupted != r.Connections {
		t.Errorf("does not add up: %+v", r)
	}
}

func TestHealthyConnectionsSurvive(t *testing.T) {
	s, addr := startServer(t)
	c := startClients(t, addr, 50)
	w := c.Window()
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	wait(t, 200*time.Millisecond)
	r := w.Result()
	checkSum(t, r)
	if r.Survived != 50 || r.Blackout <= 0 || r.P50 > r.P99 || r.P99 > r.Blackout {
		t.Errorf("got %+v", r)
	}
	if st := s.Stats(); st.Open != 50 || st.Accepted != 50 || st.Frames < 50*5 || st.Corrupted != 0 {
		t.Errorf("got %+v", st)
	}
}

func TestBlackoutIsMeasured(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	c := startClients(t, p.addr(), 20)
	w := c.Window()
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	p.hold(true)
	began := time.Now()
	wait(t, 100*time.Millisecond) // what was under way arrives
	w.Mark()
	wait(t, 400*time.Millisecond)
	if n := w.Pending(); n != 20 {
		t.Errorf("%d pending while all is held", n)
	}
	if r := w.Result(); r.Stalled != 20 {
		t.Errorf("while all is held: %+v", r)
	}
	p.hold(false)
	held := time.Since(began)
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	r := w.Result()
	checkSum(t, r)
	if r.Survived != 20 || r.Blackout < 450*time.Millisecond || r.Blackout > held+200*time.Millisecond {
		t.Errorf("held for %s: %+v", held, r)
	}
	// A new window has forgotten it.
	w = c.Window()
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if r := w.Result(); r.Blackout > 300*time.Millisecond {
		t.Errorf("afterwards: %+v", r)
	}
}

func TestStalledConnectionIsNamed(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	c := startClients(t, p.addr(), 5)
	p.hold(true)
	w := c.Window()
	err := w.Wait(within(t, 200*time.Millisecond))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "5 of 5") {
		t.Errorf("got %v", err)
	}
	if r := w.Result(); r.Stalled != 5 || r.Blackout < 150*time.Millisecond {
		t.Errorf("got %+v", r)
	}
}

func TestResetIsDetectedAndReplaced(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	c := startClients(t, p.addr(), 10)
	w := c.Window()
	p.reset(3)
	eventually(t, "three losses", func() bool { return w.Result().Reset == 3 })
	w.Mark()
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	r := w.Result()
	checkSum(t, r)
	if r.Survived != 7 || len(r.Errors) != 1 || r.Errors[0] != "3 times: read: connection reset by peer" || c.Alive() != 7 {
		t.Errorf("got %+v", r)
	}
	if err := c.Open(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	w = c.Window()
	if err := w.Wait(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	if r := w.Result(); r.Connections != 10 || r.Survived != 10 {
		t.Errorf("after reopening: %+v", r)
	}
}

func TestCorruptionIsDetected(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)-6] ^= 4; return b }
	double := func(b []byte) []byte { return append(append([]byte(nil), b...), b...) }
	swallow := func([]byte) []byte { return nil }
	for name, tc := range map[string]struct {
		toServer bool
		tamper   func([]byte) []byte
	}{
		"bit flipped towards the client":  {false, flip},
		"bit flipped towards the server":  {true, flip},
		"answer doubled":                  {false, double},
		"request doubled":                 {true, double},
		"answer lost inside the stream":   {false, swallow},
		"request lost inside the stream":  {true, swallow},
		"another stream's answer instead": {false, func([]byte) []byte { return appendFrame(nil, frame{kind: kindAnswer, conn: 1}, 9) }},
	} {
		t.Run(name, func(t *testing.T) {
			s, addr := startServer(t)
			p := startProxy(t, addr)
			c := startClients(t, p.addr(), 4)
			w := c.Window()
			p.once(tc.toServer, tc.tamper)
			eventually(t, "the corruption to be seen", func() bool { return w.Result().Corrupted > 0 })
			r := w.Result()
			checkSum(t, r)
			if r.Corrupted != 1 || r.Reset != 0 || len(r.Errors) != 1 {
				t.Errorf("got %+v", r)
			}
			if tc.toServer {
				eventually(t, "the server to count it", func() bool { return s.Stats().Corrupted == 1 })
			}
		})
	}
}

func TestOpenReportsARefusal(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	p.ln.Close()
	c, err := NewClients(ClientsConfig{Dial: dialTCP, Target: p.addr(), Count: 3})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 5*time.Second)); err == nil || !strings.Contains(err.Error(), "open connection 1 of 3") {
		t.Errorf("got %v", err)
	}
}

func TestOpenDoesNotTrustAHandshake(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	p.hold(true)
	c, err := NewClients(ClientsConfig{Dial: dialTCP, Target: p.addr(), Count: 1, DialTimeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 5*time.Second)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestOpenTellsItsProgress(t *testing.T) {
	_, addr := startServer(t)
	var calls, top atomic.Int64
	c, err := NewClients(ClientsConfig{Dial: dialTCP, Target: addr, Count: 7, Progress: func(n int) {
		calls.Add(1)
		top.Store(int64(n))
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Open(within(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	background(t, c.Run)
	if calls.Load() != 7 || top.Load() != 7 {
		t.Errorf("%d calls up to %d", calls.Load(), top.Load())
	}
}

func TestProberCountsAndMeasures(t *testing.T) {
	_, addr := startServer(t)
	p := startProxy(t, addr)
	pr, err := NewProber(ProberConfig{Dial: dialTCP, Target: p.addr(), Interval: 10 * time.Millisecond, Timeout: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	background(t, pr.Run)
	if err := pr.Succeeding(within(t, 5*time.Second), 5); err != nil {
		t.Fatal(err)
	}
	if r := pr.Result(); r.OK < 5 || r.Failed != 0 || r.LastError != "" {
		t.Errorf("healthy: %+v", r)
	}
	pr.Window()
	held := time.Now()
	p.hold(true)
	err = pr.Succeeding(within(t, 400*time.Millisecond), 5)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while held: %v", err)
	}
	released := time.Now()
	p.hold(false)
	if err := pr.Succeeding(within(t, 5*time.Second), 5); err != nil {
		t.Fatal(err)
	}
	if ok, failed := pr.Began(released); ok < 5 || failed > 0 {
		t.Errorf("of those that began after the hold %d succeeded and %d failed", ok, failed)
	}
	r := pr.Result()
	if ok, failed := pr.Began(held); ok+failed <= 5 || failed == 0 || failed > r.Failed {
		t.Errorf("of those that began since the hold %d succeeded and %d failed: %+v", ok, failed, r)
	}
	// The last that fails may have begun just before the release.
	if r.LastFailed.Before(held.Add(200*time.Millisecond)) || r.LastFailed.After(released) {
		t.Errorf("held from %s to %s, and the last that failed began at %s", held, released, r.LastFailed)
	}
	if r.Failed == 0 || r.Outage < 300*time.Millisecond || r.LastError == "" {
		t.Errorf("after the hold: %+v", r)
	}
	pr.Window()
	if err := pr.Succeeding(within(t, 5*time.Second), 5); err != nil {
		t.Fatal(err)
	}
	if r := pr.Result(); r.Failed != 0 || r.Outage > 250*time.Millisecond {
		t.Errorf("new window: %+v", r)
	}
}

func TestServerAnswersCurl(t *testing.T) {
	s, addr := startServer(t)
	tr := &http.Transport{DisableKeepAlives: true}
	defer tr.CloseIdleConnections()
	req, err := http.NewRequestWithContext(within(t, 5*time.Second), http.MethodGet, "http://"+addr.String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || !strings.HasPrefix(string(body), "ep1 here; you come from 127.0.0.1:") {
		t.Errorf("got %q, %v", body, err)
	}
	if s.Stats().Corrupted != 0 {
		t.Error("counted as corrupt")
	}
}

func TestConfigurationsAreValidated(t *testing.T) {
	err := ClientsConfig{Interval: time.Millisecond, Payload: 5000}.Validate()
	for _, want := range []string{"dial function", "target", "0 connections", "interval", "payload"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("nothing about %s in: %v", want, err)
		}
	}
	if err := (ProberConfig{Interval: 1}).Validate(); err == nil {
		t.Error("took an empty prober")
	}
	if _, err := NewServer(ServerConfig{Payload: -1}); err == nil {
		t.Error("took a negative payload")
	}
}

func TestPercentileIsNearestRank(t *testing.T) {
	var sorted []time.Duration
	for i := range 200 {
		sorted = append(sorted, time.Duration(i+1))
	}
	for p, want := range map[int]time.Duration{50: 100, 99: 198, 100: 200} {
		if got := percentile(sorted, p); got != want {
			t.Errorf("p%d = %d", p, got)
		}
	}
	if percentile(nil, 99) != 0 || percentile(sorted[:1], 1) != 1 {
		t.Error("edges")
	}
}
