package web

import (
	"context"
	"fmt"
	"net"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"pontoon/fsm"
)

// browser is one page in a headless Chromium that remembers what it should not
// have done.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu       sync.Mutex
	console  []string
	requests []string
}

// newBrowser starts Chromium, or skips where there is none.
func newBrowser(t *testing.T, width, height int64) *browser {
	t.Helper()
	path, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
			t.Fatal("chromium is needed: install the Debian package chromium")
		}
		t.Skip("no chromium here")
	}
	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()), chromedp.Env("TMPDIR="+t.TempDir()), chromedp.WindowSize(int(width), int(height)),
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.Flag("disable-background-networking", true),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-sync", true))
	ctx, cancelAll := chromedp.NewExecAllocator(context.Background(), opts...)
	t.Cleanup(cancelAll)
	ctx, cancel := chromedp.NewContext(ctx)
	t.Cleanup(func() {
		end, cancelEnd := context.WithTimeout(ctx, 10*time.Second)
		defer cancelEnd()
		if err := chromedp.Cancel(end); err != nil { // waits until Chromium is gone
			t.Logf("close chromium: %v", err)
		}
		cancel()
	})
	b := &browser{t: t}
	if err := chromedp.Listen(ctx, b.observe); err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	var cancelTime context.CancelFunc
	b.ctx, cancelTime = context.WithTimeout(ctx, 90*time.Second)
	t.Cleanup(cancelTime)
	viewport := []chromedp.EmulateViewportOption{}
	if width < 700 {
		viewport = append(viewport, chromedp.EmulatePortrait, chromedp.EmulateMobile, chromedp.EmulateTouch)
	}
	b.do(chromedp.EmulateViewport(width, height, viewport...))
	return b
}

func (b *browser) observe(ev any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch ev := ev.(type) {
	case *runtime.EventConsoleAPICalled:
		b.console = append(b.console, fmt.Sprintf("%s %v", ev.Type, ev.Args))
	case *runtime.EventExceptionThrown:
		b.console = append(b.console, fmt.Sprint(ev.ExceptionDetails.Text))
	case *log.EventEntryAdded:
		b.console = append(b.console, fmt.Sprintf("%s %s %s", ev.Entry.Level, ev.Entry.Text, ev.Entry.URL))
	case *network.EventRequestWillBeSent:
		b.requests = append(b.requests, ev.Request.URL)
	}
}

func (b *browser) do(actions ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		b.t.Fatalf("browser: %v", err)
	}
}

// dark makes the page believe in a dark colour scheme.
func dark(ctx context.Context, t *chromedp.Target) (chromedp.Void, error) {
	_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: "dark"}},
	})
	return chromedp.Void{}, err
}

// eval runs an expression on the page.
func eval[T any](b *browser, expr string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expr))
	if err != nil {
		b.t.Fatalf("evaluate %s: %v", expr, err)
	}
	return v
}

// until polls the page until an expression is true.
func (b *browser) until(what, expr string) {
	b.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	deadline := time.Now().Add(20 * time.Second)
	for !eval[bool](b, "Boolean("+expr+")") {
		if time.Now().After(deadline) {
			b.t.Fatalf("the page never got there: %s; it says: %s", what, eval[string](b, "document.body.innerText"))
		}
		<-tick.C
	}
}

// innocent fails when the page complained or looked elsewhere.
func (b *browser) innocent(server string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.console) > 0 {
		b.t.Errorf("the console says %q", b.console)
	}
	home, err := url.Parse(server)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, r := range b.requests {
		if u, err := url.Parse(r); err != nil || u.Host != home.Host {
			b.t.Errorf("the page asked %s", r)
		}
	}
}

// picture keeps a screenshot of the whole page: in PONTOON_ARTIFACTS if that is
// set, else, of a failure only, where go test -artifacts keeps what tests leave.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("PONTOON_ARTIFACTS")
	if dir == "" && !b.t.Failed() {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		b.t.Logf("no screenshot: %v", err)
		return
	}
	if dir == "" {
		dir = b.t.ArtifactDir() // kept with go test -artifacts
	}
	file := filepath.Join(dir, strings.ReplaceAll(name, "/", "-")+".png")
	if err := os.WriteFile(file, png, 0o600); err != nil {
		b.t.Logf("no screenshot: %v", err)
		return
	}
	b.t.Logf("screenshot: %s", file)
}

