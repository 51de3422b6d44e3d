package announce

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestConfigurationMistakesAreToldAtOnce(t *testing.T) {
	good := BGPPeer{Address: netip.MustParseAddr("192.0.2.1"), AS: 65002, IPv4: true}
	cfg := func(change func(*BGPPeer)) BGPConfig {
		p := good
		change(&p)
		return BGPConfig{AS: 65001, RouterID: netip.MustParseAddr("10.0.0.1"), Peers: []BGPPeer{p}}
	}
	for name, c := range map[string]struct {
		cfg  BGPConfig
		want string // "" is good
	}{
		"good":               {cfg(func(*BGPPeer) {}), ""},
		"nothing at all":     {BGPConfig{}, ""},
		"link-local peer":    {cfg(func(p *BGPPeer) { p.Address = netip.MustParseAddr("fe80::1%eth0") }), "is no neighbour's address"},
		"no AS":              {cfg(func(p *BGPPeer) { p.AS = 0 }), "cannot be used"},
		"AS_TRANS":           {cfg(func(p *BGPPeer) { p.LocalAS = 23456 }), "cannot be used"},
		"short hold":         {cfg(func(p *BGPPeer) { p.Hold = time.Second }), "hold time"},
		"slow keepalive":     {cfg(func(p *BGPPeer) { p.Hold, p.Keepalive = 3*time.Second, 10*time.Second }), "keepalive"},
		"long password":      {cfg(func(p *BGPPeer) { p.Password = strings.Repeat("x", 81) }), "longer than 80"},
		"ttl and multihop":   {cfg(func(p *BGPPeer) { p.TTLSecurity, p.Multihop = true, 2 }), "exclude each other"},
		"ibgp multihop":      {cfg(func(p *BGPPeer) { p.AS, p.Multihop = 65001, 2 }), "another AS"},
		"source of family":   {cfg(func(p *BGPPeer) { p.Source = netip.MustParseAddr("fd00::1") }), "another family"},
		"no family":          {cfg(func(p *BGPPeer) { p.IPv4 = false }), "no family"},
		"twice":              {BGPConfig{AS: 1, RouterID: netip.MustParseAddr("10.0.0.1"), Peers: []BGPPeer{good, good}}, "stands there twice"},
		"no router id":       {BGPConfig{AS: 1, Peers: []BGPPeer{good}}, "no IPv4 address"},
		"IPv6 router id":     {BGPConfig{AS: 1, RouterID: netip.MustParseAddr("fd00::1"), Peers: []BGPPeer{good}}, "no IPv4 address"},
		"long restart time":  {BGPConfig{RestartTime: 2 * time.Hour}, "restart time"},
		"host bits imported": {BGPConfig{Import: []ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.1/8")}}}, "bits beyond"},
		"lengths reversed":   {BGPConfig{Import: []ImportRule{{Prefix: netip.MustParsePrefix("10.0.0.0/8"), MinLen: 24, MaxLen: 16}}}, "do not lie"},
	} {
		err := c.cfg.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

func TestChangesSayWhichSessionsAreTouchedAndWhy(t *testing.T) {
	p := func(n byte, change func(*BGPPeer)) BGPPeer {
		out := BGPPeer{Address: netip.AddrFrom4([4]byte{192, 0, 2, n}), AS: 65002, IPv4: true, GracefulRestart: n == 1}
		if change != nil {
			change(&out)
		}
		return out
	}
	base := BGPConfig{AS: 65001, RouterID: netip.MustParseAddr("10.0.0.1"), Port: 179, Peers: []BGPPeer{p(2, nil), p(1, nil)}}
	with := func(change func(*BGPConfig)) BGPConfig {
		c := base
		c.Peers = slices.Clone(base.Peers)
		change(&c)
		return c
	}
	for name, c := range map[string]struct {
		to   BGPConfig
		want string
	}{
		"nothing":             {base, ""},
		"defaults spelt out":  {with(func(c *BGPConfig) { c.Peers[0].Port, c.Peers[0].Hold, c.Peers[0].LocalAS = 179, 9*time.Second, 65001 }), ""},
		"order":               {with(func(c *BGPConfig) { slices.Reverse(c.Peers) }), ""},
		"import":              {with(func(c *BGPConfig) { c.Import, c.MaxImport, c.Multipath = ImportAll(), 5, true }), ""},
		"listen port":         {with(func(c *BGPConfig) { c.Port = 0 }), ""},
		"prefix limit":        {with(func(c *BGPConfig) { c.Peers[0].MaxPrefixes = 7 }), ""},
		"hold time":           {with(func(c *BGPConfig) { c.Peers[0].Hold = 30 * time.Second }), "192.0.2.2 reset: hold time 9s -> 30s"},
		"password":            {with(func(c *BGPConfig) { c.Peers[1].Password = "secret" }), "192.0.2.1 reset quietly: another password"},
		"restart time":        {with(func(c *BGPConfig) { c.RestartTime = time.Minute }), "192.0.2.1 reset quietly: restart time 2m0s -> 1m0s"},
		"one more, one less":  {with(func(c *BGPConfig) { c.Peers[0] = p(3, nil) }), "192.0.2.2 remove: it is no neighbour any more; 192.0.2.3 add: it is new"},
		"AS of the node":      {with(func(c *BGPConfig) { c.AS = 65009 }), "192.0.2.1 reset: local AS 65001 -> 65009; 192.0.2.2 reset: local AS 65001 -> 65009"},
		"router id":           {with(func(c *BGPConfig) { c.RouterID = netip.MustParseAddr("10.0.0.9") }), "192.0.2.1 reset: router id 10.0.0.1 -> 10.0.0.9; 192.0.2.2 reset: router id 10.0.0.1 -> 10.0.0.9"},
		"family and a second": {with(func(c *BGPConfig) { c.Peers[0].IPv6, c.Peers[1].Passive = true, true }), "192.0.2.1 reset quietly: passive false -> true; 192.0.2.2 reset: family ipv4 -> both"},
	} {
		var got []string
		for _, ch := range Changes(base, c.to) {
			quietly := ""
			if ch.Quiet {
				quietly = " quietly"
			}
			got = append(got, fmt.Sprintf("%v %s%s: %s", ch.Peer, ch.Action, quietly, ch.Why))
		}
		if s := strings.Join(got, "; "); s != c.want {
			t.Errorf("%s: %q, want %q", name, s, c.want)
		}
	}
}

func TestRoutesThatCannotBeAnnouncedAreRefused(t *testing.T) {
	good := route("192.0.2.1/32", 10)
	for name, c := range map[string]struct {
		change func(*Route)
		want   string
	}{
		"good":          {func(*Route) {}, ""},
		"host bits":     {func(r *Route) { r.Prefix = netip.MustParsePrefix("192.0.2.1/24") }, "bits beyond"},
		"other family":  {func(r *Route) { r.NextHop = netip.MustParseAddr("fd00::1") }, "another family"},
		"multicast hop": {func(r *Route) { r.NextHop = netip.MustParseAddr("224.0.0.1") }, "no next hop"},
		"prepended":     {func(r *Route) { r.Prepend = 32 }, "prepended"},
		"our own mark":  {func(r *Route) { r.LargeCommunities = [][3]uint32{{1<<32 - 1, 0, 1}} }, "reserved"},
		"communities":   {func(r *Route) { r.Communities = make([]uint32, 101) }, "more than 100"},
	} {
		r := good
		c.change(&r)
		_, err := newRouteSet([]Route{r})
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	if _, err := newRouteSet([]Route{good, good}); err != nil {
		t.Errorf("the same twice: %v", err)
	}
	if _, err := newRouteSet([]Route{good, route("192.0.2.1/32", 20)}); err == nil {
		t.Error("the same prefix with two MEDs was accepted")
	}
}

// After any sequence of sets, applying the differences has the last one in place.
func TestDifferencesOfRoutesLeadToTheWantedSet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have := routeSet{}
		for range rapid.IntRange(1, 6).Draw(t, "sets") {
			want, err := newRouteSet(drawRoutes(t))
			if err != nil {
				t.Fatal(err)
			}
			add, gone := want.diff(have)
			next := routeSet{}
			for p, r := range have {
				next[p] = r
			}
			for _, p := range gone {
				delete(next, p)
			}
			for _, r := range add {
				if h, ok := next[r.Prefix]; ok && h.equal(r) {
					t.Fatalf("%v is announced again without need", r.Prefix)
				}
				next[r.Prefix] = r
			}
			if len(next) != len(want) {
				t.Fatalf("%d routes, want %d", len(next), len(want))
			}
			for p, r := range want {
				if !next[p].equal(r) {
					t.Fatalf("%v is %v, want %v", p, next[p], r)
				}
			}
			have = next
		}
	})
}

// drawRoutes draws a set over few prefixes, so that sets overlap.
func drawRoutes(t *rapid.T) []Route {
	prefixes := rapid.SliceOfNDistinct(rapid.Uint8Range(1, 12), 0, 12, rapid.ID).Draw(t, "prefixes")
	out := make([]Route, len(prefixes))
	for i, n := range prefixes {
		r := Route{
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, n}), 32),
			MED:    rapid.SampledFrom([]uint32{10, 20, 40}).Draw(t, "med"), LocalPref: 200,
			Prepend: rapid.Uint8Range(0, 3).Draw(t, "prepend"),
		}
		if rapid.Bool().Draw(t, "community") {
			r.Communities = []uint32{65535 << 16}
		}
		if rapid.Bool().Draw(t, "large") {
			r.LargeCommunities = [][3]uint32{{65001, 0, 1}}
		}
		out[i] = r
	}
	return out
}

