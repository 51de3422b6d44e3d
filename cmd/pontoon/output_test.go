package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func TestColoursDoNotMoveColumns(t *testing.T) {
	st := web.Status{
		Summary: web.Summary{Level: web.LevelBad, Text: "No quorum; when last heard, 1 of 3 nodes healthy", Notes: []string{"lb2 is down."}},
		Nodes: []web.NodeStatus{
			{Node: fsm.Node{Name: "lb1", Role: fsm.RoleLB, Alive: true, Ready: true, LinksUp: true, InSync: true}},
			{Node: fsm.Node{Name: "a-longer-name", Role: fsm.RoleLB}},
			{Node: fsm.Node{Name: "w1", Role: fsm.RoleWitness, Alive: true}},
			{Node: fsm.Node{Name: "lb4", Role: fsm.RoleLB, Alive: true, Draining: true}, MasterOf: []string{"default"}},
		},
		Instances:   []web.InstanceStatus{{Name: "default"}},
		Replication: []web.PeerReplication{{Peer: "lb2", State: web.ReplicationSnapshot}},
	}
	var without, with bytes.Buffer
	for w, color := range map[*bytes.Buffer]bool{&without: false, &with: true} {
		table := newTable(w, color)
		drawStatus(table, st)
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
	}
	stripped := regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(with.String(), "")
	if stripped != without.String() {
		t.Errorf("with colours, stripped of them:\n%s\nwithout:\n%s", stripped, without.String())
	}
	if !strings.Contains(with.String(), string(bad)+"down") {
		t.Error("a node that is down is not red")
	}
	if strings.Contains(without.String(), "\x1b") {
		t.Error("an escape sequence where no colour is wanted")
	}
}

func TestNodeStateSaysTheWorstInWords(t *testing.T) {
	well := fsm.Node{Role: fsm.RoleLB, Alive: true, Ready: true, LinksUp: true, InSync: true}
	for want, change := range map[string]func(*fsm.Node){
		"healthy":              func(*fsm.Node) {},
		"down":                 func(n *fsm.Node) { n.Alive = false },
		"draining":             func(n *fsm.Node) { n.Draining = true },
		"link down":            func(n *fsm.Node) { n.LinksUp = false },
		"data plane not ready": func(n *fsm.Node) { n.Ready = false },
		"catching up flows":    func(n *fsm.Node) { n.InSync = false },
		"link down, draining":  func(n *fsm.Node) { n.LinksUp, n.Draining = false, true },
	} {
		n := well
		change(&n)
		if got := nodeState(web.NodeStatus{Node: n}).text; got != want {
			t.Errorf("%+v is %q, want %q", n, got, want)
		}
	}
	if got := nodeState(web.NodeStatus{Node: fsm.Node{Role: fsm.RoleWitness, Alive: true}}).text; got != "healthy" {
		t.Errorf("a living witness is %q: it has no data plane to be ready", got)
	}
}

func TestServicesWithoutUsableEndpointsStandOut(t *testing.T) {
	c := usable([]web.EndpointStatus{
		{Admin: fsm.AdminDrain, Weight: 1},
		{Admin: fsm.AdminUp, Weight: 0},
		{Admin: fsm.AdminUp, Weight: 1, Health: web.EndpointDown},
	})
	if c.text != "0 of 3 usable" || c.style != bad {
		t.Errorf("got %+v", c)
	}
	if c := usable([]web.EndpointStatus{{Admin: fsm.AdminUp, Weight: 1, Health: web.EndpointUnknown}}); c.text != "1 of 1 usable" || c.style != good {
		t.Errorf("got %+v", c)
	}
}

func TestNoColourWhereTheEnvironmentSaysSo(t *testing.T) {
	a, _, _ := testApp(nil)
	if a.color() {
		t.Error("colours in what is no terminal")
	}
}

func TestReportIsOneLineForEachFinding(t *testing.T) {
	cmd := &cobra.Command{Use: "pontoon"}
	for name, c := range map[string]struct {
		err  error
		code int
		text string
	}{
		"nothing":     {nil, 0, ""},
		"failure":     {errors.New("no"), 1, "pontoon: no\n"},
		"findings":    {errors.Join(errors.New("a: x"), errors.New("b: y")), 1, "pontoon: a: x\npontoon: b: y\n"},
		"interrupted": {fmt.Errorf("wait: %w", context.Canceled), 1, "pontoon: wait: interrupted\n"},
		"usage":       {usagef("bad %s", "flag"), 2, "pontoon: bad flag\nusage: pontoon (more: pontoon --help)\n"},
		"usages":      {usageError{errors.Join(errors.New("a"), errors.New("b"))}, 2, "pontoon: a; b\nusage: pontoon (more: pontoon --help)\n"},
	} {
		var out bytes.Buffer
		if code := report(&out, cmd, c.err); code != c.code || out.String() != c.text {
			t.Errorf("%s: status %d and %q, want %d and %q", name, code, out.String(), c.code, c.text)
		}
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	info := &debug.BuildInfo{GoVersion: "go1.26.8", Settings: []debug.BuildSetting{
		{Key: "vcs.revision", Value: "0123456789abcdef0123"},
		{Key: "vcs.modified", Value: "true"},
		{Key: "vcs.time", Value: "2026-11-22T03:00:00Z"},
		{Key: "GOOS", Value: "linux"},
		{Key: "GOARCH", Value: "amd64"},
	}}
	for given, want := range map[string]string{
		"":       "devel (commit 0123456789ab with changes, 2026-11-22T03:00:00Z, go1.26.8, linux/amd64)",
		"v1.2.3": "v1.2.3 (commit 0123456789ab with changes, 2026-11-22T03:00:00Z, go1.26.8, linux/amd64)",
	} {
		if got := describeBuild(given, info); got != want {
			t.Errorf("version %q: %s, want %s", given, got, want)
		}
	}
	if got := describeBuild("", &debug.BuildInfo{}); got != "devel" {
		t.Errorf("without build information: %q", got)
	}
}

func TestNearestKeyIsOnlyGuessedWhenNear(t *testing.T) {
	words := []string{"interfaces", "name", "role"}
	for given, want := range map[string]string{"interface": "interfaces", "nmae": "name", "rolle": "role", "weight": ""} {
		if got := nearest(given, words); got != want {
			t.Errorf("nearest to %q is %q, want %q", given, got, want)
		}
	}
}

func TestNumbersReadLikeProse(t *testing.T) {
	for got, want := range map[string]string{
		count(1, "connection"): "1 connection", count(0, "connection"): "0 connections", count(uint64(2), "line"): "2 lines",
		seconds(61.5): "1m2s", seconds(0.1): "100ms", seconds(2.34): "2.3s", join([]int{}): "-", join([]int{1, 2}): "1, 2",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestFrameFitsTheTerminal(t *testing.T) {
	const frame = "1\n2\n3\n4\n5\n"
	for rows, want := range map[int]string{
		0: "1|2|3|4|5", 6: "1|2|3|4|5",
		5: "1|2|3|... 2 lines more: make the window higher",
		3: "1|... 4 lines more: make the window higher",
	} {
		got := fitFrame(frame, rows)
		if strings.Join(got, "|") != want {
			t.Errorf("%d rows: %q, want %q", rows, got, want)
		}
		if rows > 0 && len(got) > rows-1 {
			t.Errorf("%d rows: %d lines, and the cursor needs one", rows, len(got))
		}
	}
}
