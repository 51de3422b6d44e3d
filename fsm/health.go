package fsm

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Health is what the cluster has found out about an endpoint.
type Health string

// The kinds of health.
const (
	HealthUnknown Health = "unknown" // nothing probes it, or not for long enough yet; it counts as up
	HealthUp      Health = "up"
	HealthDown    Health = "down"
)

// DownPolicy is what the flows of an endpoint get that was found down. New ones
// it does not get in any case.
type DownPolicy string

// What becomes of the flows of an endpoint that is down.
const (
	DownKeep  DownPolicy = "keep"  // they go on: it may be back before its clients give up
	DownReset DownPolicy = "reset" // TCP reset, SCTP abort, ICMP unreachable
	DownMove  DownPolicy = "move"  // forgotten: the next packet chooses anew; TCP in the middle of a connection is reset
)

// AllDown is what a new flow gets when all endpoints of a service that could
// take it are down.
type AllDown string

// What becomes of new flows when all endpoints are down.
const (
	AllDownOpen   AllDown = "open"   // they go to all of them as if they were up: the probe may be what is wrong
	AllDownClosed AllDown = "closed" // TCP reset, SCTP abort, ICMP unreachable
)

// The bounds of Service.SlowStart, apart from 0.
const (
	MinSlowStart = Duration(time.Second)
	MaxSlowStart = Duration(time.Hour)
)

// MaxWhy is the greatest length of Verdict.Why in bytes.
const MaxWhy = 200

// Verdict is what the prober of an instance has found out about one endpoint.
type Verdict struct {
	Endpoint uint32    `json:"endpoint"` // its id
	Health   Health    `json:"health"`
	Since    time.Time `json:"since"`              // in UTC, by the prober's clock, for people
	Why      string    `json:"why,omitempty"`      // in plain words, what the last probe found; "" when it is up
	Share    uint8     `json:"share,omitempty"`    // percent of its weight that it gets (slow start); 0 is all of it, see Percent
	Flapping bool      `json:"flapping,omitempty"` // it changes so often that it is kept down for longer

	// Question is what was asked, see State.Asked; 0 is whatever is asked when the verdict
	// is committed. In SetHealth only: the state does not keep it.
	Question uint32 `json:"question,omitempty"`
}

// Percent is the part of its weight that the endpoint gets, 1 to 100.
func (v Verdict) Percent() int {
	if v.Share == 0 || v.Share > 100 {
		return 100
	}
	return int(v.Share)
}

// normal brings a verdict into the one form the state keeps.
func (v Verdict) normal() Verdict {
	if v.Share == 100 {
		v.Share = 0
	}
	if v.Health != HealthDown {
		v.Why = ""
	}
	v.Why = oneLine(v.Why, MaxWhy)
	return v
}