// fits fails when something sticks out to the side.
func (b *browser) fits() {
	b.t.Helper()
	wide := eval[[]string](b, `[...document.querySelectorAll("body *")]
		.filter(e => !e.closest("svg, table:not(.slim) thead") && !e.matches(".skip") && e.getClientRects().length && e.getBoundingClientRect().right > innerWidth + 1)
		.map(e => e.tagName + "." + e.className + " " + e.textContent.slice(0, 40))`)
	wide = append(wide, eval[[]string](b, `[...document.querySelectorAll(".panel")].filter(e => e.scrollWidth > e.clientWidth)
		.map(e => "scrolls: " + e.textContent.slice(0, 40))`)...)
	if over := eval[int](b, "document.documentElement.scrollWidth - innerWidth"); over > 0 || len(wide) > 0 {
		b.t.Errorf("the page is %d px too wide: %q", over, wide)
	}
}

func TestPageIsLiveInABrowser(t *testing.T) {
	for _, c := range []struct {
		name          string
		width, height int64
		dark          bool
	}{{"phone", 390, 844, false}, {"tablet", 800, 1100, false}, {"desk", 1280, 900, true}} {
		t.Run(c.name, func(t *testing.T) {
			backend, ops := world(t)
			busy(t, backend)
			srv := httptest.NewServer(handlerAt(t, backend, ops, AccessLocal))
			t.Cleanup(srv.Close)
			b := newBrowser(t, c.width, c.height)
			t.Cleanup(func() { b.picture(t.Name()) }) // before the browser goes
			if c.dark {
				b.do(dark)
			}
			b.do(chromedp.Navigate(srv.URL))

			if os.Getenv("PONTOON_ARTIFACTS") != "" { // a picture with some history in its charts
				b.until("history", `document.querySelector("#flows polyline")?.points.numberOfItems > 16`)
			}
			const master = `document.querySelector("#instances tbody tr td:nth-child(2)")?.innerText.trim()`
			b.until("lb1 is master", master+` === "lb1"`)
			b.until("live", `document.querySelector("#live").dataset.state === "live"`)
			b.until("the headline", `document.querySelector("h1").innerText === "3 of 3 nodes healthy, lb1 leads"`)
			b.until("a note on a session", `document.querySelector("#notes").innerText.includes("BGP with 192.168.180.1 is not established (connect)")`)
			b.until("what becomes of a VIP without a quorum",
				`document.querySelector("#instances").innerText.includes("2001:db8:8000:4000:2000:1000:800:400 held without quorum")`)
			b.until("a service in full", `[
				"[2001:db8:8000:4000:2000:1000:800:400]:50000-50100/sctp",
				"dsr by ipip · lc · client affinity 3h · idle 1h · drain 10m · instance default", "draining until ",
			].every((s) => document.querySelector("#services article:last-child").innerText.includes(s))`)
			b.until("an endpoint that is down, and why", `[
				/192\.168\.200\.201:65432\s+draining\s*down\s*flapping\s*certificate: x509: .* not 192\.168\.200\.201, since [\d:]+/, /· not probed/,
			].every((s) => s.test(document.querySelector("#services").innerText))`)
			b.until("traffic and its rates", `[
				/storefront-production-eu-west-checkout\s+active 181[.\d]*K\s+new [\d.,]+\/s\s+in [\d.]+ [kM]bit\/s\s+out 0 bit\/s/,
				innerWidth > 900 && /192\.168\.200\.202:65432\s+180,000\s+[\d.,]+\/s\s+[\d.,]+K? in all\s+[\d.]+ Mbit\/s · [\d,]+ packets\/s\s+[\d.]+ MB · [\d.,]+K? packets/,
			].filter(Boolean).every((s) => s.test(document.querySelector("#traffic").innerText))`)
			b.until("a timeline", `/default\s+lb2 → lb1\s*its data plane was silent\s+58 ms\s+63 ms\s+–\s+75 ms\s+79 ms\s+83 ms/.test(document.querySelector("#failovers").innerText)`)
			b.until("address pools", `[
				/long-name-of-a-pool-for-storefronts · default\s*2001:db8:8000:4000:2000:1000:900:0-2001:db8:8000:4000:2000:1000:900:ffff\s+storefront-production-eu-west by l2\s+0 of 65,536\s+0\s+65,536/,
				/spent\s*192\.168\.182\.4\/31\s*192\.168\.183\.1\s+default by l2\s+2 of 3\s+1\s+exhausted/,
			].every((s) => s.test(document.querySelector("#pools").innerText))`)
			b.until("a note on a pool", `document.querySelector("#notes").innerText.includes("Pool spent has no free address left")`)
			b.until("BGP sessions", `[
				/2001:db8:8000:4000:2000:1000:800:1\s*AS 4294967294 · 192\.0\.2\.254\s+established since [\d:]+\s+up\s+16,384\s+1,048,576\s*12 let in\s+3/,
				/192\.168\.180\.1\s*AS 65101\s+connect\s*no answer from 192\.168\.180\.1:179: the password may differ, or it is out of reach\s+off\s+0\s+0/,
			].every((s) => s.test(document.querySelector("#bgp").innerText))`)
			b.until("who serves without a master", `/wide\s+all\s[\s\S]*192\.168\.181\.1 by BGP/.test(document.querySelector("#instances").innerText)`)
			b.until("events", `document.querySelector("#events").innerText.includes("lb1 is master of default")`)
			b.fits()

			if _, err := backend.Propose(t.Context(), fsm.NodeVerdict{Node: "lb1"}); err != nil {
				t.Fatal(err)
			}
			backend.happen(Event{Time: time.Now(), Kind: EventFailover, Instance: "default", Text: "lb2 took over default"})
			next, _ := backend.State().Instance(fsm.DefaultInstance)
			b.until("the new master", fmt.Sprintf(`%s === %q`, master, next.Master))
			b.until("the headline", `document.querySelector("h1").innerText.startsWith("2 of 3 nodes healthy")`)
			b.until("the event", `document.querySelector("#events li").innerText.includes("lb2 took over default")`)
			b.until("the level", `document.querySelector("#headline").dataset.level === "warn"`)
			b.fits()
			b.innocent(srv.URL)
		})
	}
}

