package benchtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"pontoon/internal/lab"
)

// Contender is a way to get packets from the client to the server.
type Contender struct {
	// Name is what the tables call it; a target's name follows it.
	Name string
	// XDP says that it works in XDP: its cables are prepared for that.
	XDP bool
	// Start sets the machine up, and runs what must run there until the lab is
	// closed. An error means that the contender is not available here.
	Start func(ctx context.Context, s *Site) ([]Target, error)
}

// Target is one address that a contender serves at.
type Target struct {
	// Name tells the targets of one contender apart; empty when it has one.
	Name string
	Addr netip.Addr
	// NoUDP says that it serves TCP only.
	NoUDP bool
}

// Contenders are all there are. The first is what ratios are made to, beside
// nftables.
func Contenders() []Contender {
	return []Contender{
		{Name: routingName, Start: startRouting},
		{Name: nftablesName, Start: startNftables},
		{Name: "haproxy", Start: startHAProxy},
		{Name: "pontoon-tc", Start: startPontoon("tc", "tcx", "clsact")},
		{Name: "pontoon-xdp", XDP: true, Start: startPontoon("xdp", "xdp+tcx", "xdp+clsact")},
	}
}

// The contenders others are compared with.
const (
	routingName  = "routing"
	nftablesName = "nftables"
)

// startRouting forwards to the server's own address; nothing is translated.
func startRouting(_ context.Context, s *Site) ([]Target, error) {
	if err := sysctl(s.Node.Host, "net.ipv4.ip_forward", "1"); err != nil {
		return nil, err
	}
	return []Target{{Addr: s.Endpoints()[0]}}, nil
}

// nftRules translate the target as a load balancer does: the endpoints in
// turn, and the machine's own address as source.
func nftRules(s *Site) string {
	var choices []string
	for i, e := range s.Endpoints() {
		choices = append(choices, fmt.Sprintf("%d : %s", i, e))
	}
	return fmt.Sprintf(`table ip pt {
	chain pre {
		type nat hook prerouting priority dstnat; policy accept;
		ip daddr %s dnat to numgen inc mod %d map { %s }
	}
	chain post {
		type nat hook postrouting priority srcnat; policy accept;
		oifname "%s" masquerade
	}
}
`, s.VIP(0), len(choices), strings.Join(choices, ", "), s.Back)
}

func startNftables(ctx context.Context, s *Site) ([]Target, error) {
	if err := sysctl(s.Node.Host, "net.ipv4.ip_forward", "1"); err != nil {
		return nil, err
	}
	if err := s.holdVIP(); err != nil {
		return nil, err
	}
	rules := filepath.Join(filepath.Dir(s.Node.DataDir()), "rules.nft")
	if err := os.WriteFile(rules, []byte(nftRules(s)), 0o600); err != nil {
		return nil, fmt.Errorf("write rules: %w", err)
	}
	if err := s.command(ctx, "nft", "-f", rules); err != nil {
		return nil, err
	}
	return []Target{{Addr: s.VIP(0)}}, nil
}

// haproxyConfig is a plain TCP proxy with two threads.
func haproxyConfig(s *Site) string {
	var b strings.Builder
	b.WriteString(`global
    nbthread 2
    maxconn 4000
defaults
    mode tcp
    balance roundrobin
    timeout connect 5s
    timeout client 60s
    timeout server 60s
`)
	for _, port := range []int{ConnPort, BulkPort} {
		fmt.Fprintf(&b, "listen port%d\n    bind %s:%d\n", port, s.VIP(0), port)
		for i, e := range s.Endpoints() {
			fmt.Fprintf(&b, "    server s%d %s:%d\n", i+1, e, port)
		}
	}
	return b.String()
}

func startHAProxy(ctx context.Context, s *Site) ([]Target, error) {
	if err := s.holdVIP(); err != nil {
		return nil, err
	}
	// A proxy is a client of its endpoints and needs ports like one.
	if err := errors.Join(widePorts(s.Node.Host), sysctl(s.Node.Host, "net.ipv4.tcp_tw_reuse", "1")); err != nil {
		return nil, err
	}
	conf := filepath.Join(filepath.Dir(s.Node.DataDir()), "haproxy.cfg")
	if err := os.WriteFile(conf, []byte(haproxyConfig(s)), 0o600); err != nil {
		return nil, fmt.Errorf("write configuration: %w", err)
	}
	path, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, err
	}
	if err := s.command(ctx, "haproxy", "-c", "-q", "-f", conf); err != nil {
		return nil, err
	}
	// In the foreground, so that it ends with the lab.
	if _, err := s.Node.Host.Start(exec.Command(path, "-db", "-f", conf)); err != nil {
		return nil, err
	}
	return []Target{{Addr: s.VIP(0), NoUDP: true}}, nil
}

