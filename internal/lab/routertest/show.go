package routertest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
)

// Path is one way to a prefix that the router knows.
type Path struct {
	From, NextHop netip.Addr
	MED           uint32
	LocalPref     uint32
	ASPath        string // numbers with spaces between, empty within one AS
	Communities   string // as the router writes them
	Best          bool
	Stale         bool // kept over a graceful restart of who announced it
}

// ask puts one question to the router's command line. It takes at most a few seconds.
func (d *Daemon) ask(ctx context.Context, question string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, birdClient, append([]string{"-s", d.file("ctl")}, strings.Fields(question)...)...)
	if d.kind == FRR {
		cmd = exec.CommandContext(ctx, vtyshProgram, "--vty_socket", d.dir, "--config_dir", d.dir, "-c", question)
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("ask %s %q: %w: %.200s", d.kind, question, err, out)
	}
	return string(out), nil
}

// Paths are the router's ways to a prefix, the best first, then by neighbour. None is no error.
func (d *Daemon) Paths(ctx context.Context, to netip.Prefix) ([]Path, error) {
	question, parse := "show route all for "+to.String(), parseBIRD
	if d.kind == FRR {
		family := "ipv4"
		if to.Addr().Is6() {
			family = "ipv6"
		}
		question, parse = fmt.Sprintf("show bgp %s unicast %s json", family, to), parseFRR
	}
	out, err := d.ask(ctx, question)
	if err != nil {
		if strings.Contains(err.Error(), "Network not found") || strings.Contains(err.Error(), "not in table") {
			return nil, nil
		}
		return nil, err
	}
	paths, err := parse(out)
	slices.SortFunc(paths, func(a, b Path) int {
		if a.Best != b.Best {
			if a.Best {
				return -1
			}
			return 1
		}
		return a.From.Compare(b.From)
	})
	return paths, err
}

