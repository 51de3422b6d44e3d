package health

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"pontoon/internal/roottest"
)

// childVariable makes this binary a server for the measurements, so that what the server costs is not
// measured.
const childVariable = "PONTOON_TEST_HEALTH_SERVER"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) != "" {
		if err := serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// serve answers HTTP on every address until in ends.
func serve(in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr().(*net.TCPAddr).Port)
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "well") }))
	_, _ = io.Copy(io.Discard, in)
	return l.Close()
}

// fast is a probe for tests.
func fast(t Type) Probe {
	return Probe{Type: t, Interval: MinInterval, Timeout: 80 * time.Millisecond, Rise: 2, Fall: 2}
}

// start runs a prober on the test's own thread's namespace until the test ends.
func start(t *testing.T, o Options, targets ...Target) *Prober {
	t.Helper()
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	p := New(o)
	p.Want(targets)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return p
}

// becomes waits for a verdict, and for why it is so.
func becomes(t *testing.T, p *Prober, key uint32, want Health, why string) Result {
	t.Helper()
	var r Result
	defer func() {
		if t.Failed() {
			t.Logf("target %d is %+v", key, r)
		}
	}()
	roottest.Eventually(t, fmt.Sprintf("target %d is %v because %q", key, want, why), func() bool {
		r, _ = p.Result(key)
		return r.Health == want && (want == Unknown || strings.Contains(r.Why, why) && (why != "" || r.Why == ""))
	})
	return r
}
