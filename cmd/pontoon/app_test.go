package main

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/web"
)

// testApp is an app with its output in buffers and an environment of its own.
func testApp(env map[string]string) (a *app, out, errOut *bytes.Buffer) {
	out, errOut = &bytes.Buffer{}, &bytes.Buffer{}
	return &app{
		in: strings.NewReader(""), out: out, err: errOut,
		getenv: func(key string) string { return env[key] },
	}, out, errOut
}

func execute(ctx context.Context, a *app, args ...string) error {
	root := newRoot(a)
	root.SetArgs(args)
	return root.ExecuteContext(ctx)
}

// startFake serves a made-up node and returns an environment that names it.
func startFake(t *testing.T, d *fakeDaemon) map[string]string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "p.sock")
	stop, err := serveFake(socket, d, web.Access{Level: web.AccessFull})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return map[string]string{"PONTOON_SOCKET": socket}
}

// lineWaiter is a writer that ends a context when a text was written.
type lineWaiter struct {
	bytes.Buffer
	want   string
	cancel context.CancelFunc
}

func (w *lineWaiter) Write(p []byte) (int, error) {
	n, err := w.Buffer.Write(p)
	if strings.Contains(w.String(), w.want) {
		w.cancel()
	}
	return n, err
}

// watching runs a command that goes on until interrupted, and interrupts it
// when it has written want.
func watching(t *testing.T, env map[string]string, want string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	a, _, _ := testApp(env)
	w := &lineWaiter{want: want, cancel: cancel}
	a.out = w
	if err := execute(ctx, a, args...); err != nil {
		t.Fatalf("pontoon %s: %v", strings.Join(args, " "), err)
	}
	if !strings.Contains(w.String(), want) {
		t.Fatalf("pontoon %s never wrote %q, but:\n%s", strings.Join(args, " "), want, w.String())
	}
	return w.String()
}

func TestEventsFollowShowsWhatWasAndWhatComes(t *testing.T) {
	for _, format := range []string{formatTable, formatJSON, formatYAML} {
		t.Run(format, func(t *testing.T) {
			d := newFakeCluster()
			env := startFake(t, d)
			d.happen(web.Event{Time: time.Now(), Kind: web.EventJoin, Node: "lb2", Text: "lb2 joined"})
			done := make(chan struct{})
			timer := time.AfterFunc(100*time.Millisecond, func() {
				defer close(done)
				d.happen(web.Event{Time: time.Now(), Kind: web.EventVerdict, Node: "lb3", Text: "lb3 is dead"})
			})
			t.Cleanup(func() {
				if !timer.Stop() {
					<-done
				}
			})
			got := watching(t, env, "lb3 is dead", "events", "--follow", "-o", format)
			if !strings.Contains(got, "lb2 joined") {
				t.Errorf("what was before is missing:\n%s", got)
			}
			if format == formatJSON && strings.Count(got, "\n") != 2 {
				t.Errorf("want one object per line:\n%s", got)
			}
		})
	}
}

func TestStatusWatchGoesOnUntilInterrupted(t *testing.T) {
	d := newFakeCluster()
	env := startFake(t, d)
	got := watching(t, env, "}\n{", "status", "--watch", "-o", "json")
	if n := strings.Count(got, "\n"); n < 2 {
		t.Errorf("%d lines, want an object per line:\n%s", n, got)
	}
}

func TestServerIsUsedWithTokenAndCA(t *testing.T) {
	d := newFakeCluster()
	h, err := web.NewHandler(web.Config{Backend: d, Ops: d, Access: web.Access{Level: web.AccessRemote, Token: "secret-api-token"}})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(h)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a client that hangs up is what one case is about
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.crt")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, block, 0o600); err != nil {
		t.Fatal(err)
	}

	for name, c := range map[string]struct {
		env  map[string]string
		args []string
		want string // in the error; "" is success
	}{
		"environment": {map[string]string{"PONTOON_API_TOKEN": "secret-api-token"}, []string{"--ca", ca}, ""},
		"flag":        {nil, []string{"--ca", ca, "--token", "secret-api-token"}, ""},
		"no token":    {nil, []string{"--ca", ca}, "wants the API token: set PONTOON_API_TOKEN"},
		"wrong token": {nil, []string{"--ca", ca, "--token", "x"}, "does not accept this API token"},
		"unknown CA":  {nil, []string{"--token", "secret-api-token"}, "with --ca"},
	} {
		t.Run(name, func(t *testing.T) {
			a, out, _ := testApp(c.env)
			err := execute(t.Context(), a, append([]string{"node", "list", "--server", server.URL + "/"}, c.args...)...)
			switch {
			case c.want == "" && err != nil:
				t.Fatal(err)
			case c.want == "" && !strings.Contains(out.String(), "192.168.80.11:7400"):
				t.Errorf("no nodes in:\n%s", out)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error %v, want %q in it", err, c.want)
			}
		})
	}
}

func TestTokenIsNotCarriedAlongARedirect(t *testing.T) {
	var reached bool
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached = true }))
	t.Cleanup(other.Close)
	first := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusTemporaryRedirect))
	t.Cleanup(first.Close)
	a, _, _ := testApp(nil)
	if err := execute(t.Context(), a, "status", "--server", first.URL, "--token", "x"); err == nil {
		t.Error("a redirect was taken for an answer")
	}
	if reached {
		t.Error("the redirect was followed")
	}
}

func TestASilentDaemonIsNotWaitedForForEver(t *testing.T) {
	release := make(chan struct{})
	socket := filepath.Join(t.TempDir(), "p.sock")
	stop, err := serve("unix", socket, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	t.Cleanup(func() { close(release) })
	_, err = unixAPI(socket).call(t.Context(), http.MethodGet, "/v1/status", nil, 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "did not answer within 50ms") {
		t.Errorf("error %v", err)
	}
}

func TestADaemonThatDiesIsTold(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "p.sock")
	stop, err := serve("unix", socket, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	_, err = unixAPI(socket).get(t.Context(), "/v1/status")
	if err == nil || !strings.Contains(err.Error(), "went away before it answered") {
		t.Errorf("error %v", err)
	}
}

func TestSocketWithoutPermissionIsTold(t *testing.T) {
	err := unixAPI("/s").explainSocket(os.ErrPermission)
	if !strings.Contains(err.Error(), "no permission to use /s: run as root") {
		t.Errorf("error %v", err)
	}
}

func TestEventStreamFields(t *testing.T) {
	const text = ": hello\nevent: a\ndata: 1\ndata: 2\nid: 7\n\nevent: empty\n\ndata:3\r\n\n"
	var got []string
	err := readEvents(strings.NewReader(strings.ReplaceAll(text, "\r\n", "\n")), func(event string, data []byte) error {
		got = append(got, event+"="+string(data))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := "a=1\n2|=3"; strings.Join(got, "|") != want {
		t.Errorf("events %q, want %q", got, want)
	}
	enough := errors.New("enough")
	if err := readEvents(strings.NewReader(text), func(string, []byte) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the handler's error is %v", err)
	}
	if err := readEvents(io.MultiReader(strings.NewReader("data: 1\n\n"), brokenReader{}), func(string, []byte) error { return nil }); err == nil {
		t.Error("a broken stream is no error")
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }
