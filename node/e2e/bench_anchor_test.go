package e2e

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"pontoon/internal/lab"
)

// anchor is a setting of keepalived: how often the master says that it lives. Three
// times that, and up to once more by priority, is when the backup takes over.
type anchor struct {
	name string
	vrrp int // version of the protocol; 3 knows hundredths of a second
	says string
}

func anchors() []anchor {
	return []anchor{{"keepalived-1s", 2, "1"}, {"keepalived-100ms", 3, "0.1"}, {"keepalived-10ms", 3, "0.01"}}
}

// BenchmarkFailoverAnchors puts two machines with keepalived in the same lab and
// looks at them with the same eyes: pings through the VIP, and ARP. What forwards
// is the kernel (nftables, DNAT and masquerading), for pings only: a connection
// would not survive, since nobody copies conntrack entries. Each of the settings
// (BENCH_ANCHORS picks some) fails in three ways, BENCH_FAILOVERS times (50): all
// links lost and the daemon killed, as at a power loss; all links lost; the
// daemon told to stop, which hands over.
func BenchmarkFailoverAnchors(b *testing.B) {
	for _, name := range []string{"keepalived", "nft"} {
		if _, err := exec.LookPath(name); err != nil {
			b.Skipf("%s is not installed: make bench-failover installs it", name)
		}
	}
	var all report
	for _, a := range pick(b, "BENCH_ANCHORS", anchors(), func(a anchor, name string) bool { return a.name == name }) {
		b.Run(a.name, func(b *testing.B) {
			for b.Loop() {
				for _, r := range a.run(b) {
					all = append(all, r)
					b.ReportMetric(rank(r.udp(), 50), "ms-network-p50-"+r.name)
				}
			}
		})
	}
	b.Log("\n" + all.String())
}

func (a anchor) run(b *testing.B) (rows []row) {
	b.Helper()
	l, err := lab.New(lab.Config{Topology: lab.OneLeg, Clients: 4, Endpoints: 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := l.Close(); err != nil {
			b.Error(err)
		}
	})
	ep := l.Endpoints()[0]
	echoDatagrams(b, ep, netip.AddrPortFrom(ep.Addr(), pongPort))
	var routers []*router
	for i, h := range l.Clients()[2:] {
		r := &router{Host: h, dir: b.TempDir()}
		r.prepare(b, netip.AddrPortFrom(ep.Addr(), pongPort), a, 100+i)
		r.start(b)
		routers = append(routers, r)
		b.Cleanup(func() {
			if b.Failed() {
				said, _ := os.ReadFile(r.file("log"))
				b.Logf("%s said:\n%s", r.Name(), said)
			}
		})
	}
	holder(b, routers)
	p, q := startPings(b, l.Clients()[0], pingVIP), startAsker(b, l.Clients()[1], lab.ServiceVIP())
	for _, how := range []struct {
		name      string
		hit, heal func(*router)
	}{
		{"power", func(r *router) { r.links(b, false); r.kill(b) }, func(r *router) { r.forget(b); r.links(b, true); r.start(b) }},
		{"link", func(r *router) { r.links(b, false) }, func(r *router) { r.links(b, true) }},
		{"stop", func(r *router) { r.terminate(b) }, func(r *router) { r.start(b) }},
	} {
		row := row{name: a.name + "-" + how.name}
		for i := range fromEnv("BENCH_FAILOVERS", 50) {
			victim := holder(b, routers)
			waitOpen(b, p, false)
			pass(b, calmBefore)
			p.window()
			q.window()
			pass(b, calmBefore)
			how.hit(victim)
			waitOpen(b, p, true)
			waitOpen(b, p, false)
			pass(b, calmAfter)
			row.rounds = append(row.rounds, round{udp: p.felt(), arp: q.felt()})
			b.Logf("%s %d: %s", row.name, i+1, row.rounds[i])
			how.heal(victim)
			settle(b, a)
		}
		rows = append(rows, row)
	}
	return rows
}

