package node

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pontoon/fsm"
)

func TestEventsOfHealth(t *testing.T) {
	up, down, unknown := fsm.Verdict{Health: fsm.HealthUp}, fsm.Verdict{Health: fsm.HealthDown, Why: "connection refused"}, fsm.Verdict{Health: fsm.HealthUnknown}
	flaps := down
	flaps.Flapping = true
	ramp := fsm.Verdict{Health: fsm.HealthUp, Share: 10}
	const one, two = "198.51.100.1:80", "198.51.100.2:80"
	base := stateWith(t, balancers(t, 1), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, webOn("web", "192.0.2.100", one, two))
	for name, tc := range map[string]struct {
		was, is []fsm.Verdict
		want    []string
	}{
		"found at first":   {[]fsm.Verdict{unknown, unknown}, []fsm.Verdict{up, up}, []string{"service web: 2 endpoints up, as the first probes found"}},
		"dead from first":  {[]fsm.Verdict{unknown, unknown}, []fsm.Verdict{up, down}, []string{"endpoint " + two + " of service web is down: connection refused", "service web: 1 endpoint up, as the first probes found"}},
		"dies":             {[]fsm.Verdict{up, up}, []fsm.Verdict{up, down}, []string{"endpoint " + two + " of service web is down: connection refused"}},
		"comes back":       {[]fsm.Verdict{down, up}, []fsm.Verdict{up, up}, []string{"endpoint " + one + " of service web is up"}},
		"slow start":       {[]fsm.Verdict{ramp, up}, []fsm.Verdict{up, up}, nil},
		"begins to flap":   {[]fsm.Verdict{down, up}, []fsm.Verdict{flaps, up}, []string{"changes too often"}},
		"flaps as it dies": {[]fsm.Verdict{up, up}, []fsm.Verdict{flaps, up}, []string{"is down: connection refused; it changes too often"}},
		"calms down":       {[]fsm.Verdict{flaps, up}, []fsm.Verdict{down, up}, []string{"has calmed down"}},
		"nothing new":      {[]fsm.Verdict{up, down}, []fsm.Verdict{up, down}, nil},
	} {
		prev := tell(t, base, "web", tc.was...)
		next := tell(t, prev, "web", tc.is...)
		var got []string
		for _, e := range stateEvents(prev, next) {
			got = append(got, e.Text)
		}
		if len(got) != len(tc.want) {
			t.Errorf("%s: %q", name, got)
			continue
		}
		for i, want := range tc.want {
			if !strings.Contains(got[i], want) {
				t.Errorf("%s: %q, want %q", name, got[i], want)
			}
		}
	}
}

func TestEventsOfManyDeathsAreFew(t *testing.T) {
	var endpoints []string
	var verdicts, dead []fsm.Verdict
	for i := range 100 {
		endpoints = append(endpoints, fmt.Sprintf("198.51.100.%d:80", i+1))
		verdicts = append(verdicts, fsm.Verdict{Health: fsm.HealthUp})
		dead = append(dead, fsm.Verdict{Health: fsm.HealthDown, Why: "no answer in 1s"})
	}
	s := stateWith(t, balancers(t, 1), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}}, webOn("web", "192.0.2.100", endpoints...))
	prev := tell(t, s, "web", verdicts...)
	events := stateEvents(prev, tell(t, prev, "web", dead...))
	if len(events) != mostHealthEvents+1 {
		t.Fatalf("%d events", len(events))
	}
	if last := events[mostHealthEvents]; last.Text != "service web: 90 endpoints down as well" || last.Fields["service"] != "web" {
		t.Errorf("%+v", last)
	}
	if first := events[0]; first.Fields["from"] != "up" || first.Fields["to"] != "down" || first.Fields["why"] != "no answer in 1s" {
		t.Errorf("%+v", first)
	}
}

func TestDrainsAreToldOnce(t *testing.T) {
	var never time.Time
	deadline := noon.Add(time.Minute)
	var d drains
	row := func(id uint32, left uint64, until time.Time) draining {
		return draining{id: id, service: "web", endpoint: fsm.Endpoint{Address: socket("198.51.100.1:80"), DrainUntil: until}, left: left}
	}
	expect := func(now time.Time, all []draining, want ...string) {
		t.Helper()
		var got []string
		for _, e := range d.step(all, now) {
			got = append(got, strings.TrimPrefix(e.Text, "endpoint 198.51.100.1:80 of service web "))
		}
		if !slices.Equal(got, want) {
			t.Errorf("after %s: %q, want %q", now.Sub(noon), got, want)
		}
	}
	expect(noon, []draining{row(1, 0, never), row(2, 5, never), row(3, 7, deadline)}) // old news
	expect(noon, []draining{row(1, 0, never), row(2, 1, never), row(3, 7, deadline), row(4, 0, never)}, "is drained: no flow is left")
	expect(noon, []draining{row(1, 0, never), row(2, 0, never), row(3, 7, deadline), row(4, 0, never)}, "is drained: no flow is left")
	expect(deadline, []draining{row(2, 3, never), row(3, 6, deadline)}, "is drained: its time is over, 7 flows ended")
	expect(deadline.Add(time.Second), []draining{row(2, 0, never), row(3, 0, deadline)})
	d.step(nil, deadline)
	expect(deadline, []draining{row(2, 0, never)}, "is drained: no flow is left") // drained anew
	later := deadline.Add(time.Minute)
	expect(deadline, []draining{row(3, 2, later)}, "drains: 2 flows left")
	expect(later, []draining{row(3, 0, later)}, "is drained: its time is over, 2 flows ended") // the data plane was quicker than the look
	kept := row(3, 2, later.Add(time.Minute))
	kept.keeps = true
	expect(later, []draining{kept}, "drains: 2 flows left") // another deadline is another drain
	expect(later.Add(time.Minute), []draining{kept}, "is drained: its time is over, 2 flows go on")
	kept.endpoint.DrainUntil = later.Add(time.Hour)
	expect(later.Add(time.Minute), []draining{kept}, "drains: 2 flows left")
	kept.left = 0 // by itself, just before its time was over
	expect(later.Add(time.Hour), []draining{kept}, "is drained: no flow is left")
}