// oneLine makes of text, which a server may have had a word in, one line of at most
// so many bytes. It asks no table of Unicode: those differ between versions.
func oneLine(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
	s = strings.Trim(s, " ")
	if len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// SetHealth is what the prober of an instance has found out about its
// endpoints: those that are named have this verdict from now on, or none
// (HealthUnknown). Verdicts about endpoints that are gone, that belong to another
// instance, that nothing probes or that are asked something else by now are passed over. Refused with ErrNotFound,
// ErrInvalid, and with ErrStale unless Node is the instance's prober, in the epoch
// it has; see State.Prober.
type SetHealth struct {
	Instance string    `json:"instance"`
	Node     NodeID    `json:"node"`
	Epoch    uint64    `json:"epoch"`
	Verdicts []Verdict `json:"verdicts"`
}

func (SetHealth) kind() string { return "set_health" }

func (c SetHealth) apply(d *draft) error {
	if !d.instances.has(c.Instance) {
		return refuse(ErrNotFound, "instance %s does not exist: see \"pontoon instance list\"", shown(c.Instance))
	}
	if prober, epoch := d.Prober(c.Instance); c.Node == "" || prober != c.Node || epoch != c.Epoch {
		return refuse(ErrStale, "node %s does not probe instance %s in epoch %d: node %s does, in epoch %d",
			shown(c.Node), c.Instance, c.Epoch, shown(prober), epoch)
	}
	verdicts, err := c.normal()
	if err != nil {
		return err
	}
	mine := d.probedIn(c.Instance, verdicts)
	fresh := verdicts[:0]
	for _, v := range verdicts {
		if !mine.has(v.Endpoint) {
			continue
		}
		v.Question = 0
		old := d.health.get(v.Endpoint)
		switch {
		case v.Health == HealthUnknown && old != nil:
			d.health.drop(v.Endpoint)
		case v.Health != HealthUnknown && (old == nil || *old != v):
			fresh = append(fresh, v)
		}
	}
	d.health.putAll(fresh, func(v Verdict) uint32 { return v.Endpoint })
	return nil
}

// normal returns the verdicts sorted by endpoint, the last about each, in a new list.
func (c SetHealth) normal() ([]Verdict, error) {
	chk := &checker{object: "health of instance " + shown(c.Instance)}
	if len(c.Verdicts) > MaxID {
		chk.bad("verdicts", len(c.Verdicts), "are too many: at most %d", MaxID)
		return nil, chk.err()
	}
	list := make([]Verdict, 0, len(c.Verdicts))
	for _, v := range c.Verdicts {
		if v.Health != HealthUnknown {
			oneOf(chk, "health", v.Health, HealthUp, HealthDown)
		}
		if v.Share > 100 {
			chk.bad("share", v.Share, "must be 0 to 100")
		}
		v.Since = chk.instant("since", v.Since)
		list = append(list, v.normal())
		if len(chk.problems) > 0 {
			return nil, chk.err() // one that is wrong makes all suspicious: no list of thousands
		}
	}
	slices.SortStableFunc(list, func(a, b Verdict) int { return cmp.Compare(a.Endpoint, b.Endpoint) })
	last := list[:0]
	for i, v := range list {
		if i+1 == len(list) || list[i+1].Endpoint != v.Endpoint {
			last = append(last, v)
		}
	}
	return last, nil
}

// idSet is a set of ids.
type idSet [(MaxID + 1) / 64]uint64

func (s *idSet) has(id uint32) bool { return id <= MaxID && s[id/64]&(1<<(id%64)) != 0 }

func (s *idSet) add(id uint32) {
	if id <= MaxID {
		s[id/64] |= 1 << (id % 64)
	}
}

// probedIn picks, of the endpoints that verdicts are about, those that are
// probed, belong to the instance and are asked what the verdicts answer. The verdicts
// are sorted by endpoint.
func (d *draft) probedIn(instance string, verdicts []Verdict) *idSet {
	var asked, mine idSet
	for _, v := range verdicts {
		asked.add(v.Endpoint)
	}
	for _, r := range d.services.rows {
		svc := r.val
		if !svc.Probe.Active() || !slices.ContainsFunc(svc.Endpoints, func(e Endpoint) bool { return asked.has(e.ID) }) {
			continue
		}
		if v := d.vips.get(svc.VIP); v == nil || v.Instance != instance {
			continue
		}
		svc.answered(verdicts, &asked, &mine)
	}
	return &mine
}

// keepVerdicts drops the verdicts of a service's endpoints that do not hold for
// what takes its place: of those that are gone, and all when others things are
// asked, or others are asked.
func (d *draft) keepVerdicts(old, next Service) {
	same := sameQuestion(old.Probe, next.Probe) && next.Probe.Active()
	if old.Probe.ThroughVIP && (old.VIP != next.VIP || old.Port != next.Port || old.Tunnel != next.Tunnel) {
		same = false
	}
	for _, e := range old.Endpoints {
		if i, there := next.endpointAt(e.Address); same && there && next.Endpoints[i].ID == e.ID {
			continue
		}
		d.health.drop(e.ID)
	}
}

// Health returns what is known about the endpoint of this id: a verdict of
// HealthUnknown when nothing is.
func (s *State) Health(endpoint uint32) Verdict {
	if v := s.health.get(endpoint); v != nil {
		return *v
	}
	return Verdict{Endpoint: endpoint, Health: HealthUnknown}
}

// Verdicts returns what is known about endpoints, sorted by id.
func (s *State) Verdicts() []Verdict { return s.health.values() }

// Prober returns the node that probes the endpoints of an instance, and the
// epoch in which it does: the master, or, without one by its kind, the first of the
// succession. The node is "" while there is none.
func (s *State) Prober(instance string) (NodeID, uint64) {
	inst := s.instances.get(instance)
	switch {
	case inst == nil:
		return "", 0
	case inst.Kind != InstanceECMP:
		return inst.Master, inst.Epoch
	case len(inst.Succession) == 0:
		return "", inst.Epoch
	}
	return inst.Succession[0], inst.Epoch
}

// Usable says whether an endpoint of the service takes new flows, and why not, in
// words. One that is not probed counts as up. When all that could take new flows
// are down, they do so all the same unless the service's AllDown is closed.
// It looks at all endpoints when they are all down: for all of them ask Uses.
func (s *State) Usable(svc Service, e Endpoint) (uses bool, why string) {
	if why = e.refuses(); why != "" {
		return false, why
	}
	v := s.health.get(e.ID)
	if v == nil || v.Health != HealthDown || svc.AllDown != AllDownClosed && s.AllEndpointsDown(svc) {
		return true, ""
	}
	return false, v.downWords()
}

// Use is whether an endpoint takes new flows.
type Use struct {
	Uses bool
	Why  string // why not, in words; "" when it does
}

// Uses is Usable for all endpoints of a service, by position, at the cost of one
// look at each.
func (s *State) Uses(svc Service) []Use {
	out := make([]Use, len(svc.Endpoints))
	open := svc.AllDown != AllDownClosed && s.AllEndpointsDown(svc)
	for i, e := range svc.Endpoints {
		why := e.refuses()
		if v := s.health.get(e.ID); why == "" && !open && v != nil && v.Health == HealthDown {
			why = v.downWords()
		}
		out[i] = Use{Uses: why == "", Why: why}
	}
	return out
}

// AllEndpointsDown says whether a service has endpoints that could take new
// flows, and all of them are down.
func (s *State) AllEndpointsDown(svc Service) bool {
	some := false
	for _, e := range svc.Endpoints {
		if e.refuses() != "" {
			continue
		}
		if !s.isDown(e.ID) {
			return false
		}
		some = true
	}
	return some
}

func (s *State) isDown(endpoint uint32) bool {
	v := s.health.get(endpoint)
	return v != nil && v.Health == HealthDown
}

// refuses says in words why an endpoint takes no new flows by its
// configuration; "" when it would.
func (e Endpoint) refuses() string {
	switch {
	case e.Admin == AdminDown:
		return "taken down by the operator"
	case e.Admin == AdminDrain:
		return "draining"
	case e.Weight == 0:
		return "weight 0"
	}
	return ""
}

// downWords is why an endpoint that is down takes no new flows.
func (v Verdict) downWords() string {
	why := "down"
	if v.Flapping {
		why = "down, flapping"
	}
	if v.Why != "" {
		why += ": " + v.Why
	}
	return why
}

// HealthChange is one endpoint of which something else is known than before.
type HealthChange struct {
	Service  string
	Endpoint Endpoint
	Was, Is  Verdict
}

// HealthChanges tells of which endpoints something else is known in next than in
// prev, by service and address. Endpoints that came or went in between are left
// out. It costs one comparison of pointers while no verdict changed.
func HealthChanges(prev, next *State) []HealthChange {
	var changed idSet
	some := false
	diffTables(&prev.health, &next.health, func(v *Verdict) uint32 { return v.Endpoint }, func(id uint32, _ ChangeVerb) {
		changed.add(id)
		some = true
	})
	if !some {
		return nil
	}
	var out []HealthChange
	for _, r := range next.services.rows {
		for _, e := range r.val.Endpoints {
			if !changed.has(e.ID) {
				continue
			}
			old := prev.services.get(r.key)
			if old == nil {
				continue
			}
			if i, ok := old.endpointAt(e.Address); ok && old.Endpoints[i].ID == e.ID {
				out = append(out, HealthChange{Service: r.key, Endpoint: e, Was: prev.Health(e.ID), Is: next.Health(e.ID)})
			}
		}
	}
	return out
}

// sameHealth says whether the same endpoints are up and down in two states, with the
// same shares. Of states that share their verdicts it is one comparison of pointers.
func sameHealth(a, b *table[uint32, Verdict]) bool {
	return sameRows(a, b) || slices.EqualFunc(a.rows, b.rows, func(x, y row[uint32, Verdict]) bool {
		return x.key == y.key && (x.val == y.val || x.val.Health == y.val.Health && x.val.Share == y.val.Share)
	})
}