func TestTheBestPathsAreLearned(t *testing.T) {
	a, b, c := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("10.0.0.3")
	prefix := netip.MustParsePrefix("192.0.2.0/24")
	path := func(peer netip.Addr, change func(*received)) received {
		r := received{
			RouteView: RouteView{Peer: peer, Prefix: prefix, NextHop: peer, MED: 10, LocalPref: 100, ASPath: []uint32{65002}},
			pathLen:   1, external: true, id: peer,
		}
		if change != nil {
			change(&r)
		}
		return r
	}
	for name, c := range map[string]struct {
		paths []received
		want  []netip.Addr // with multipath; the first is taken without
	}{
		"equal":            {[]received{path(b, nil), path(a, nil), path(c, nil)}, []netip.Addr{a, b, c}},
		"local preference": {[]received{path(a, nil), path(b, func(r *received) { r.LocalPref, r.MED = 200, 90 })}, []netip.Addr{b}},
		"shorter path":     {[]received{path(a, func(r *received) { r.pathLen = 2 }), path(b, func(r *received) { r.MED = 90 })}, []netip.Addr{b}},
		"origin":           {[]received{path(a, func(r *received) { r.origin = 2 }), path(b, func(r *received) { r.MED = 90 })}, []netip.Addr{b}},
		"lower MED":        {[]received{path(a, func(r *received) { r.MED = 20 }), path(b, nil), path(c, func(r *received) { r.MED = 40 })}, []netip.Addr{b}},
		"MED of others":    {[]received{path(a, func(r *received) { r.MED, r.ASPath = 20, []uint32{65003} }), path(b, nil)}, []netip.Addr{a, b}},
		"external":         {[]received{path(a, func(r *received) { r.external = false }), path(b, nil)}, []netip.Addr{b}},
		"loop":             {[]received{path(a, func(r *received) { r.ASPath = []uint32{65002, 65001} }), path(b, func(r *received) { r.MED = 90 })}, []netip.Addr{b}},
		"local AS in path": {[]received{path(a, func(r *received) { r.ASPath = []uint32{65002, 65077} })}, nil},
		"no next hop":      {[]received{path(a, func(r *received) { r.NextHop = netip.Addr{} })}, nil},
		"same next hop":    {[]received{path(a, nil), path(b, func(r *received) { r.NextHop = a })}, []netip.Addr{a}},
	} {
		for _, multi := range []bool{true, false} {
			cfg := BGPConfig{AS: 65001, Import: ImportAll(), MaxImport: 10, Multipath: multi, Peers: []BGPPeer{{LocalAS: 65077}}}
			want := c.want
			if !multi && len(want) > 1 {
				want = want[:1]
			}
			var got []netip.Addr
			if l := learn(c.paths, cfg, nil).learned; len(l) > 0 {
				got = l[0].NextHops
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s, multipath %t: %v, want %v", name, multi, got, want)
			}
		}
	}
}

func TestImportRulesLetInWhatTheySay(t *testing.T) {
	rule := func(p string, lo, hi uint8) ImportRule {
		return ImportRule{Prefix: netip.MustParsePrefix(p), MinLen: lo, MaxLen: hi}
	}
	for _, c := range []struct {
		rules []ImportRule
		in    string
		out   string
	}{
		{nil, "", "10.0.0.0/8 0.0.0.0/0 ::/0"},
		{[]ImportRule{rule("10.0.0.0/8", 0, 0)}, "10.0.0.0/8", "10.1.0.0/16 11.0.0.0/8"},
		{[]ImportRule{rule("10.0.0.0/8", 16, 24)}, "10.1.0.0/16 10.1.1.0/24", "10.0.0.0/8 10.1.1.1/32 11.0.0.0/16"},
		{[]ImportRule{rule("10.0.0.0/8", 0, 16)}, "10.0.0.0/8 10.1.0.0/16", "10.1.1.0/24"},
		{[]ImportRule{rule("10.0.0.0/8", 24, 0)}, "10.1.1.0/24 10.1.1.1/32", "10.0.0.0/8"},
		{[]ImportRule{rule("0.0.0.0/0", 0, 0)}, "0.0.0.0/0", "10.0.0.0/8 ::/0"},
		{ImportAll(), "0.0.0.0/0 10.1.1.1/32 ::/0 fd00::1/128", ""},
	} {
		for _, p := range strings.Fields(c.in) {
			if !wanted(c.rules, netip.MustParsePrefix(p)) {
				t.Errorf("%v keeps %s out", c.rules, p)
			}
		}
		for _, p := range strings.Fields(c.out) {
			if wanted(c.rules, netip.MustParsePrefix(p)) {
				t.Errorf("%v lets %s in", c.rules, p)
			}
		}
	}
}