// busy makes the cluster look like a real one: long names and addresses, figures
// that change, and something of everything.
func busy(t *testing.T, b *fakeBackend) {
	t.Helper()
	vip := netip.MustParseAddr("192.168.180.201")
	vip6 := netip.MustParseAddr("2001:db8:8000:4000:2000:1000:800:400")
	for _, cmd := range []fsm.Command{
		fsm.PutInstance{Name: "storefront-production-eu-west"},
		fsm.PutVIP{VIP: fsm.VIP{Address: vip, Instance: "storefront-production-eu-west"}},
		fsm.PutService{Service: fsm.Service{
			Name: "storefront-production-eu-west-checkout", VIP: vip, Port: 65443, Protocol: fsm.UDP, Mode: fsm.ModeDNAT, Algorithm: fsm.Maglev,
			Endpoints: []fsm.Endpoint{
				{Address: netip.MustParseAddrPort("192.168.200.201:65432"), Weight: 100, Admin: fsm.AdminDrain},
				{Address: netip.MustParseAddrPort("192.168.200.202:65432"), Weight: 100, Admin: fsm.AdminUp},
			},
		}},
		fsm.PutVIP{VIP: fsm.VIP{Address: vip6, OnQuorumLoss: fsm.QuorumHold}},
		fsm.PutPool{Pool: fsm.Pool{
			Name: "long-name-of-a-pool-for-storefronts", Instance: "storefront-production-eu-west", Default: true,
			Ranges: []fsm.AddressRange{{First: netip.MustParseAddr("2001:db8:8000:4000:2000:1000:900:0"), Last: netip.MustParseAddr("2001:db8:8000:4000:2000:1000:900:ffff")}},
		}},
		fsm.PutPool{Pool: fsm.Pool{
			Name: "spent", CIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.182.4/31")},
			Ranges:       []fsm.AddressRange{{First: netip.MustParseAddr("192.168.183.1"), Last: netip.MustParseAddr("192.168.183.1")}},
			Reservations: []fsm.Reservation{{Address: netip.MustParseAddr("192.168.183.1")}},
		}},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.182.4")}},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.182.5")}},
		fsm.PutInstance{Name: "wide", Kind: fsm.InstanceECMP},
		fsm.PutVIP{VIP: fsm.VIP{Address: netip.MustParseAddr("192.168.181.1"), Instance: "wide", Announce: fsm.AnnounceBGP}},
		fsm.PutService{Service: fsm.Service{
			Name: "zz-media", VIP: vip6, Port: 50000, PortEnd: 50100, Protocol: fsm.SCTP, Mode: fsm.ModeDSR, Tunnel: fsm.TunnelIPIP,
			Algorithm: fsm.LeastConnections, Affinity: fsm.AffinityClientIP, DrainTimeout: fsm.Duration(10 * time.Minute),
			Endpoints: []fsm.Endpoint{{
				Address: netip.MustParseAddrPort("[2001:db8:8000:4000:2000:1000:800:401]:50000"), Weight: 100,
				Admin: fsm.AdminDrain, DrainUntil: time.Now().Add(10 * time.Minute),
			}},
		}},
	} {
		if _, err := b.Propose(t.Context(), cmd); err != nil {
			t.Fatal(err)
		}
	}
	runtime, n, start := b.runtime, uint64(0), time.Now()
	b.runtime = func(st *Status) {
		runtime(st)
		n++
		if len(st.Nodes) > 0 && !st.Nodes[0].Alive { // then another leads
			st.Cluster.Leader, st.Nodes[0].Raft, st.Nodes[1].Raft, st.Self = "lb2", RaftVoter, RaftLeader, "lb2"
		}
		st.Flows.Established, st.Flows.Owned = 181_234+n*n%7*1500, 181_234+n*n%7*1500
		st.Flows.Adopted = 1_204_331
		st.Replication[0].LagMS = float64(n*n%11) * 1.3
		st.Replication[0].Sent, st.Replication[0].Acked = 123_456_789+n*40, 123_456_750+n*40
		st.Replication[1].Dropped = 12_345
		for i := range st.Services {
			if len(st.Services[i].Endpoints) > 1 && st.Services[i].Name != "web" {
				st.Services[i].Flows = 181_222
				dead := &st.Services[i].Endpoints[0]
				dead.Flows, dead.Health, dead.HealthSince, dead.Flapping = 1_222, EndpointDown, start, true
				dead.HealthError = "certificate: x509: certificate is valid for storefront-production-eu-west.example, not 192.168.200.201"
				st.Services[i].Endpoints[1].Flows = 180_000
				steps := uint64(time.Since(start).Seconds() * 2) // a steady stream, however often it is looked at
				grown := Traffic{Active: 180_000, New: 50_000 + 1000*steps, ForwardPackets: 90_000 + 2000*steps, ForwardBytes: 54_000_000 + 600_000*steps}
				st.Services[i].Endpoints[1].Traffic = grown
				grown.Active = 181_222
				st.Services[i].Traffic = grown
			}
		}
		st.BFD = []BFDSession{{Peer: "lb2", Address: "192.168.80.12", State: "up", IntervalMS: 50, Multiplier: 3}}
		st.BGP = []BGPPeer{
			{
				Peer: "2001:db8:8000:4000:2000:1000:800:1", Node: "lb1", AS: 4294967294, State: BGPEstablished, Since: start, RouterID: "192.0.2.254",
				Advertised: 16384, Received: 1048576, Accepted: 12, Flaps: 3, In: n, Out: n, BFD: BGPBFDUp,
			},
			{
				Peer: "192.168.180.1", Node: "lb1", AS: 65101, State: BGPConnect, BFD: BGPBFDOff,
				Error: "no answer from 192.168.180.1:179: the password may differ, or it is out of reach",
			},
		}
		for i := range st.Instances { // as elections see it, whichever version this is built with
			if st.Instances[i].Kind == fsm.InstanceECMP {
				st.Instances[i].Master, st.Instances[i].Succession = "", []fsm.NodeID{"lb1", "lb2", "lb3"}
			}
		}
		st.Warnings = []string{"eth2 has no address: gateway VIPs cannot be placed on it."}
	}
}

