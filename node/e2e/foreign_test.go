package e2e

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// declareForeign makes the services for programs that are not ours: iperf3 and
// socat on the first endpoint, UDP on all.
func declareForeign(t testing.TB, l *lab.Lab, mode string, gateway bool) {
	t.Helper()
	n := l.Nodes()[1]
	vip := lab.ServiceVIP().String()
	cli(t, n, "vip", "create", vip)
	if gateway {
		cli(t, n, "vip", "create", lab.GatewayVIP().String(), "--kind", "gateway")
	}
	service := func(name, protocol string, port uint16, endpoints ...*lab.Host) {
		args := []string{"service", "create", name, "--vip", vip, "--port", fmt.Sprint(port), "--protocol", protocol, "--mode", mode}
		for _, ep := range endpoints {
			args = append(args, "--endpoint", netip.AddrPortFrom(ep.Addr(), port).String())
		}
		cli(t, n, args...)
	}
	service("iperf", "tcp", iperfPort, l.Endpoints()[0])
	service("echo", "tcp", echoPort, l.Endpoints()[0])
	service("udp", "udp", udpPort, l.Endpoints()...)
	waitApplied(t, l)
}

func TestForeignProgramsOutliveTheirLoadBalancer(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		topology lab.Topology
		mode     string
	}{
		{"fullnat in one subnet", lab.OneLeg, "fullnat"},
		{"fullnat across two subnets", lab.TwoLeg, "fullnat"},
		{"dnat across two subnets", lab.TwoLeg, "dnat"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel() // each mostly waits for iperf3 to end
			l := newCluster(t, lab.Config{Topology: tc.topology, Nodes: 3, Clients: 1, Endpoints: 2, NodeArgs: longGrace()})
			ep := l.Endpoints()[0]
			start(t, ep, nil, "iperf3", "--server", "--port", fmt.Sprint(iperfPort))
			start(t, ep, nil, "socat", fmt.Sprintf("TCP-LISTEN:%d,fork,reuseaddr", echoPort), "PIPE")
			for _, h := range l.Endpoints() {
				udpEcho(t, h)
			}
			declareForeign(t, l, tc.mode, tc.topology == lab.TwoLeg)
			echo := startEcho(t, l)
			echo.talk(t)
			udp := talkUDP(t, l, 20)
			udp.goOn(t)

			t.Run("the daemon's death", func(t *testing.T) {
				m := master(t, l, "")
				run := startIperf(t, l)
				pass(t, 2*time.Second)
				if err := m.Kill(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				echo.talk(t)
				pass(t, 2*time.Second)
				if err := m.Start(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				for i, b := range run.finish(t) {
					if b == 0 {
						t.Errorf("iperf3 carried nothing in half second %d", i)
					}
				}
				waitEvent(t, m, "data_plane", "adopted")
				waitHealthy(t, l)
				echo.talk(t)
				udp.goOn(t)
				if now := master(t, l, ""); now != m {
					t.Errorf("%s became master", now.Name())
				}
			})
			t.Run("the machine's death", func(t *testing.T) {
				m := master(t, l, "")
				run := startIperf(t, l)
				pass(t, 2*time.Second)
				if err := m.PowerOff(within(t, 5*time.Second)); err != nil {
					t.Fatal(err)
				}
				next := master(t, l, m.Name())
				took := time.Since(run.from)
				echo.talk(t)
				udp.goOn(t)
				intervals := run.finish(t)
				// TCP tries again within as long again as it was silent.
				from := int(2*(took+2*time.Second)/time.Second) + 1
				for i, b := range intervals {
					if i >= from && b == 0 {
						t.Errorf("iperf3 carried nothing in half second %d, %s is master since %s", i, next.Name(), took)
					}
				}
				echo.talk(t)
			})
		})
	}
}
