package health

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"
)

// web is a server whose answers the test chooses.
type web struct {
	*httptest.Server
	handler atomic.Pointer[http.HandlerFunc]
}

func newWeb(t *testing.T, tls bool, h http.HandlerFunc) *web {
	t.Helper()
	w := &web{}
	w.handler.Store(&h)
	f := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { (*w.handler.Load())(rw, r) })
	w.Server = httptest.NewUnstartedServer(f)
	w.Config.ErrorLog = log.New(io.Discard, "", 0)
	if tls {
		w.StartTLS()
	} else {
		w.Start()
	}
	t.Cleanup(w.Close)
	return w
}

func status(code int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		fmt.Fprint(w, body)
	}
}

func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func TestWebServersAreJudgedByTheirAnswers(t *testing.T) {
	for _, tls := range []bool{false, true} {
		kind := TypeHTTP
		if tls {
			kind = TypeHTTPS
		}
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			asked := make(chan *http.Request, 1)
			w := newWeb(t, tls, func(w http.ResponseWriter, r *http.Request) {
				select {
				case asked <- r:
				default:
				}
				fmt.Fprint(w, "all well")
			})
			probe := fast(kind)
			probe.Interval, probe.Timeout = 200*time.Millisecond, 150*time.Millisecond
			probe.Path, probe.Host, probe.Body = "/health?full=1", "shop.example", "all well"
			p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: probe})
			becomes(t, p, 1, Up, "")
			r := <-asked
			if r.Method != "GET" || r.URL.String() != "/health?full=1" || r.Host != "shop.example" {
				t.Errorf("asked %s %s of %s", r.Method, r.URL, r.Host)
			}
			for _, tc := range []struct {
				handler http.HandlerFunc
				why     string
			}{
				{status(500, "all well"), "status 500, want 200-399"},
				{status(200, "well, well"), `the answer does not contain "all well"`},
				{hang, "no answer in 150ms"},
			} {
				w.handler.Store(&tc.handler)
				becomes(t, p, 1, Down, tc.why)
			}
			well := status(200, "at last all well")
			w.handler.Store(&well)
			becomes(t, p, 1, Up, "")
		})
	}
}

func TestServerThatAcceptsAndNeverAnswersGoesDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts
	must(t, err)
	defer l.Close()
	addr := addrPort(t, l.Addr())
	p := start(t, Options{},
		Target{Key: 1, Addr: addr, Probe: fast(TypeHTTP)},
		Target{Key: 2, Addr: addr, Probe: fast(TypeHTTPS)},
		Target{Key: 3, Addr: addr, Probe: fast(TypeGRPC)},
		Target{Key: 4, Addr: addr, Probe: fast(TypeTCP)})
	becomes(t, p, 1, Down, "connected, but no answer in 80ms")
	becomes(t, p, 2, Down, "no answer in 80ms")
	becomes(t, p, 3, Down, "no answer in 80ms")
	becomes(t, p, 4, Up, "")
}

func TestLongAnswerInPiecesIsRead(t *testing.T) {
	w := newWeb(t, false, func(w http.ResponseWriter, _ *http.Request) {
		for range 30 {
			fmt.Fprintf(w, "%01000d", 0)
			w.(http.Flusher).Flush()
		}
		fmt.Fprint(w, "needle")
	})
	probe := fast(TypeHTTP)
	probe.Interval, probe.Timeout, probe.Body = time.Second, time.Second, "needle"
	p := start(t, Options{}, Target{Key: 1, Addr: addrPort(t, w.Listener.Addr()), Probe: probe})
	becomes(t, p, 1, Up, "")
}

func TestCertificatesAreVerifiedWhenAsked(t *testing.T) {
	w := newWeb(t, true, status(200, ""))
	addr := addrPort(t, w.Listener.Addr())
	verified := fast(TypeHTTPS)
	verified.TLSVerify, verified.ServerName = true, "example.com"
	verified.Interval, verified.Timeout = 200*time.Millisecond, time.Second
	plain := newWeb(t, false, status(200, ""))
	mixed := verified
	mixed.TLSVerify = false
	p := start(t, Options{},
		Target{Key: 1, Addr: addr, Probe: verified},
		Target{Key: 2, Addr: addr, Probe: mixed},
		Target{Key: 3, Addr: addrPort(t, plain.Listener.Addr()), Probe: mixed})
	becomes(t, p, 1, Down, "certificate: certificate signed by unknown authority")
	becomes(t, p, 2, Up, "")
	becomes(t, p, 3, Down, "no TLS is spoken there")
}
