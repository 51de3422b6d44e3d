package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
)

// The ways of this node in the tests below: two links to lb2, one of them also to lb3, and a
// session with the witness w1.
var (
	front  = detect.Key{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.2"), Interface: "eth1"}
	back   = detect.Key{Local: netip.MustParseAddr("10.2.0.1"), Remote: netip.MustParseAddr("10.2.0.2"), Interface: "eth2"}
	toW1   = detect.Key{Local: netip.MustParseAddr("10.0.0.1"), Remote: netip.MustParseAddr("10.0.0.9"), Interface: "eth1"}
	manage = detect.Key{Local: netip.MustParseAddr("10.9.0.1"), Remote: netip.MustParseAddr("10.9.0.2"), Interface: "eth0"}
)

func twoLinks() watch {
	return watch{
		owner:   map[detect.Key]fsm.NodeID{front: "lb2", back: "lb2", manage: "lb2", toW1: "w1"},
		witness: map[fsm.NodeID]bool{"w1": true},
	}
}

// moment is t0 plus so many milliseconds.
func moment(ms int) time.Time { return t0.Add(time.Duration(ms) * time.Millisecond) }

// echoes: the first miss is found at 40 ms, the verdict at 80 ms.
func answered(k detect.Key) detect.EchoStatus {
	return detect.EchoStatus{Key: k, State: detect.Up, LastGood: moment(80)}
}

func down(k detect.Key, why detect.Silence) detect.EchoStatus {
	return detect.EchoStatus{Key: k, State: detect.Down, Why: why, LastGood: moment(0), Doubted: moment(40)}
}

// rising has had its first answer a moment ago.
func rising(k detect.Key) detect.EchoStatus {
	return detect.EchoStatus{Key: k, State: detect.Down, Why: detect.Unanswered, LastGood: moment(80), Rising: true}
}

func neverAnswered(k detect.Key) detect.EchoStatus {
	return detect.EchoStatus{Key: k, State: detect.Down, Why: detect.Unanswered, Doubted: moment(40)}
}

func up(k detect.Key, heard int) detect.Status {
	return detect.Status{Key: k, State: detect.Up, WasUp: true, Heard: moment(heard)}
}

func gone(k detect.Key) detect.Status {
	return detect.Status{Key: k, State: detect.Down, WasUp: true, Diag: detect.DiagExpired, Heard: moment(30)}
}

func TestWhatEchoesAndSessionsTellOfANode(t *testing.T) {
	const u = detect.Unanswered
	for _, tc := range []struct {
		name     string
		echoes   []detect.EchoStatus
		sessions []detect.Status
		lost     string // nodes
		links    string // addresses
	}{
		{"all is well", []detect.EchoStatus{answered(front), answered(back)}, []detect.Status{up(front, 70)}, "", ""},
		{"power loss: every path silent, no word since", []detect.EchoStatus{down(front, u), down(back, u)}, []detect.Status{up(front, 30), up(back, 39)}, "lb2", ""},
		{"power loss, later: the sessions are gone, too", []detect.EchoStatus{down(front, u), down(back, u)}, []detect.Status{gone(front), gone(back)}, "lb2", ""},
		{"no sessions at all", []detect.EchoStatus{down(front, u), down(back, u)}, nil, "lb2", ""},
		{"a stopped daemon: sessions gone, echoes answered", []detect.EchoStatus{answered(front), answered(back)}, []detect.Status{gone(front), gone(back)}, "", ""},
		{"one link of two", []detect.EchoStatus{answered(front), down(back, u)}, []detect.Status{up(front, 70), gone(back)}, "", "10.2.0.2"},
		{"echoes stay out on every path, but its daemon has spoken since", []detect.EchoStatus{down(front, u), down(back, u)}, []detect.Status{gone(front), up(back, 45)}, "", "10.0.0.2 10.2.0.2"},
		{"its daemon speaks on the cluster's link only", []detect.EchoStatus{down(front, u), down(back, u)}, []detect.Status{gone(front), up(manage, 45)}, "", "10.0.0.2 10.2.0.2"},
		{"its programs are gone, its kernel refuses", []detect.EchoStatus{down(front, detect.Refused), down(back, detect.Refused)}, []detect.Status{up(front, 70)}, "", "10.0.0.2 10.2.0.2"},
		{"its programs and its daemon are gone", []detect.EchoStatus{down(front, detect.Refused), down(back, detect.Refused)}, []detect.Status{gone(front)}, "", "10.0.0.2 10.2.0.2"},
		{"refused on one path, silent on the other", []detect.EchoStatus{down(front, detect.Refused), down(back, u)}, nil, "", "10.0.0.2 10.2.0.2"},
		{"our own links are the trouble", []detect.EchoStatus{down(front, detect.Unsent), down(back, detect.Unsent)}, nil, "", ""},
		{"our own link on one path, silence on the other", []detect.EchoStatus{down(front, detect.Unsent), down(back, u)}, nil, "", ""},
		{"power loss, the echo on the other path is not due yet", []detect.EchoStatus{{Key: front, State: detect.Up, LastGood: moment(10), Doubted: moment(50)}, down(back, u)}, []detect.Status{up(front, 12)}, "", ""},
		{"one link of two, and the daemon is all that tells of its life", []detect.EchoStatus{{Key: front, State: detect.Up, LastGood: moment(10)}, down(back, u)}, []detect.Status{up(front, 45)}, "", "10.2.0.2"},
		{"just started: the first answers to its echoes", []detect.EchoStatus{rising(front), rising(back)}, []detect.Status{up(front, 70)}, "", ""},
		{"just started, no session yet", []detect.EchoStatus{rising(front), rising(back)}, nil, "", ""},
		{"never heard", []detect.EchoStatus{neverAnswered(front), neverAnswered(back)}, nil, "", ""},
		{"one path silent, the other never answered", []detect.EchoStatus{down(front, u), neverAnswered(back)}, nil, "lb2", ""},
		{"a load balancer without echoes is judged by nobody here", nil, []detect.Status{gone(manage)}, "", ""},
		{"a witness whose sessions are gone", nil, []detect.Status{gone(toW1)}, "w1", ""},
		{"a witness that says it stops", nil, []detect.Status{{Key: toW1, State: detect.Down, WasUp: true, Farewell: true}}, "", ""},
		{"a witness that was never up", nil, []detect.Status{{Key: toW1, State: detect.Down}}, "", ""},
		{"a witness that is up", nil, []detect.Status{up(toW1, 30)}, "", ""},
		{"a way that is nobody's", []detect.EchoStatus{down(detect.Key{Interface: "eth7"}, u)}, nil, "", ""},
	} {
		got := see(tc.echoes, tc.sessions, twoLinks())
		var lost, links []string
		for _, n := range got.lost {
			lost = append(lost, string(n))
		}
		for _, l := range got.links {
			links = append(links, l.Addr.String())
		}
		if strings.Join(lost, " ") != tc.lost || strings.Join(links, " ") != tc.links {
			t.Errorf("%s: lost %v, links %v; want %q and %q", tc.name, lost, links, tc.lost, tc.links)
		}
	}
}

// Two ways to one address of a peer: the link is lost when neither is answered.
func TestALinkIsLostWhenNoWayToItIsAnswered(t *testing.T) {
	other := front
	other.Local, other.Interface = netip.MustParseAddr("10.0.0.7"), "eth3"
	w := twoLinks()
	w.owner[other] = "lb2"
	for _, tc := range []struct {
		echoes []detect.EchoStatus
		lost   bool
	}{
		{[]detect.EchoStatus{down(front, detect.Unanswered), answered(other), answered(back)}, false},
		{[]detect.EchoStatus{answered(other), down(front, detect.Unanswered), answered(back)}, false},
		{[]detect.EchoStatus{down(front, detect.Unanswered), down(other, detect.Unanswered), answered(back)}, true},
	} {
		if got := see(tc.echoes, nil, w); (len(got.links) == 1) != tc.lost {
			t.Errorf("%+v: %v", tc.echoes, got.links)
		}
	}
}

func TestOnlyFreshReportsOfOthersCountAsLosses(t *testing.T) {
	say := func(node string, age int64, lost ...fsm.NodeID) agedReport {
		return agedReport{report{Node: node, Lost: lost}, age}
	}
	got := losses([]agedReport{say("lb1", 10, "lb3"), say("lb2", 900, "lb3", "lb2"), say("lb4", 1500, "lb3")})
	if got["lb3"] != 2 || got["lb2"] != 0 {
		t.Fatalf("%v", got)
	}
}

// reportOf is what node n says, with eth1 in 10.0.0.0/24 and eth2 in 10.2.0.0/24; lost are
// "node/link" pairs.
func reportOf(n int, lost ...string) agedReport {
	r := report{Node: fmt.Sprintf("lb%d", n), LinksUp: true}
	for i, subnet := range []int{0, 2} {
		r.Links = append(r.Links, at(fmt.Sprintf("eth%d", i+1), fmt.Sprintf("10.%d.0.%d/24", subnet, n)))
	}
	for _, l := range lost {
		var node, link int
		if _, err := fmt.Sscanf(l, "%d/%d", &node, &link); err != nil {
			panic(err)
		}
		r.LostLinks = append(r.LostLinks, linkRef{fsm.NodeID(fmt.Sprintf("lb%d", node)), netip.MustParseAddr(fmt.Sprintf("10.%d.0.%d", 2*(link-1), node))})
	}
	return agedReport{r, 10}
}

// aWitness is on the front link only.
func aWitness(lost ...string) agedReport {
	r := reportOf(9, lost...)
	r.Node, r.Links, r.Control = "w1", nil, []linkAddr{at("eth0", "10.0.0.9/24")}
	return r
}

func aged(r agedReport) agedReport { r.AgeMS = 5000; return r }

func linkless(r agedReport) agedReport { r.LinksUp = false; return r }

func TestWhoIsCutOffIsFoundByTheMajorityOnTheLink(t *testing.T) {
	for _, tc := range []struct {
		name    string
		reports []agedReport
		want    string // "node:link"
	}{
		{"nobody", []agedReport{reportOf(1), reportOf(2), reportOf(3)}, ""},
		{"the wire of one node", []agedReport{reportOf(1, "2/2", "3/2"), reportOf(2, "1/2"), reportOf(3, "1/2")}, "lb1:eth2"},
		{"a cut between two that both reach the third", []agedReport{reportOf(1, "2/2"), reportOf(2, "1/2"), reportOf(3)}, ""},
		{"the switch of a link: everybody is alike", []agedReport{reportOf(1, "2/2", "3/2"), reportOf(2, "1/2", "3/2"), reportOf(3, "1/2", "2/2")}, ""},
		{"echoes are filtered everywhere: everybody is alike", []agedReport{
			reportOf(1, "2/1", "3/1", "2/2", "3/2"), reportOf(2, "1/1", "3/1", "1/2", "3/2"), reportOf(3, "1/1", "2/1", "1/2", "2/2"),
		}, ""},
		{"two alone on a link cannot tell who is at fault", []agedReport{reportOf(1, "2/2"), reportOf(2, "1/2"), aWitness()}, ""},
		{"a witness on the link tells", []agedReport{reportOf(1, "2/1"), reportOf(2, "1/1"), aWitness("1/1")}, "lb1:eth1"},
		{"its programs and its daemon are gone: it says nothing", []agedReport{aged(reportOf(1)), reportOf(2, "1/1", "1/2"), reportOf(3, "1/1", "1/2")}, "lb1:eth1 lb1:eth2"},
		{"the same in two nodes and a witness", []agedReport{aged(reportOf(1)), reportOf(2, "1/1", "1/2"), aWitness("1/1")}, "lb1:eth1"},
		{"the switch of a link, and one says nothing", []agedReport{
			reportOf(1, "2/2", "3/2", "4/2"), reportOf(2, "1/2", "3/2", "4/2"), reportOf(3, "1/2", "2/2", "4/2"), aged(reportOf(4)),
		}, ""},
		{"old words do not count", []agedReport{reportOf(1), aged(reportOf(2, "1/2")), reportOf(3, "1/2")}, ""},
		{"a node without carrier accuses nobody", []agedReport{linkless(reportOf(1, "2/2", "3/2")), reportOf(2, "1/2"), reportOf(3, "1/2", "2/2")}, "lb1:eth2"},
		{"two of five", []agedReport{
			reportOf(1, "3/2", "4/2", "5/2"), reportOf(2, "3/2", "4/2", "5/2"), reportOf(3, "1/2", "2/2"), reportOf(4, "1/2", "2/2"), reportOf(5, "1/2", "2/2"),
		}, "lb1:eth2 lb2:eth2"},
	} {
		var got []string
		for n, links := range cutOff(tc.reports) {
			for _, l := range links {
				got = append(got, string(n)+":"+l.Interface)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != tc.want {
			t.Errorf("%s: %v, want %q", tc.name, got, tc.want)
		}
	}
}
