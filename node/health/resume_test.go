package health

import (
	"crypto/tls"
	"net/http"
	"testing"
	"time"

	"pontoon/internal/roottest"
)

// A full handshake costs both sides ten times as much as one that goes on from the last.
func TestSessionsOfTLSAreTakenUpAgain(t *testing.T) {
	resumed := make(chan string, 64)
	note := func(who string, state *tls.ConnectionState) {
		if state != nil && state.DidResume {
			select {
			case resumed <- who:
			default:
			}
		}
	}
	w := newWeb(t, true, func(_ http.ResponseWriter, r *http.Request) { note("https", r.TLS) })
	g := newGRPC(t, true)
	inner := g.Config.Handler
	g.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		note("grpc", r.TLS)
		inner.ServeHTTP(rw, r)
	})
	https, grpc := fast(TypeHTTPS), fast(TypeGRPC)
	grpc.TLS = true
	https.Timeout, grpc.Timeout = time.Second, time.Second
	start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: https},
		Target{Key: 2, Addr: addrPort(t, g.Listener.Addr()), Probe: grpc})
	seen := map[string]bool{}
	roottest.Eventually(t, "both have resumed a session", func() bool {
		select {
		case who := <-resumed:
			seen[who] = true
		default:
		}
		return seen["https"] && seen["grpc"]
	})
}
