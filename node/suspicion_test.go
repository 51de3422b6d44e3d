package node

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

// picture draws endpoints, one letter each: u up, D dying, f failing since a moment, d known to be down, n not known,
// o up and not probed since; a space begins the next service.
func picture(text string) []finding {
	var out []finding
	for i, part := range strings.Fields(text) {
		for _, c := range part {
			f := finding{
				service: string(rune('a' + i)), instance: "default", known: true, up: true, span: 6 * time.Second,
				since: noon.Add(-time.Hour), probed: noon.Add(-time.Second), committed: fsm.Verdict{Endpoint: uint32(len(out) + 1), Health: fsm.HealthUp},
			}
			switch c {
			case 'D':
				f.up, f.failing, f.since = false, true, noon
			case 'f':
				f.failing = true
			case 'd':
				f.up, f.failing, f.committed.Health = false, true, fsm.HealthDown
			case 'n':
				f.up, f.failing, f.since, f.committed.Health = false, true, noon, fsm.HealthUnknown
			case 'o':
				f.probed = noon.Add(-30 * time.Second)
			}
			out = append(out, f)
		}
	}
	return out
}

func TestWhoseDeathIsDoubted(t *testing.T) {
	for _, tc := range []struct {
		picture    string
		dying, ask []uint32
	}{
		{"uuuu", nil, nil},
		{"Duuu", nil, nil},
		{"D", []uint32{1}, []uint32{1}}, // all there is
		{"DD", []uint32{1, 2}, []uint32{1, 2}},
		{"Df", []uint32{1}, []uint32{1, 2}}, // the other one is about to
		{"ff", nil, nil},
		{"DDDu", nil, nil},
		{"DDDDu", []uint32{1, 2, 3, 4}, []uint32{1, 2, 3, 4}},
		{"Dfffu", []uint32{1}, []uint32{1, 2, 3, 4}},
		{"Ddddd", []uint32{1}, []uint32{1}},          // the others died before: the last
		{"Dnnnn d", []uint32{1}, []uint32{1}},        // or were never up
		{"Dddd u", nil, nil},                         // others work
		{"Do", nil, nil},                             // or did when they were asked
		{"DDoooooo", []uint32{1, 2}, []uint32{1, 2}}, // not probed since
		{"DD uuuu", []uint32{1, 2}, []uint32{1, 2}},  // all of a service
		{"D uuuu", nil, nil},
		{"D D D D", []uint32{1, 2, 3, 4}, []uint32{1, 2, 3, 4}}, // everything
		{"D D D D uu", nil, nil},
		{"DDu Df uu", []uint32{4}, []uint32{4, 5}},
	} {
		dying, ask := doubtful(picture(tc.picture))
		if !slices.Equal(dying, tc.dying) || !slices.Equal(ask, tc.ask) {
			t.Errorf("%q: %v, ask %v; want %v, ask %v", tc.picture, dying, ask, tc.dying, tc.ask)
		}
	}
}