// Rates are means of the last seconds, also when messages come seldom or totals begin anew.
func TestPageTellsRatesOfTotals(t *testing.T) {
	backend, ops := world(t)
	srv := httptest.NewServer(handlerAt(t, backend, ops, AccessLocal))
	t.Cleanup(srv.Close)
	b := newBrowser(t, 1280, 900)
	b.do(chromedp.Navigate(srv.URL))
	b.until("the module", `(window.Rates !== undefined) || import("/static/rates.js").then((m) => { window.Rates = m.Rates; }) && false`)
	of := func(of string) string {
		return eval[string](b, `(() => {
			const r = new Rates(), t = (n) => ({ new: n, forward_packets: 0, forward_bytes: 0, reply_packets: 0, reply_bytes: 0 });
			`+of+`})()`)
	}
	for _, row := range []struct{ name, script, want string }{
		{"nothing after one message", `r.note(100, [["a", t(5)]]); return String(r.of("a", 100.5));`, "null"},
		{"nothing of a stranger", `return String(r.of("a", 100));`, "null"},
		{"steady", `for (let i = 0; i <= 40; i++) r.note(100 + i / 2, [["a", t(i * 10)]]); return String(r.of("a", 120).new);`, "20"},
		{"young", `for (let i = 0; i <= 4; i++) r.note(100 + i / 2, [["a", t(i * 10)]]); return String(r.of("a", 102).new);`, "20"},
		{"falls in silence", `r.note(100, [["a", t(0)]]); r.note(100.5, [["a", t(50)]]); return [102, 105, 107].map((n) => r.of("a", n).new).join();`, "25,10,0"},
		{"a step after silence", `r.note(100, [["a", t(0)]]); r.note(200, [["a", t(50)]]); return [200, 204, 206].map((n) => r.of("a", n).new).join();`, "10,10,0"},
		{"begins anew", `r.note(100, [["a", t(900)]]); r.note(101, [["a", t(3)]]); r.note(102, [["a", t(7)]]); return String(r.of("a", 102).new);`, "4"},
		{"what is not named is forgotten", `r.note(100, [["a", t(1)]]); r.note(103, []); return String(r.of("a", 103));`, "null"},
	} {
		if got := of(row.script); got != row.want {
			t.Errorf("%s: %s, want %s", row.name, got, row.want)
		}
	}
	b.innocent(srv.URL)
}

