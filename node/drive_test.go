package node

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pontoon/fsm"
	"pontoon/node/host"
	"pontoon/node/plan"
)

func TestReportOfAnEarlierLifeIsNotCommitted(t *testing.T) {
	s := fsm.New()
	for _, c := range oneNode(
		fsm.NodeVerdict{Node: "lb1"},
		fsm.NodeVerdict{Node: "lb1", Alive: true},
	) {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatal(err)
		}
		s = next
	}
	ready := report{Node: "lb1", State: 3, Ready: true, LinksUp: true, InSync: true}
	for name, tc := range map[string]struct {
		change func(*agedReport)
		due    bool
	}{
		"new":                 {func(*agedReport) {}, true},
		"before its death":    {func(r *agedReport) { r.State = 1 }, false},
		"at its death":        {func(r *agedReport) { r.State = 2 }, true},
		"old":                 {func(r *agedReport) { r.AgeMS = 10_000 }, false},
		"unsure":              {func(r *agedReport) { r.Unsure = true }, false},
		"of somebody else":    {func(r *agedReport) { r.Node = "lb9" }, false},
		"saying nothing new":  {func(r *agedReport) { r.Ready, r.LinksUp, r.InSync = false, false, false }, false},
		"from another future": {func(r *agedReport) { r.AgeMS = -5 }, true},
	} {
		r := agedReport{report: ready, AgeMS: 100}
		tc.change(&r)
		if due := dueReports(s, []agedReport{r}); (len(due) == 1) != tc.due {
			t.Errorf("%s: %v", name, due)
		}
	}
}

// Whom most nodes on a link find cut off has a link down, whatever it says, and also if it says nothing.
func TestACutOffNodeCountsAsOneWithALinkDown(t *testing.T) {
	member := func(n int, linksUp bool) fsm.Node {
		return fsm.Node{Name: fsm.NodeID(fmt.Sprintf("lb%d", n)), Alive: true, Ready: true, LinksUp: linksUp, InSync: true}
	}
	healthy := func(n int, lost ...string) agedReport {
		r := reportOf(n, lost...)
		r.Ready, r.InSync = true, true
		return r
	}
	cut := []agedReport{healthy(1, "2/2", "3/2"), healthy(2, "1/2"), healthy(3, "1/2")}
	silent := []agedReport{aged(healthy(1)), healthy(2, "1/2"), healthy(3, "1/2")}
	whole := []agedReport{healthy(1), healthy(2), healthy(3)}
	for name, tc := range map[string]struct {
		linksUp bool // of lb1, in the state
		reports []agedReport
		want    []fsm.NodeReport
	}{
		"found cut off":            {true, cut, []fsm.NodeReport{{Node: "lb1", Ready: true, InSync: true}}},
		"it says nothing itself":   {true, silent, []fsm.NodeReport{{Node: "lb1", Ready: true, InSync: true}}},
		"known":                    {false, cut, nil},
		"reached again":            {false, whole, []fsm.NodeReport{{Node: "lb1", Ready: true, LinksUp: true, InSync: true}}},
		"reached, and still mute":  {false, []agedReport{aged(healthy(1)), healthy(2), healthy(3)}, nil},
		"all is well and was well": {true, whole, nil},
	} {
		if got := due([]fsm.Node{member(1, tc.linksUp), member(2, true), member(3, true)}, tc.reports); !slices.Equal(got, tc.want) {
			t.Errorf("%s: %+v, want %+v", name, got, tc.want)
		}
	}
}

func TestDriverCompilesServicesOnlyWhenSomethingOfThemChanged(t *testing.T) {
	s := bigState(t, 10)
	d := &driver{m: &member{cfg: Config{Name: "lb1"}}}
	links := []host.Link{{Name: "eth1", Prefixes: benchSelf.Links[0].Prefixes}, {Name: "eth2", Prefixes: benchSelf.Links[1].Prefixes}}
	step := func(what string, c fsm.Command, same bool) plan.Plan {
		t.Helper()
		if c != nil {
			next, err := s.Apply(s.Index()+1, c)
			if err != nil {
				t.Fatal(err)
			}
			s = next
		}
		p, got := d.compile(s, links)
		if got != same {
			t.Errorf("%s: same %v", what, got)
		}
		if want := plan.Compile(s, d.self); fmt.Sprint(want) != fmt.Sprint(p) {
			t.Errorf("%s: the plan differs from one made from scratch", what)
		}
		return p
	}
	step("first", nil, false)
	step("again", nil, true)
	step("a report", fsm.NodeReport{Node: "lb1", Ready: true}, true)
	step("a service", fsm.DeleteService{Name: "service-00003"}, false)
	links[1].Prefixes = nil
	step("a link", nil, false)
	if p := step("removed", fsm.RemoveNode{Node: "lb1", Force: true}, false); len(p.Dataplane.Services)+len(p.Addresses) > 0 {
		t.Error("a removed node goes on serving")
	}
}

func TestHeldOfLooksAtTheHost(t *testing.T) {
	at := func(s string) plan.Address { return plan.Address{Addr: netip.MustParseAddr(s)} }
	// 127.0.0.1/8 is there, but a VIP stands alone in its prefix.
	if held := heldOf([]plan.Address{at("127.0.0.1"), at("192.0.2.77")}); len(held) != 0 {
		t.Errorf("held %v", held)
	}
	if l, err := net.Listen("tcp", "[::1]:0"); err != nil {
		t.Skip("no IPv6 here")
	} else if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if held := heldOf([]plan.Address{at("::1"), at("192.0.2.77")}); !slices.Equal(held, []netip.Addr{netip.MustParseAddr("::1")}) {
		t.Errorf("held %v", held)
	}
}

func TestBriefFitsOneLine(t *testing.T) {
	var errs []error
	for i := range 5000 {
		errs = append(errs, fmt.Errorf("service %d does not fit", i))
	}
	text := brief(errors.Join(errs...))
	if strings.Contains(text, "\n") || !strings.HasSuffix(text, "service 4 does not fit; and 4995 more") {
		t.Error(text)
	}
	if text := brief(errors.New("one")); text != "one" {
		t.Error(text)
	}
}
