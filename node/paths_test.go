package node

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/node/detect"
	"pontoon/node/host"
)

func prefixes(ps ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range ps {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestOneAddressOfEachLinkIsTold(t *testing.T) {
	got := probeAddrs([]host.Link{
		{Name: "eth1", Prefixes: prefixes("fd00::1/64", "10.0.0.1/24", "10.0.1.1/24")},
		{Name: "eth2", Prefixes: prefixes("fd01::1/64")},
		{Name: "eth3", Prefixes: prefixes("10.9.9.9/32")},
		{Name: "eth4"},
	})
	want := []linkAddr{{"eth1", netip.MustParsePrefix("10.0.0.1/24")}, {"eth2", netip.MustParsePrefix("fd01::1/64")}}
	if !slices.Equal(got, want) {
		t.Fatalf("%v", got)
	}
}

func TestPathsLeadToPeersOnTheSameSubnetOnly(t *testing.T) {
	link := func(i, p string) linkAddr { return linkAddr{i, netip.MustParsePrefix(p)} }
	own := []linkAddr{link("eth1", "10.0.0.1/24"), link("eth2", "fd01::1/64")}
	paths, owner := pathsTo(own, map[fsm.NodeID][]linkAddr{
		"lb2": {link("eth1", "10.0.0.2/24"), link("ens3", "fd01::2/64")},
		"lb3": {link("eth1", "10.0.7.3/24")},
		"lb4": {link("eth1", "10.0.0.1/24")}, // our own address: a mistake of somebody's
	}, detect.EchoConfig{})
	if len(paths) != 2 || len(owner) != 2 {
		t.Fatalf("%v", paths)
	}
	for _, p := range paths {
		if owner[p.Key] != "lb2" || p.Validate() != nil {
			t.Errorf("%v of %s: %v", p.Key, owner[p.Key], p.Validate())
		}
	}
}

func TestANodeIsLostWhenEveryPathToItFallsSilent(t *testing.T) {
	path := func(i string, s detect.State, why detect.Silence, known bool) detect.EchoStatus {
		st := detect.EchoStatus{Key: detect.Key{Interface: i}, State: s, Why: why}
		if known {
			st.LastGood = time.Unix(1, 0)
		}
		return st
	}
	up := path("eth1", detect.Up, detect.Answered, true)
	for name, tc := range map[string]struct {
		paths []detect.EchoStatus
		lost  bool
	}{
		"all silent":                     {[]detect.EchoStatus{path("eth1", detect.Down, detect.Unanswered, true), path("eth2", detect.Down, detect.Unanswered, true)}, true},
		"one still answers":              {[]detect.EchoStatus{up, path("eth2", detect.Down, detect.Unanswered, true)}, false},
		"its kernel refuses":             {[]detect.EchoStatus{path("eth1", detect.Down, detect.Refused, true)}, false},
		"our own link is the trouble":    {[]detect.EchoStatus{path("eth1", detect.Down, detect.Unsent, true)}, false},
		"never heard":                    {[]detect.EchoStatus{path("eth1", detect.Down, detect.Unanswered, false)}, false},
		"one path silent, one never up":  {[]detect.EchoStatus{path("eth1", detect.Down, detect.Unanswered, true), path("eth2", detect.Down, detect.Unanswered, false)}, true},
		"one silent, the other unusable": {[]detect.EchoStatus{path("eth1", detect.Down, detect.Unanswered, true), path("eth2", detect.Down, detect.Unsent, true)}, false},
		"no path":                        {nil, false},
	} {
		owner := map[detect.Key]fsm.NodeID{{Interface: "eth1"}: "lb2", {Interface: "eth2"}: "lb2"}
		if got := lostNodes(tc.paths, owner); (len(got) == 1) != tc.lost {
			t.Errorf("%s: %v", name, got)
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
