package health

import (
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// grpcServer answers health checks as gRPC does: a message, and the status in a trailer.
type grpcServer struct {
	*httptest.Server
	state  atomic.Uint32 // of every service
	status atomic.Value  // gRPC status
	asked  atomic.Value  // the newest message
}

func newGRPC(t *testing.T, tls bool) *grpcServer {
	t.Helper()
	g := &grpcServer{}
	g.state.Store(serving)
	g.status.Store("0")
	g.Server = httptest.NewUnstartedServer(g)
	g.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		g.EnableHTTP2 = true
		g.StartTLS()
	} else {
		g.Config.Protocols = new(http.Protocols)
		g.Config.Protocols.SetUnencryptedHTTP2(true)
		g.Start()
	}
	t.Cleanup(g.Close)
	return g
}

// ServeHTTP is http.Handler's.
func (g *grpcServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	g.asked.Store(string(body))
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	status := g.status.Load().(string)
	if r.URL.Path != "/grpc.health.v1.Health/Check" || r.Method != http.MethodPost || r.Header.Get("Te") != "trailers" {
		status = "12"
	}
	if status == "0" {
		message := []byte{0, 0, 0, 0, 2, 1 << 3, byte(g.state.Load())}
		if g.state.Load() == 0 {
			message = []byte{0, 0, 0, 0, 0} // as protobuf leaves out what is 0
		}
		_, _ = w.Write(message)
	}
	w.Header().Set("Grpc-Status", status)
	w.Header().Set("Grpc-Message", "so%20be%20it")
}

func TestGRPCHealthIsAsked(t *testing.T) {
	for _, tls := range []bool{false, true} {
		name := "plain"
		if tls {
			name = "tls"
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := newGRPC(t, tls)
			probe := fast(TypeGRPC)
			probe.Interval, probe.Timeout, probe.TLS, probe.GRPCService = 200*time.Millisecond, time.Second, tls, "shop"
			p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, g.Listener.Addr()), Probe: probe})
			becomes(t, p, 1, Up, "")
			if asked := g.asked.Load(); asked != "\x00\x00\x00\x00\x06\x0a\x04shop" {
				t.Errorf("asked %q", asked)
			}
			for _, tc := range []struct {
				state  uint32
				status string
				why    string
			}{
				{2, "0", "says NOT_SERVING"},
				{0, "0", "says UNKNOWN"},
				{9, "0", "says state 9"},
				{1, "5", "does not know the service"},
				{1, "12", "does not answer health checks"},
				{1, "14", "gRPC status 14: so be it"},
			} {
				g.state.Store(tc.state)
				g.status.Store(tc.status)
				becomes(t, p, 1, Down, tc.why)
			}
			g.state.Store(serving)
			g.status.Store("0")
			becomes(t, p, 1, Up, "")
		})
	}
}

func TestServersThatSpeakNoHTTP2AreSaidSo(t *testing.T) {
	probe := fast(TypeGRPC)
	probe.Interval, probe.Timeout = 200*time.Millisecond, time.Second
	secured := probe
	secured.TLS = true
	old, oldTLS := newWeb(t, false, status(200, "")), newWeb(t, true, status(200, ""))
	p := start(t, Options{},
		Target{Key: 1, Addr: addrPort(t, old.Listener.Addr()), Probe: probe},
		Target{Key: 2, Addr: addrPort(t, oldTLS.Listener.Addr()), Probe: secured})
	becomes(t, p, 1, Down, "no HTTP/2 is spoken there")
	becomes(t, p, 2, Down, "no HTTP/2 is spoken there")
}

func TestServingStateIsRead(t *testing.T) {
	for _, tc := range []struct {
		message string
		want    uint64
		bad     bool
	}{
		{"\x00\x00\x00\x00\x02\x08\x01", 1, false},
		{"\x00\x00\x00\x00\x00", 0, false},
		{"\x00\x00\x00\x00\x06\x12\x02hi\x08\x02", 2, false}, // a field of the future before it
		{"\x01\x00\x00\x00\x02\x08\x01", 0, true},            // compressed
		{"\x00\x00\x00\x00\x03\x08\x01", 0, true},            // short
		{"\x00\x00\x00\x00\x02\x12\x05", 0, true},
		{"\x00\x00\x00\x00\x01\x08", 0, true},
		{"", 0, true},
	} {
		got, err := servingState([]byte(tc.message))
		if got != tc.want && !tc.bad || (err != nil) != tc.bad {
			t.Errorf("%q: %d, %v", tc.message, got, err)
		}
	}
}
