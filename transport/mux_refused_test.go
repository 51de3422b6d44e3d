package transport

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestRefusalsOfOnePeerAreReportedOnceInAWhile(t *testing.T) {
	var r refusals
	t0 := time.Unix(1000, 0)
	for _, step := range []struct {
		who     string
		at      time.Duration
		write   bool
		skipped int
	}{
		{"node lb3", 0, true, 0},
		{"node lb3", time.Millisecond, false, 0},
		{"192.0.2.9", 2 * time.Millisecond, true, 0}, // somebody else is news
		{"node lb3", refusedEvery - 1, false, 0},
		{"node lb3", refusedEvery, true, 2},
		{"node lb3", refusedEvery + 1, false, 0},
		{"node lb3", 10 * refusedEvery, true, 1},
		{"192.0.2.9", 10 * refusedEvery, true, 0},
	} {
		if write, skipped := r.note(step.who, t0.Add(step.at)); write != step.write || skipped != step.skipped {
			t.Errorf("%s after %s: write %v, skipped %d", step.who, step.at, write, skipped)
		}
	}
}

func TestStrangersCannotFillTheMemoryOfRefusals(t *testing.T) {
	var r refusals
	now := time.Unix(1000, 0)
	for i := range 10 * refusedMax {
		r.note(fmt.Sprintf("stranger %d", i), now)
		if len(r.rows) > refusedMax {
			t.Fatalf("%d are remembered", len(r.rows))
		}
	}
	// Those that are old go first, so a peer that is new stays quiet.
	now = now.Add(refusedEvery)
	r.note("node lb3", now)
	for i := range refusedMax / 2 {
		r.note(fmt.Sprintf("newcomer %d", i), now)
	}
	if write, _ := r.note("node lb3", now); write {
		t.Error("a peer was forgotten while there were older ones")
	}
}

// logLines keeps what a Mux logs, debug lines excepted.
type logLines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logLines) count(part string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), part)
}

func TestARemovedNodeThatKeepsTryingIsNoFloodOfWarnings(t *testing.T) {
	checkLeaks(t)
	ca := newTestCA(t)
	var lines logLines
	server := startMux(t, newTestIdentity(t, ca, "lb1"), serveEcho(ALPNRaft), func(c *MuxConfig) {
		c.Logger = slog.New(slog.NewTextHandler(&lines, nil))
	})
	for _, name := range []string{"lb8", "lb9"} {
		server.members.remove(name)
		removed := startMux(t, newTestIdentity(t, ca, name), nil)
		for range 5 {
			_, err := removed.Dial(t.Context(), server.addr(), ALPNRaft, "lb1")
			wantError(t, err, "not a member")
		}
	}
	for _, name := range []string{"lb8", "lb9"} {
		eventually(t, 5*time.Second, "a warning about "+name, func() bool { return lines.count("node "+name) > 0 })
	}
	server.stop() // no line comes after this
	if n := lines.count("refused a connection"); n != 2 {
		t.Errorf("%d warnings about two nodes, want one each", n)
	}
}