// holdVIP gives the machine the address it serves at.
func (s *Site) holdVIP() error {
	return s.Node.Do(func() error { return bringUp(s.Front, []netip.Prefix{netip.PrefixFrom(s.VIP(0), 32)}) })
}

// command runs a program on the machine; its error holds what it said.
func (s *Site) command(ctx context.Context, name string, args ...string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(s.Node.DataDir()), name)
	if err != nil {
		return fmt.Errorf("keep output of %s: %w", name, err)
	}
	defer out.Close()
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := s.Node.Host.Run(ctx, cmd); err != nil {
		said, _ := os.ReadFile(out.Name()) // the error is told without it, too
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(said)))
	}
	return nil
}

const (
	pontoonFlows = "262144"
	startTimeout = 30 * time.Second
)

// startPontoon runs a cluster of one node with the hook and declares the
// services once in fullnat and once in dnat. What status reports the cables'
// hook to be must be one of attached.
func startPontoon(hook string, attached ...string) func(context.Context, *Site) ([]Target, error) {
	return func(ctx context.Context, s *Site) ([]Target, error) {
		ctx, cancel := context.WithTimeout(ctx, startTimeout)
		defer cancel()
		n := s.Node
		n.SetArgs("--interface", s.Front, "--interface", s.Back, "--hook", hook, "--max-flows", pontoonFlows)
		if err := n.Start(ctx); err != nil {
			return nil, err
		}
		if err := n.WaitUp(ctx); err != nil {
			return nil, err
		}
		if _, err := n.CLI(ctx, "init"); err != nil {
			return nil, err
		}
		targets := []Target{{Name: "fullnat", Addr: s.VIP(0)}, {Name: "dnat", Addr: s.VIP(1)}}
		for _, t := range targets {
			if err := s.declare(ctx, t); err != nil {
				return nil, err
			}
		}
		err := lab.WaitFor(ctx, n.Name()+" to attach to its cables", func(ctx context.Context) error {
			return checkHooks(ctx, n, []string{s.Front, s.Back}, attached)
		})
		if err != nil {
			return nil, err
		}
		return targets, nil
	}
}

// declare makes the three services at one address in the mode it is named for.
func (s *Site) declare(ctx context.Context, t Target) error {
	vip := t.Addr.String()
	if _, err := s.Node.CLI(ctx, "vip", "create", vip, "--interface", s.Front); err != nil {
		return err
	}
	for name, svc := range map[string]struct {
		protocol string
		port     int
	}{"conn": {"tcp", ConnPort}, "bulk": {"tcp", BulkPort}, "udp": {"udp", UDPPort}} {
		port := strconv.Itoa(svc.port)
		args := []string{
			"service", "create", name + "-" + t.Name, "--vip", vip, "--port", port,
			"--protocol", svc.protocol, "--mode", t.Name, "--algorithm", "rr",
		}
		for _, e := range s.Endpoints() {
			args = append(args, "--endpoint", e.String()+":"+port)
		}
		if _, err := s.Node.CLI(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// checkHooks asks the node how it is attached.
func checkHooks(ctx context.Context, n *lab.Node, ifaces, want []string) error {
	out, err := n.CLI(ctx, "status", "-o", "json")
	if err != nil {
		return err
	}
	var st struct {
		Interfaces []struct {
			Name string `json:"name"`
			Hook string `json:"hook"`
		} `json:"interfaces"`
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return fmt.Errorf("read status: %w", err)
	}
	hooks := map[string]string{}
	for _, i := range st.Interfaces {
		hooks[i.Name] = i.Hook
	}
	for _, i := range ifaces {
		switch h := hooks[i]; {
		case h == "":
			return fmt.Errorf("%s is not attached", i)
		case !slices.Contains(want, h):
			return fmt.Errorf("%w: %s is attached by %s, not by %s", lab.ErrGiveUp, i, h, strings.Join(want, " or "))
		}
	}
	return nil
}
