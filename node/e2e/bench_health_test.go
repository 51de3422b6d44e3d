package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/backend"
	"pontoon/internal/lab/traffic"
)

// What the default timers promise: three probes 2 s apart, the last one's timeout of 1 s, and the data plane's 50 ms.
const detectionGoal = 3*2*time.Second + time.Second + 50*time.Millisecond

// How the detection of deaths is measured.
const (
	deathsAtOnce = 5                     // services whose endpoints die beside each other
	newEvery     = 10 * time.Millisecond // new connections to each of them
	newPatience  = time.Second           // of one that gets no answer
	probePhase   = 2 * time.Second       // deaths are spread over it: the default interval
)

// death is one way for an endpoint to be no use any more.
type death struct {
	name, words string
	probe       []string // flags
	hit, heal   func(*testing.B, *lab.Host, *backend.Server)
}

func deaths() []death {
	mode := func(m backend.Mode) func(*testing.B, *lab.Host, *backend.Server) {
		return func(b *testing.B, _ *lab.Host, s *backend.Server) { behave(b, s, backend.Behaviour{Mode: m}) }
	}
	links := func(f func(*lab.Host) error) func(*testing.B, *lab.Host, *backend.Server) {
		return func(b *testing.B, h *lab.Host, _ *backend.Server) {
			if err := f(h); err != nil {
				b.Fatal(err)
			}
		}
	}
	return []death{
		{name: "dies", words: "server dies, port closed; probed by `tcp`", hit: mode(backend.Dead), heal: mode(backend.Well)},
		{name: "hangs", words: "server hangs: accepts, never answers; `http`", probe: []string{"--probe", "http"}, hit: mode(backend.Hangs), heal: mode(backend.Well)},
		{name: "gone", words: "machine gone, no carrier; `tcp`", hit: links((*lab.Host).LinksDown), heal: links((*lab.Host).LinksUp)},
	}
}

// mourned is a service whose first endpoint dies.
type mourned struct {
	name   string
	host   *lab.Host
	server *backend.Server
	at     netip.AddrPort
	news   *traffic.Prober
	stop   context.CancelFunc // of the new connections
	died   time.Time
}

// BenchmarkHealthDetection has endpoints die at default timers, BENCH_HEALTH_ROUNDS (20) of them in each way, while a new
// connection is opened to each of their services every 10 ms, and says how long after the death the last one began that was sent
// to the dead. BENCH_HEALTH_DEATHS picks ways by name. Every second connection goes there, so a figure may be 20 ms too short.
// The table is printed with -v.
func BenchmarkHealthDetection(b *testing.B) {
	table := bgpFigures{head: []string{"death", "rounds", "last misdirected new connection after", "after the verdict", "new connections, of them misdirected", "beyond the goal"}}
	for _, d := range pick(b, "BENCH_HEALTH_DEATHS", deaths(), func(d death, name string) bool { return d.name == name }) {
		b.Run(d.name, func(b *testing.B) {
			l := newCluster(b, lab.Config{Topology: lab.OneLeg, Nodes: 3, Clients: 1, Endpoints: deathsAtOnce + 1})
			cli(b, l.Nodes()[0], "vip", "create", lab.ServiceVIP().String())
			port := uint16(9000)
			for b.Loop() {
				var r detected
				for rounds := fromEnv("BENCH_HEALTH_ROUNDS", 20); rounds > 0; rounds -= deathsAtOnce {
					// New ones each time: who dies again and again is damped, and comes back later.
					services := mournedServices(b, l, d, port, min(rounds, deathsAtOnce))
					port += deathsAtOnce
					r.batch(b, l, d, services)
					for _, s := range services {
						cli(b, l.Nodes()[0], "service", "delete", s.name)
					}
				}
				table.add(r.cells(d)...)
				b.ReportMetric(rank(sorted(r.after), 50), "ms-detection-p50")
				b.ReportMetric(rank(sorted(r.after), 100), "ms-detection-max")
			}
		})
	}
	b.Logf("\n%s\np50 / p90 / p99 / max in milliseconds; the goal is %s.\n", &table, detectionGoal)
}