// parseFRR reads the JSON of "show bgp FAMILY unicast PREFIX json".
func parseFRR(out string) ([]Path, error) {
	var doc struct {
		Paths []struct {
			MED       uint32 `json:"metric"`
			LocalPref uint32 `json:"locPrf"`
			Stale     bool   `json:"stale"`
			ASPath    struct {
				String string `json:"string"`
			} `json:"aspath"`
			Community struct {
				String string `json:"string"`
			} `json:"community"`
			Large struct {
				String string `json:"string"`
			} `json:"largeCommunity"`
			Best struct {
				Overall bool `json:"overall"`
			} `json:"bestpath"`
			Peer struct {
				ID netip.Addr `json:"peerId"`
			} `json:"peer"`
			NextHops []struct {
				IP    netip.Addr `json:"ip"`
				Scope string     `json:"scope"`
			} `json:"nexthops"`
		} `json:"paths"`
	}
	if strings.TrimSpace(out) == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read answer of FRR: %w: %.200s", err, out)
	}
	var paths []Path
	for _, p := range doc.Paths {
		path := Path{
			From: p.Peer.ID, MED: p.MED, LocalPref: p.LocalPref, ASPath: strings.TrimPrefix(p.ASPath.String, "Local"),
			Communities: strings.TrimSpace(p.Community.String + " " + p.Large.String), Best: p.Best.Overall, Stale: p.Stale,
		}
		for _, h := range p.NextHops {
			if h.Scope != "link-local" && !path.NextHop.IsValid() {
				path.NextHop = h.IP
			}
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// parseBIRD reads the answer to "show route all": a line for each way, with the name of
// its protocol, that is of the node, and its attributes below it.
func parseBIRD(out string) ([]Path, error) {
	var paths []Path
	head := regexp.MustCompile(`unicast \[lb(\d+) [^\]]*\] (\* )?\((\d+)([^)]*)\)`)
	for line := range strings.Lines(out) {
		if m := head.FindStringSubmatch(line); m != nil {
			n, err := strconv.ParseUint(m[1], 10, 8)
			if err != nil {
				return nil, fmt.Errorf("read answer of BIRD: protocol lb%s: %w", m[1], err)
			}
			from := netip.AddrFrom4([4]byte{192, 168, 90, byte(10 + n)})
			paths = append(paths, Path{From: from, Best: m[2] != "", Stale: strings.Contains(m[4], "s")})
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok || len(paths) == 0 {
			continue
		}
		p := &paths[len(paths)-1]
		switch key {
		case "BGP.med", "BGP.local_pref":
			n, err := strconv.ParseUint(value, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("read answer of BIRD: %s: %w", key, err)
			}
			if key == "BGP.med" {
				p.MED = uint32(n)
			} else {
				p.LocalPref = uint32(n)
			}
		case "BGP.as_path":
			p.ASPath = value
		case "BGP.next_hop":
			first, _, _ := strings.Cut(value, " ") // a link-local one may follow
			a, err := netip.ParseAddr(first)
			if err != nil {
				return nil, fmt.Errorf("read answer of BIRD: next hop: %w", err)
			}
			p.NextHop = a
		case "BGP.community", "BGP.large_community":
			p.Communities = strings.TrimSpace(p.Communities + " " + value)
		}
	}
	return paths, nil
}

// Established are the neighbours whose sessions are up, sorted.
func (d *Daemon) Established(ctx context.Context) ([]netip.Addr, error) {
	if d.kind == FRR {
		return d.establishedFRR(ctx)
	}
	out, err := d.ask(ctx, "show protocols all")
	if err != nil {
		return nil, err
	}
	var up []netip.Addr
	established := false
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		switch {
		case len(f) > 1 && f[1] == "BGP":
			established = strings.Contains(line, "Established")
		case len(f) == 3 && f[0] == "Neighbor" && f[1] == "address:" && established:
			if a, err := netip.ParseAddr(f[2]); err == nil {
				up = append(up, a)
			}
		}
	}
	slices.SortFunc(up, netip.Addr.Compare)
	return up, nil
}

func (d *Daemon) establishedFRR(ctx context.Context) ([]netip.Addr, error) {
	out, err := d.ask(ctx, "show bgp ipv4 unicast summary json")
	if err != nil {
		return nil, err
	}
	var doc struct {
		Peers map[string]struct {
			State string `json:"state"`
		} `json:"peers"`
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil {
		return nil, fmt.Errorf("read answer of FRR: %w: %.200s", err, out)
	}
	var up []netip.Addr
	for name, p := range doc.Peers {
		a, err := netip.ParseAddr(name)
		if err != nil {
			return nil, errors.New("read answer of FRR: neighbour " + name)
		}
		if p.State == "Established" {
			up = append(up, a)
		}
	}
	slices.SortFunc(up, netip.Addr.Compare)
	return up, nil
}

// AwaitEstablished waits until the sessions with all these neighbours are up.
func (d *Daemon) AwaitEstablished(t testing.TB, want ...netip.Addr) {
	t.Helper()
	d.await(t, "sessions with all nodes", func(ctx context.Context) error {
		up, err := d.Established(ctx)
		if err == nil && !slices.Equal(up, want) {
			err = fmt.Errorf("up are %v", up)
		}
		return err
	})
}

// AwaitPaths waits until the router's ways to a prefix are as ok wants them, and returns them.
func (d *Daemon) AwaitPaths(t testing.TB, to netip.Prefix, what string, ok func([]Path) bool) []Path {
	t.Helper()
	var paths []Path
	d.await(t, fmt.Sprintf("%s to have %s to %s", d.kind, what, to), func(ctx context.Context) (err error) {
		if paths, err = d.Paths(ctx, to); err == nil && !ok(paths) {
			err = fmt.Errorf("it has %+v", paths)
		}
		return err
	})
	return paths
}

func (d *Daemon) await(t testing.TB, what string, cond func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := lab.WaitFor(ctx, what, cond); err != nil {
		t.Fatal(err)
	}
}

// Dump is everything the router tells of itself, for a failed test's log.
func (d *Daemon) Dump() string {
	questions := []string{"show protocols all", "show bfd sessions", "show route all"}
	if d.kind == FRR {
		questions = []string{"show bgp summary", "show bfd peers", "show bgp ipv4 unicast", "show bgp ipv6 unicast", "show ip route", "show bgp neighbors"}
	}
	var out strings.Builder
	for _, q := range questions {
		answer, err := d.ask(context.Background(), q)
		if err != nil {
			answer = err.Error()
		}
		fmt.Fprintf(&out, "%s\n%.6000s\n", q, answer)
	}
	logs, _ := filepath.Glob(d.file("*.out"))
	more, _ := filepath.Glob(d.file("*log"))
	for _, path := range append(logs, more...) {
		out.WriteString(tail(path))
	}
	return out.String()
}