func TestOwnRoutesAndThoseOverTheLimitAreNotLearned(t *testing.T) {
	var paths []received
	peer := netip.MustParseAddr("10.0.0.1")
	for i := range byte(10) {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, i}), 32)
		paths = append(paths, received{RouteView: RouteView{Peer: peer, Prefix: p, NextHop: peer, ASPath: []uint32{65002}}, id: peer})
	}
	own := routeSet{paths[0].Prefix: {}}
	l := learn(paths, BGPConfig{AS: 65001, Import: ImportAll(), MaxImport: 5}, own)
	if len(l.learned) != 5 || l.learned[0].Prefix != paths[1].Prefix || l.left != 4 || l.received[peer] != 10 || l.accepted[peer] != 9 {
		t.Errorf("learned %+v", l)
	}
	for i, v := range l.views {
		if v.Best != (i >= 1 && i <= 5) {
			t.Errorf("%v: best %t", v.Prefix, v.Best)
		}
	}
}

func TestWordsForEnds(t *testing.T) {
	p := BGPPeer{Address: netip.MustParseAddr("192.0.2.1"), AS: 65002, LocalAS: 65001, Port: 179, Hold: 9 * time.Second, MaxPrefixes: 7}
	text := append([]byte{7}, "at noon"...)
	for _, c := range []struct {
		e    ending
		want string
	}{
		{ending{got: &notification{6, 2, text}}, "it was shut down by its administrator: at noon"},
		{ending{got: &notification{6, 4, append([]byte{3}, "a\x1bb"...)}}, "its administrator reset the session: a b"},
		{ending{got: &notification{6, 2, []byte{200, 'x'}}}, "it was shut down by its administrator"},
		{ending{got: &notification{6, 3, nil}}, "this node was removed from its configuration"},
		{ending{got: &notification{6, 10, nil}}, "its BFD session with this node went down"},
		{ending{got: &notification{4, 0, nil}}, "it heard nothing from this node for its hold time"},
		{ending{got: &notification{2, 2, nil}}, "it refuses AS 65001: it expects another AS of this node"},
		{ending{got: &notification{2, 7, nil}}, "it refuses a capability of this node: are the families of routes the same on both sides?"},
		{ending{got: &notification{3, 9, nil}}, "it closed the session with an error: UPDATE message error, subcode 9"},
		{ending{sent: &notification{2, 2, nil}, opened: true, openAS: 65010}, "it is AS 65010, and not AS 65002"},
		{ending{sent: &notification{4, 0, nil}, opened: true, established: true}, "nothing was heard from it for the hold time"},
		{ending{sent: &notification{6, 1, nil}}, "it sent more than 7 prefixes"},
		{ending{sent: &notification{3, 1, nil}}, "it sent what cannot be read: UPDATE message error, subcode 1"},
		{ending{}, "it closed the connection without a word: it may not know this node as a neighbour, or knows it by another address"},
		{ending{opened: true}, "it closed the connection while the session was being set up"},
		{ending{opened: true, established: true}, "the connection was lost"},
		{ending{opened: true, established: true, kept: true}, "the connection was lost; its routes are kept while it may be restarting"},
	} {
		if got := c.e.words(p); got != c.want {
			t.Errorf("%+v: %q, want %q", c.e, got, c.want)
		}
	}
}