// A service's endpoints are shown or hidden by a click, and stay so while figures change.
func TestPageOpensTrafficOfAService(t *testing.T) {
	for name, row := range map[string]struct {
		width int64
		open  bool // from the start, as there is room for few endpoints
	}{"desk": {1280, true}, "phone": {390, false}} {
		t.Run(name, func(t *testing.T) {
			backend, ops := world(t)
			busy(t, backend)
			srv := httptest.NewServer(handlerAt(t, backend, ops, AccessLocal))
			t.Cleanup(srv.Close)
			b := newBrowser(t, row.width, 844)
			t.Cleanup(func() { b.picture(t.Name()) })
			b.do(chromedp.Navigate(srv.URL))
			const service = `document.querySelector("#traffic [data-service=storefront-production-eu-west-checkout]")`
			for i, open := range []bool{row.open, !row.open, row.open, true} {
				if i > 0 && open != eval[bool](b, service+".open") {
					eval[bool](b, service+`.querySelector("summary").focus(), `+service+`.querySelector("summary").click(), true`)
				}
				b.until("open or not", fmt.Sprintf(`%s?.open === %t && %[1]s.innerText.includes("192.168.200.202") === %[2]t`, service, open))
				before := eval[string](b, service+`.innerText`)
				b.until("new figures", fmt.Sprintf(`%s.innerText !== %q && %[1]s.open === %[3]t`, service, before, open))
				b.fits()
			}
			b.until("the focus stays", `document.activeElement === `+service+`.querySelector("summary")`)
			b.innocent(srv.URL)
		})
	}
}

func TestPageInNoClusterNamesTheCommands(t *testing.T) {
	backend, ops := world(t)
	backend.err = ErrNoCluster
	srv := httptest.NewServer(handlerAt(t, backend, ops, AccessLocal))
	t.Cleanup(srv.Close)
	b := newBrowser(t, 390, 844)
	t.Cleanup(func() { b.picture(t.Name()) })
	b.do(chromedp.Navigate(srv.URL))
	b.until("live", `document.querySelector("#live").dataset.state === "live"`)
	b.until("the commands", `["pontoon init", "pontoon join"].every(c => document.querySelector("#no-cluster").innerText.includes(c))`)
	b.fits()
	backend.set(func(b *fakeBackend) { b.err = nil })
	b.until("the cluster after it was joined", `document.querySelector("#no-cluster").hidden && document.querySelector("#nodes").innerText.includes("lb3")`)
	b.innocent(srv.URL)
}

func TestPageTellsWhenItsStreamIsLost(t *testing.T) {
	backend, ops := world(t)
	srv := httptest.NewServer(handlerAt(t, backend, ops, AccessLocal))
	t.Cleanup(srv.Close)
	again := httptest.NewUnstartedServer(handlerAt(t, backend, ops, AccessLocal))
	t.Cleanup(again.Close) // after the browser has gone: its streams keep a server open
	b := newBrowser(t, 1280, 900)
	t.Cleanup(func() { b.picture(t.Name()) })
	b.do(chromedp.Navigate(srv.URL))
	b.until("live", `document.querySelector("#live").dataset.state === "live"`)
	addr := srv.Listener.Addr().String()
	if err := srv.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	srv.CloseClientConnections()
	b.until("lost", `document.querySelector("#live").innerText.startsWith("reconnecting… this is ")`)
	b.until("the content is shown as old", `document.querySelector("#content").classList.contains("stale")`)
	b.until("the old content stays", `document.querySelector("#nodes").innerText.includes("lb3")`)

	back, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Listener.Close(); err != nil {
		t.Fatal(err)
	}
	again.Listener = back
	again.Start()
	b.until("live again", `document.querySelector("#live").dataset.state === "live" && !document.querySelector("#content").classList.contains("stale")`)
}
