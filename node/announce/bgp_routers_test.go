package announce

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"pontoon/internal/roottest"
)

// startIn starts a program in a namespace and ends it with the test.
func startIn(t *testing.T, ns, path string, args ...string) {
	t.Helper()
	cmd := exec.Command("nsenter", append([]string{"--net=" + filepath.Join("/run/netns", ns), path}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// frr is FRRouting's bgpd, with zebra to know the links.
type frr struct {
	t   *testing.T
	dir string
	as  uint32
}

func startFRR(t *testing.T, ns string, as uint32) bgpRouter {
	t.Helper()
	roottest.NeedProgram(t, "/usr/lib/frr/bgpd")
	dir, err := os.MkdirTemp("/run", "ptfrr")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	var b strings.Builder
	fmt.Fprintf(&b, "log file %s informational\n", filepath.Join(dir, "bgpd.log"))
	fmt.Fprintf(&b, "router bgp %d\n bgp log-neighbor-changes\n bgp router-id 10.98.0.2\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n no bgp network import-check\n", as)
	for _, n := range []netip.Addr{nodeAddr4, nodeAddr6} {
		fmt.Fprintf(&b, " neighbor %v remote-as 65001\n neighbor %v timers 3 9\n neighbor %v timers connect 1\n neighbor %v password secret\n", n, n, n, n)
	}
	if as != 65001 {
		fmt.Fprintf(&b, " neighbor %v ttl-security hops 1\n", nodeAddr6)
	}
	for family, prefix := range map[string]string{"ipv4": "198.51.100.0/24", "ipv6": "2001:db8:5::/48"} {
		fmt.Fprintf(&b, " address-family %s unicast\n  network %s\n  neighbor %v activate\n  neighbor %v activate\n exit-address-family\n",
			family, prefix, nodeAddr4, nodeAddr6)
	}
	must(t, os.WriteFile(filepath.Join(dir, "bgpd.conf"), []byte(b.String()), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "zebra.conf"), []byte("hostname router\n"), 0o644))
	roottest.Own(t, dir, "frr")
	for _, name := range []string{"zebra", "bgpd"} {
		startIn(t, ns, "/usr/lib/frr/"+name, "-f", filepath.Join(dir, name+".conf"), "-i", filepath.Join(dir, name+".pid"),
			"-z", filepath.Join(dir, "zserv.api"), "--vty_socket", dir, "-A", "127.0.0.1", "-P", "0", "-u", "frr", "-g", "frr")
		roottest.Eventually(t, name+" listens", func() bool { return exists(filepath.Join(dir, name+".vty")) })
	}
	return &frr{t: t, dir: dir, as: as}
}

func (f *frr) vtysh(commands ...string) []byte {
	args := []string{"--vty_socket", f.dir, "-d", "bgpd"}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, _ := exec.Command("vtysh", args...).Output() // what it does not say is not there
	return out
}

func familyWord(v6 bool) string {
	if v6 {
		return "ipv6"
	}
	return "ipv4"
}

func (f *frr) path(prefix string, from netip.Addr) (atRouter, bool) {
	var answer struct {
		Paths []struct {
			ASPath         struct{ String string }
			Metric, LocPrf int
			Community      struct{ List []string }
			LargeCommunity struct{ List []string }
			Nexthops       []struct{ IP string }
			Peer           struct{ PeerID string }
		}
	}
	out := f.vtysh(fmt.Sprintf("show bgp %s unicast %s json", familyWord(strings.Contains(prefix, ":")), prefix))
	if json.Unmarshal(out, &answer) != nil {
		return atRouter{}, false
	}
	for _, p := range answer.Paths {
		if p.Peer.PeerID != from.String() || len(p.Nexthops) == 0 {
			continue
		}
		path := p.ASPath.String
		if path == "Local" {
			path = ""
		}
		wellKnown := strings.NewReplacer("gracefulShutdown", "65535:0", "graceful-shutdown", "65535:0")
		return atRouter{
			med: p.Metric, pref: p.LocPrf, asPath: path, nextHop: p.Nexthops[0].IP,
			communities: reversed(wellKnown.Replace(strings.Join(p.Community.List, " "))), large: strings.Join(p.LargeCommunity.List, " "),
		}, true
	}
	return atRouter{}, false
}

// reversed puts the well-known community first, where another router leaves it.
func reversed(communities string) string {
	if rest, ok := strings.CutSuffix(communities, " 65535:0"); ok {
		return "65535:0 " + rest
	}
	return communities
}

func (f *frr) count(v6 bool, from netip.Addr) int {
	var answer struct {
		Routes map[string][]struct{ PeerID string }
	}
	if json.Unmarshal(f.vtysh(fmt.Sprintf("show bgp %s unicast json", familyWord(v6))), &answer) != nil {
		return -1
	}
	n := 0
	for _, paths := range answer.Routes {
		for _, p := range paths {
			if p.PeerID == from.String() {
				n++
			}
		}
	}
	return n
}

func (f *frr) shut(from netip.Addr, why string) {
	f.vtysh("configure terminal", fmt.Sprintf("router bgp %d", f.as), fmt.Sprintf("neighbor %v shutdown message %s", from, why))
}

func (f *frr) reopen(from netip.Addr) {
	f.vtysh("configure terminal", fmt.Sprintf("router bgp %d", f.as), fmt.Sprintf("no neighbor %v shutdown", from))
}

// heard is its log: what it shows of a session forgets the words at the next attempt.
func (f *frr) heard(netip.Addr) string {
	log, _ := os.ReadFile(filepath.Join(f.dir, "bgpd.log")) // not there yet is nothing said yet
	return string(log)
}

// bird is BIRD.
type bird struct {
	t      *testing.T
	socket string
}

func startBIRD(t *testing.T, ns string, as uint32) bgpRouter {
	t.Helper()
	roottest.NeedProgram(t, "/usr/sbin/bird")
	dir := t.TempDir()
	ttl := "no"
	if as != 65001 {
		ttl = "yes"
	}
	var b strings.Builder
	b.WriteString("router id 10.98.0.2;\nprotocol device {}\n")
	b.WriteString("protocol static s4 { ipv4; route 198.51.100.0/24 blackhole; }\nprotocol static s6 { ipv6; route 2001:db8:5::/48 blackhole; }\n")
	for _, s := range []struct {
		name, ttl   string
		local, node netip.Addr
	}{{"b4", "no", routerAddr4, nodeAddr4}, {"b6", ttl, routerAddr6, nodeAddr6}} {
		fmt.Fprintf(&b, `protocol bgp %s {
 local %v as %d; neighbor %v as 65001; password "secret"; ttl security %s;
 hold time 9; connect delay time 1; connect retry time 1; error wait time 1, 2; graceful restart on;
 ipv4 { import all; export where source = RTS_STATIC; next hop address %v; };
 ipv6 { import all; export where source = RTS_STATIC; next hop address %v; };
}
`, s.name, s.local, as, s.node, s.ttl, routerAddr4, routerAddr6)
	}
	conf := filepath.Join(dir, "bird.conf")
	must(t, os.WriteFile(conf, []byte(b.String()), 0o644))
	r := &bird{t: t, socket: filepath.Join(dir, "bird.ctl")}
	startIn(t, ns, "/usr/sbin/bird", "-f", "-c", conf, "-s", r.socket, "-P", filepath.Join(dir, "bird.pid"))
	roottest.Eventually(t, "bird listens", func() bool { return exists(r.socket) })
	return r
}

func (b *bird) birdc(command string) string {
	out, _ := exec.Command("/usr/sbin/birdc", append([]string{"-s", b.socket}, strings.Fields(command)...)...).Output()
	return string(out)
}

func protocolOf(from netip.Addr) string {
	if from.Is4() {
		return "b4"
	}
	return "b6"
}

func (b *bird) path(prefix string, from netip.Addr) (atRouter, bool) {
	out := b.birdc(fmt.Sprintf("show route %s protocol %s all", prefix, protocolOf(from)))
	if !strings.Contains(out, "BGP.origin") {
		return atRouter{}, false
	}
	field := func(name string) string {
		for line := range strings.Lines(out) {
			if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "BGP."+name+":"); ok {
				return strings.TrimSpace(rest)
			}
		}
		return ""
	}
	plain := strings.NewReplacer(", ", ":", ",", ":", "(", "", ")", "")
	r := atRouter{
		asPath: field("as_path"), nextHop: strings.Fields(field("next_hop") + " ?")[0],
		communities: plain.Replace(field("community")), large: plain.Replace(field("large_community")),
	}
	r.med, _ = strconv.Atoi(field("med"))
	r.pref, _ = strconv.Atoi(field("local_pref"))
	return r, true
}

func (b *bird) count(v6 bool, from netip.Addr) int {
	table := "master4"
	if v6 {
		table = "master6"
	}
	out := b.birdc(fmt.Sprintf("show route table %s protocol %s count", table, protocolOf(from)))
	m := regexp.MustCompile(`(?m)^(\d+) of \d+ routes`).FindStringSubmatch(out)
	if m == nil {
		return -1
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func (b *bird) shut(from netip.Addr, why string) {
	out, err := exec.Command("/usr/sbin/birdc", "-s", b.socket, "disable", protocolOf(from), strconv.Quote(why)).CombinedOutput()
	if err != nil {
		b.t.Errorf("birdc disable: %v: %s", err, out)
	}
}

func (b *bird) reopen(from netip.Addr) { b.birdc("enable " + protocolOf(from)) }

func (b *bird) heard(from netip.Addr) string {
	return b.birdc("show protocols all " + protocolOf(from))
}