func TestWordsForConnectionsThatCannotBeOpened(t *testing.T) {
	p := BGPPeer{Address: netip.MustParseAddr("192.0.2.1"), AS: 65002, LocalAS: 65001, Port: 179}
	secret, guarded, distant := p, p, p
	secret.Password, guarded.TTLSecurity, distant.Multihop = "x", true, 8
	for _, c := range []struct {
		p    BGPPeer
		err  error
		want string
	}{
		{p, unix.ECONNREFUSED, "connection refused by 192.0.2.1:179"},
		{p, unix.EHOSTUNREACH, "no route to 192.0.2.1: nothing answers at that address, or it is not on a link of this node (multihop)"},
		{distant, unix.ENETUNREACH, "no route to 192.0.2.1: nothing answers at that address"},
		{p, unix.ETIMEDOUT, "expects a password"},
		{p, os.ErrDeadlineExceeded, "no answer from 192.0.2.1:179"},
		{secret, unix.ETIMEDOUT, "the password may differ"},
		{guarded, unix.ETIMEDOUT, "TTL security"},
		{p, unix.ECONNRESET, "closed the connection at once"},
		{p, errors.New("strange"), "strange"},
	} {
		if got := dialWords(c.p, fmt.Errorf("dial: %w", c.err)); !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.err, got, c.want)
		}
	}
	if got := dialWords(distant, unix.EHOSTUNREACH); strings.Contains(got, "multihop") {
		t.Errorf("a distant neighbour is said to be near: %q", got)
	}
}

// An OPEN and a NOTIFICATION are found in any pieces, whatever else is said.
func TestTranscriptFindsWhatExplainsAnEnd(t *testing.T) {
	open := message(1, append([]byte{4, 0x5b, 0xa0, 0, 9, 10, 0, 0, 1, 8, 2, 6, 65, 4}, 0, 3, 0xd0, 0x90))
	update, keepalive := message(2, make([]byte, 3000)), message(4, nil)
	said := slices.Concat(open, keepalive, update, keepalive, message(3, []byte{6, 2, 2, 'h', 'i'}))
	rapid.Check(t, func(t *rapid.T) {
		var tr transcript
		for rest := said; len(rest) > 0; {
			n := min(len(rest), rapid.IntRange(1, 900).Draw(t, "piece"))
			tr.add(rest[:n])
			rest = rest[n:]
		}
		if !tr.open || tr.openAS != 250000 || tr.notified == nil || tr.notified.code != 6 || shutdownText(tr.notified.data) != "hi" {
			t.Fatalf("%+v", tr)
		}
	})
}

func message(kind byte, body []byte) []byte {
	head := make([]byte, headerLen)
	n := headerLen + len(body)
	head[16], head[17], head[18] = byte(n>>8), byte(n), kind
	return append(head, body...)
}

func FuzzTranscript(f *testing.F) {
	f.Add(message(1, []byte{4, 0xfd, 0xe9, 0, 9, 10, 0, 0, 1, 2, 2, 0}))
	f.Add(message(1, []byte{4, 0xfd, 0xe9, 0, 9, 10, 0, 0, 1, 255, 255, 0, 9, 2, 0, 6, 65, 4, 0, 0, 253, 233}))
	f.Add(message(3, []byte{6, 2, 200}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var whole, pieces transcript
		whole.add(b)
		for i := range b {
			pieces.add(b[i : i+1])
		}
		if whole.open != pieces.open || whole.openAS != pieces.openAS || (whole.notified == nil) != (pieces.notified == nil) {
			t.Errorf("pieces read otherwise: %+v and %+v", whole, pieces)
		}
		if whole.notified != nil {
			_ = ending{got: whole.notified}.words(BGPPeer{})
			_ = ending{sent: whole.notified}.words(BGPPeer{})
		}
	})
}