// However long a drain takes and however many flows there are, it is told of now and then.
func TestDrainsTellHowManyFlowsAreLeft(t *testing.T) {
	var d drains
	d.step(nil, noon)
	var texts []string
	look := func(after time.Duration, left uint64) {
		t.Helper()
		for _, e := range d.step([]draining{{id: 1, service: "web", endpoint: fsm.Endpoint{Address: socket("198.51.100.1:80")}, left: left}}, noon.Add(after)) {
			texts = append(texts, e.Text)
			if e.Fields["left"] != fmt.Sprint(left) || e.Fields["drained"] != fmt.Sprint(left == 0) {
				t.Errorf("%s: fields %v", e.Text, e.Fields)
			}
		}
	}
	look(0, 1000)
	look(time.Second, 400) // less than half, but too soon
	look(drainTellEvery, 390)
	look(2*drainTellEvery, 200)
	for i := range 195 {
		look(3*drainTellEvery+time.Duration(i)*time.Minute, uint64(195-i))
	}
	look(10*time.Hour, 0)
	var want []string
	for _, left := range []int{1000, 390, 195, 97, 48, 24, 12, 6, 3, 1} {
		want = append(want, fmt.Sprintf("endpoint 198.51.100.1:80 of service web drains: %s left", counted(left, "flow")))
	}
	want = append(want, "endpoint 198.51.100.1:80 of service web is drained: no flow is left")
	if !slices.Equal(texts, want) {
		t.Errorf("%q,\nwant %q", texts, want)
	}
}

// Where all nodes forward and hold no copies of each other's flows, each tells of its own, and says so.
func TestADrainIsToldPerNodeWhereEachHasItsOwnFlows(t *testing.T) {
	put := webOn("web", "192.0.2.100", "198.51.100.1:80")
	put.Service.Endpoints[0].Admin = fsm.AdminDrain
	for replicate, want := range map[fsm.Replicate]string{
		fsm.ReplicateNone:        "endpoint 198.51.100.1:80 of service web is drained on lb2: no flow is left",
		fsm.ReplicateEstablished: "endpoint 198.51.100.1:80 of service web is drained: no flow is left",
	} {
		put.Service.Replicate = replicate
		s := stateWith(t, balancers(t, 2), fsm.PutInstance{Name: "wide", Kind: fsm.InstanceECMP},
			fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100"), Instance: "wide", Announce: fsm.AnnounceBGP}}, put)
		var d drains
		d.step(nil, noon)
		if got := d.step(drainingAt(s, "lb2"), noon); len(got) != 1 || got[0].Text != want {
			t.Errorf("%s: %+v, want %s", replicate, got, want)
		}
	}
}

// A node without copies knows nothing of what the master has left, and must not tell that it is over.
func TestADrainIsToldByWhoSeesAllFlows(t *testing.T) {
	s := stateWith(t, balancers(t, 2), fsm.PutVIP{VIP: fsm.VIP{Address: mustAddr("192.0.2.100")}})
	master, _ := s.Prober(fsm.DefaultInstance)
	other := fsm.NodeID("lb1")
	if master == other {
		other = "lb2"
	}
	for i, tc := range []struct {
		change func(*fsm.Service)
		told   int // by the other
	}{
		{func(*fsm.Service) {}, 1},
		{func(svc *fsm.Service) { svc.Replicate = fsm.ReplicateAll }, 1},
		{func(svc *fsm.Service) { svc.Replicate = fsm.ReplicateNone }, 0},
		{func(svc *fsm.Service) { svc.ReplicateMinAge = fsm.Duration(time.Second) }, 0},
	} {
		put := webOn("web", "192.0.2.100", "198.51.100.1:80")
		put.Service.Endpoints[0].Admin = fsm.AdminDrain
		tc.change(&put.Service)
		next := stateWith(t, s, put)
		tell := func(d *drains, self fsm.NodeID) int { return len(d.step(drainingAt(next, self), noon)) }
		var here, there drains
		here.step(nil, noon)
		there.step(nil, noon)
		if n := tell(&here, master); n != 1 {
			t.Errorf("case %d: the master tells %d times", i, n)
		}
		if n := tell(&there, other); n != tc.told {
			t.Errorf("case %d: the other tells %d times, want %d", i, n, tc.told)
		}
		if n := tell(&there, master); n != 0 {
			t.Errorf("case %d: it is told again by who becomes master", i)
		}
	}
}