// mournedServices makes the services, each with an endpoint of its own that dies and a common one that does not.
func mournedServices(b *testing.B, l *lab.Lab, d death, port uint16, count int) (out []*mourned) {
	b.Helper()
	last := l.Endpoints()[deathsAtOnce]
	for _, host := range l.Endpoints()[:count] {
		s := &mourned{name: fmt.Sprintf("web%d", port), host: host, at: netip.AddrPortFrom(host.Addr(), port)}
		s.server = serveBackend(b, host, backend.Config{Kind: backend.TCP}, s.at)
		serveBackend(b, last, backend.Config{Kind: backend.TCP}, netip.AddrPortFrom(last.Addr(), port))
		target := netip.AddrPortFrom(lab.ServiceVIP(), port)
		cli(b, l.Nodes()[0], append([]string{
			"service", "create", s.name, "--vip", target.Addr().String(), "--port", fmt.Sprint(port), "--protocol", "tcp", "--mode", "fullnat",
			"--endpoint", s.at.String(), "--endpoint", endpointAt(last, port),
		}, d.probe...)...)
		var err error
		s.news, err = traffic.NewProber(traffic.ProberConfig{Dial: l.Clients()[0].Dial, Target: target, Interval: newEvery, Timeout: newPatience})
		if err != nil {
			b.Fatal(err)
		}
		var over context.Context
		over, s.stop = context.WithCancel(b.Context())
		background(b, "new connections to "+s.name, func(ctx context.Context) error {
			defer context.AfterFunc(ctx, s.stop)()
			return s.news.Run(over)
		})
		out = append(out, s)
		port++
	}
	return out
}

// detected is what all rounds of one way have shown.
type detected struct {
	after, verdict []time.Duration // the last misdirected new connection, since the death and since the verdict
	ok, failed     int
}

// batch lets the services' endpoints die at moments of their own, waits until all are found, and has them come back.
func (r *detected) batch(b *testing.B, l *lab.Lab, d death, services []*mourned) {
	b.Helper()
	for _, s := range services {
		if foundHealth(b, l, s.at, "up"); s.news.Succeeding(within(b, 30*time.Second), 50) != nil {
			b.Fatalf("new connections to %s fail before anything has died", s.name)
		}
		s.news.Window()
	}
	var moments []time.Duration
	for range services {
		moments = append(moments, rand.N(probePhase))
	}
	slices.Sort(moments)
	began := time.Now()
	for i, s := range services {
		pass(b, time.Until(began.Add(moments[i])))
		s.died = time.Now()
		d.hit(b, s.host, s.server)
	}
	for _, s := range services {
		since := foundHealth(b, l, s.at, "down")
		pass(b, max(0, time.Until(since.Add(newPatience+200*time.Millisecond)))) // for those that still wait for an answer
		res := s.news.Result()
		if res.Failed == 0 {
			b.Errorf("nothing was sent to the dead endpoint of %s", s.name)
			continue
		}
		r.after = append(r.after, res.LastFailed.Sub(s.died))
		r.verdict = append(r.verdict, res.LastFailed.Sub(since))
		r.ok, r.failed = r.ok+res.OK, r.failed+res.Failed
		b.Logf("%s: the last misdirected connection %s after the death, %s after the verdict; %d of %d", s.name,
			res.LastFailed.Sub(s.died).Round(time.Millisecond), res.LastFailed.Sub(since).Round(time.Millisecond), res.Failed, res.OK+res.Failed)
	}
	for _, s := range services {
		s.stop()
		d.heal(b, s.host, s.server)
	}
}

// foundHealth waits until every node says so of an endpoint and has carried it out, and returns since when it is so.
func foundHealth(b *testing.B, l *lab.Lab, at netip.AddrPort, health string) (since time.Time) {
	b.Helper()
	for _, n := range l.Nodes() {
		eventually(b, 60*time.Second, fmt.Sprintf("%s to be %s for %s", at, health, n.Name()), func(ctx context.Context) error {
			s, err := n.Status(ctx)
			if err != nil {
				return err
			}
			for _, svc := range s.Services {
				for _, e := range svc.Endpoints {
					if e.Address == at {
						since = e.Since
					}
				}
			}
			return s.CheckEndpoint(at, health)
		})
	}
	return since
}

func (r *detected) cells(d death) []string {
	late := 0
	for _, a := range r.after {
		if a > detectionGoal {
			late++
		}
	}
	return []string{
		d.words, fmt.Sprint(len(r.after)), spread(sorted(r.after)), spread(sorted(r.verdict)),
		fmt.Sprintf("%d, %d", r.ok+r.failed, r.failed), fmt.Sprintf("%d of %d", late, len(r.after)),
	}
}