// waitOpen waits until pings are lost, or answered again. Where so few are lost
// that it is never seen, that is waited for in vain for a second.
func waitOpen(b *testing.B, p *pings, open bool) {
	b.Helper()
	limit := failoverWait
	if open {
		limit = time.Second
	}
	err := lab.WaitFor(within(b, limit), "pings", func(context.Context) error {
		if o := p.felt(); o.Open != open && (!open || o.Lost == 0) {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
	if err != nil && !open {
		b.Fatal(err)
	}
}

// settle waits until a router that came back knows that there is a master: without
// preemption it stays behind it.
func settle(b *testing.B, a anchor) {
	b.Helper()
	every, err := time.ParseDuration(a.says + "s")
	if err != nil {
		b.Fatal(err)
	}
	pass(b, time.Second+5*every)
}

// router is a host that runs keepalived.
type router struct {
	*lab.Host
	dir  string
	proc *lab.Process
}

func (r *router) file(name string) string { return filepath.Join(r.dir, name) }

// prepare makes the host forward pings and writes keepalived's configuration.
func (r *router) prepare(b *testing.B, to netip.AddrPort, a anchor, priority int) {
	b.Helper()
	vip := lab.ServiceVIP()
	rules := fmt.Sprintf(`table ip pt {
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr %s udp dport %d dnat to %s
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		ip daddr %s udp dport %d masquerade
	}
}
`, vip, pingPort, to, to.Addr(), to.Port())
	conf := fmt.Sprintf(`global_defs {
	vrrp_version %d
	script_user root
}
vrrp_instance pt {
	state BACKUP
	nopreempt
	interface %s
	virtual_router_id 51
	priority %d
	advert_int %s
	virtual_ipaddress {
		%s/32 dev %[2]s
	}
}
`, a.vrrp, r.Interfaces()[0], priority, a.says, vip)
	err := errors.Join(os.WriteFile(r.file("rules.nft"), []byte(rules), 0o600), os.WriteFile(r.file("keepalived.conf"), []byte(conf), 0o600),
		r.Do(func() error {
			for _, s := range []string{"ip_forward=1", "conf/all/send_redirects=0", "conf/" + r.Interfaces()[0] + "/send_redirects=0"} {
				name, value, _ := strings.Cut(s, "=")
				if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o600); err != nil {
					return err
				}
			}
			return nil
		}), r.Run(within(b, 10*time.Second), exec.Command("nft", "-f", r.file("rules.nft"))))
	if err != nil {
		b.Fatal(err)
	}
}

func (r *router) start(b *testing.B) {
	b.Helper()
	for _, name := range []string{"pid", "vrrp.pid"} { // of one that was killed, whose child nobody has waited for yet
		if err := os.Remove(r.file(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			b.Fatal(err)
		}
	}
	logf, err := os.OpenFile(r.file("log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		b.Fatal(err)
	}
	defer logf.Close()
	cmd := exec.Command("keepalived", "--dont-fork", "--log-console", "--vrrp", "--use-file", r.file("keepalived.conf"),
		"--pid", r.file("pid"), "--vrrp_pid", r.file("vrrp.pid"))
	cmd.Stdout, cmd.Stderr = logf, logf
	if r.proc, err = r.Start(cmd); err != nil {
		b.Fatal(err)
	}
}

func (r *router) kill(b *testing.B) {
	b.Helper()
	if err := r.proc.Kill(within(b, 10*time.Second)); err != nil {
		b.Fatal(err)
	}
}

func (r *router) terminate(b *testing.B) {
	b.Helper()
	if err := r.proc.Signal(syscall.SIGTERM); err != nil {
		b.Fatal(err)
	}
	if err := r.proc.Wait(within(b, 10*time.Second)); r.proc.Running() {
		b.Fatal(err)
	}
}

func (r *router) links(b *testing.B, up bool) {
	b.Helper()
	set := r.LinksDown
	if up {
		set = r.LinksUp
	}
	if err := set(); err != nil {
		b.Fatal(err)
	}
}

// forget takes away what a power loss would have: the address that a killed
// daemon left.
func (r *router) forget(b *testing.B) {
	b.Helper()
	err := r.Do(func() error {
		link, err := netlink.LinkByName(r.Interfaces()[0])
		if err != nil {
			return err
		}
		err = netlink.AddrDel(link, &netlink.Addr{IPNet: &net.IPNet{IP: lab.ServiceVIP().AsSlice(), Mask: net.CIDRMask(32, 32)}})
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return nil
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
}

// holder waits until one router alone has the VIP.
func holder(b *testing.B, routers []*router) *router {
	b.Helper()
	var found *router
	eventually(b, failoverWait, "one router to hold the address", func(context.Context) error {
		found = nil
		for _, r := range routers {
			link, err := hostHolds(r.Host, lab.ServiceVIP())
			switch {
			case err != nil:
				return err
			case link != "" && found != nil:
				return errors.New("two do")
			case link != "":
				found = r
			}
		}
		if found == nil {
			return errors.New("none does")
		}
		return nil
	})
	return found
}