func ids(held map[uint32]bool) []uint32 {
	var out []uint32
	for id := range held {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

func TestAnotherNodeReachesWhatDied(t *testing.T) {
	all := picture("DDDf")
	s, held, ask := suspicion{}.step(all, "", true, noon)
	if !slices.Equal(ids(held), []uint32{1, 2, 3}) || !slices.Equal(ask, []uint32{1, 2, 3, 4}) {
		t.Fatalf("held %v, ask %v", held, ask)
	}
	s, held, ask = s.step(all, "", true, noon.Add(100*time.Millisecond))
	if len(held) != 3 || ask != nil {
		t.Errorf("while it asks: held %v, ask %v", held, ask)
	}
	s = s.heard(reached{by: map[uint32]fsm.NodeID{1: "lb3", 2: "", 3: "lb2", 4: "lb2"}, when: noon.Add(time.Second)})
	s, held, ask = s.step(all, "", true, noon.Add(time.Second))
	if !slices.Equal(ids(held), []uint32{1, 3}) || ask != nil {
		t.Errorf("answered: held %v, ask %v", held, ask)
	}
	if text := heldWords(all, held, "", s.witness()); !strings.Contains(text, "2 of a") || !strings.Contains(text, "lb2 reaches them") {
		t.Errorf("in words: %s", text)
	}
	s, held, ask = s.step(all, "", true, noon.Add(askReachEvery+time.Millisecond))
	if len(held) != 2 || len(ask) != 4 {
		t.Errorf("later: held %v, ask %v", held, ask)
	}
	if s, held, ask = s.step(picture("uuuu"), "", true, noon.Add(3*time.Second)); held != nil || ask != nil || s.answers != nil {
		t.Errorf("all is well again: held %v, ask %v", held, ask)
	}
}

func TestWhatNobodyReachesIsDead(t *testing.T) {
	all := picture("DDff")
	s, _, _ := suspicion{}.step(all, "", true, noon)
	s = s.heard(reached{by: map[uint32]fsm.NodeID{1: "", 2: "", 3: "", 4: ""}, when: noon.Add(time.Second)})
	s, held, ask := s.step(all, "", true, noon.Add(time.Second))
	if len(held) > 0 || ask != nil {
		t.Errorf("held %v, ask %v", held, ask)
	}
	// The others fall within the answer's time, and are not asked about again.
	all = picture("DDDD")
	if _, held, ask = s.step(all, "", true, noon.Add(2*time.Second)); len(held) > 0 || ask != nil {
		t.Errorf("the others: held %v, ask %v", held, ask)
	}
	if _, held, ask = s.step(all, "", true, noon.Add(time.Second+answerHolds)); len(held) != 4 || len(ask) != 4 {
		t.Errorf("when the answer is old: held %v, ask %v", held, ask)
	}
}

func TestWhoIsNotAskedAboutGoesWithTheOthers(t *testing.T) {
	all := picture(strings.Repeat("D", 3*askSample))
	s, held, ask := suspicion{}.step(all, "", true, noon)
	if len(held) != len(all) || len(ask) != askSample || ask[0] == ask[1] {
		t.Fatalf("%d held, %d asked about", len(held), len(ask))
	}
	by := map[uint32]fsm.NodeID{}
	for i, id := range ask {
		if by[id] = ""; i%4 != 0 {
			by[id] = "lb2"
		}
	}
	s = s.heard(reached{by: by, when: noon})
	if _, held, _ = s.step(all, "", true, noon); len(held) != len(all)-askSample/4 {
		t.Errorf("%d of %d held: only those that are known not to be reached are dead", len(held), len(all))
	}
	for i, id := range ask {
		if i%3 != 0 {
			by[id] = ""
		}
	}
	few := 0
	for _, node := range by {
		if node != "" {
			few++
		}
	}
	if _, held, _ = s.step(all, "", true, noon); len(held) != few {
		t.Errorf("%d held, of which %d are reached: most are not", len(held), few)
	}
	for id := range by {
		by[id] = ""
	}
	if _, held, _ = s.step(all, "", true, noon); len(held) != 0 {
		t.Errorf("%d held that nobody reaches", len(held))
	}
}

func TestOwnTroubleExplainsItself(t *testing.T) {
	all := picture("DD")
	s, held, ask := suspicion{}.step(all, "a link is down", true, noon)
	if len(held) != 2 || ask != nil || s.asking {
		t.Errorf("held %v, ask %v", held, ask)
	}
	if text := heldWords(all, held, "a link is down", ""); !strings.Contains(text, "because a link is down") {
		t.Errorf("in words: %s", text)
	}
}

func TestNobodyToAskOrNoAnswerMeansToBelieve(t *testing.T) {
	all := picture("DD")
	if _, held, ask := (suspicion{}).step(all, "", false, noon); len(held) > 0 || ask != nil {
		t.Errorf("nobody to ask: held %v, ask %v", held, ask)
	}
	now, asked := noon, 0
	var s suspicion
	for range 100 {
		next, held, ask := s.step(all, "", true, now)
		s = next
		if len(ask) > 0 {
			asked++
			s = s.heard(reached{err: errors.New("no answer"), when: now})
		}
		if len(held) == 0 {
			break
		}
		now = now.Add(100 * time.Millisecond)
	}
	if asked != askTries || now.Sub(noon) > askTries*askReachEvery+time.Second {
		t.Errorf("asked %d times in %s", asked, now.Sub(noon))
	}
}

func TestWhoReachesWhat(t *testing.T) {
	got := whoReaches([]uint32{1, 2, 3}, map[fsm.NodeID][]uint32{"lb3": {1, 2}, "lb2": {2, 9}, "lb4": nil})
	if len(got) != 3 || got[1] != "lb3" || got[2] != "lb2" || got[3] != "" {
		t.Errorf("%v", got)
	}
}
