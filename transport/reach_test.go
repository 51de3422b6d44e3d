package transport

import (
	"context"
	"net"
	"testing"
	"time"
)

func TestHostAliveTellsKernelsThatAnswerFromSilence(t *testing.T) {
	checkLeaks(t)
	listening, err := net.Listen("tcp", "127.0.0.1:0") // nobody accepts: a stopped daemon
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listening.Close() }()
	closed, err := net.Listen("tcp", "127.0.0.1:0") // a crashed daemon
	if err != nil {
		t.Fatal(err)
	}
	_ = closed.Close()
	for name, addr := range map[string]string{"listening": listening.Addr().String(), "refusing": closed.Addr().String()} {
		start := time.Now()
		if !HostAlive(t.Context(), addr) {
			t.Errorf("a %s host is held for dead", name)
		}
		if d := time.Since(start); d > 50*time.Millisecond {
			t.Logf("a %s host took %s", name, d)
		}
	}
}

func TestHostAliveEndsWithItsContextWhenNothingAnswers(t *testing.T) {
	checkLeaks(t)
	// A listener whose backlog is full drops further SYNs, as a dead machine does.
	addr := fullListener(t)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	if HostAlive(ctx, addr) {
		t.Error("a silent host is held for alive")
	}
	if d := time.Since(start); d < 250*time.Millisecond || d > 2*time.Second {
		t.Errorf("the verdict took %s, want about 300 ms", d)
	}
}
