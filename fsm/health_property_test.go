package fsm

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// genSetHealth is what some node says in some epoch, mostly the one that the
// default instance is in at the beginning.
func genSetHealth(t *rapid.T) Command {
	return SetHealth{
		Instance: pick(t, "instance", []string{DefaultInstance, DefaultInstance, DefaultInstance, "blue"}), Node: pick(t, "node", []NodeID{"a", "a", "a", "b"}),
		Epoch: uint64(pick(t, "epoch", []int{9, 9, 9, 9, 8, 20})), Verdicts: genVerdicts(t, nil),
	}
}

// genVerdicts are about some of the ids, or any.
func genVerdicts(t *rapid.T, ids []uint32) []Verdict {
	var out []Verdict
	for range 1 + dice(t, "verdicts", 5) {
		id := uint32(dice(t, "endpoint", 20))
		if len(ids) > 0 && often(t, "existing") {
			id = pick(t, "id", ids)
		}
		out = append(out, Verdict{
			Endpoint: id, Health: pick(t, "health", []Health{HealthUp, HealthDown, HealthDown, HealthUnknown}),
			Since: epoch0, Why: pick(t, "why", []string{"", "refused"}), Share: uint8(pick(t, "share", []int{0, 10, 100})),
		})
	}
	return out
}

// Verdicts exist only about endpoints that exist and are probed, and none
// outlives a change of the question. Only a prober of the present epoch is heard.
func TestVerdictInvariants(t *testing.T) {
	given, dropped := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			for _, c := range []Command{c, genConfig(t), genConfig(t)} { // services come and go
				before := s
				s, _ = s.Apply(s.Index()+1, c)
				checkVerdicts(t, s)
				checkKept(t, before, s)
				if _, said := c.(SetHealth); !said {
					dropped += len(before.Verdicts()) - len(s.Verdicts())
				}
			}
			node, epoch := s.Prober(DefaultInstance)
			if node == "" || flag(t, "silent") {
				continue
			}
			say := SetHealth{Instance: DefaultInstance, Node: node, Epoch: epoch, Verdicts: genVerdicts(t, endpointIDsOf(s))}
			next, err := s.Apply(s.Index()+1, say)
			if err != nil {
				t.Fatalf("the prober is refused: %v", err)
			}
			checkVerdicts(t, next)
			given += len(next.Verdicts())
			for _, wrong := range []SetHealth{{Instance: DefaultInstance, Node: "nobody", Epoch: epoch}, {Instance: DefaultInstance, Node: node, Epoch: epoch + 1}} {
				if err := next.Check(wrong); err == nil {
					t.Fatalf("%+v is heard", wrong)
				}
			}
			s = next
		}
	})
	t.Logf("%d verdicts seen, %d dropped", given, dropped)
	if given < 100 || dropped < 10 {
		t.Errorf("%d verdicts seen and %d dropped: too few to tell anything", given, dropped)
	}
}

func endpointIDsOf(s *State) []uint32 {
	var ids []uint32
	for _, svc := range s.Services() {
		for _, e := range svc.Endpoints {
			ids = append(ids, e.ID)
		}
	}
	return ids
}

func checkVerdicts(t *rapid.T, s *State) {
	about := map[uint32]Service{}
	for _, svc := range s.Services() {
		all := s.Uses(svc)
		for i, e := range svc.Endpoints {
			about[e.ID] = svc
			uses, why := s.Usable(svc, e)
			if all[i] != (Use{uses, why}) {
				t.Fatalf("%s of %s: usable %v %q, among all %+v", e.Address, svc.Name, uses, why, all[i])
			}
			isDown := s.Health(e.ID).Health == HealthDown
			if uses != (why == "") || uses && e.refuses() != "" || uses && isDown && (svc.AllDown == AllDownClosed || !s.AllEndpointsDown(svc)) {
				t.Fatalf("%s of %s: usable %v %q, %+v", e.Address, svc.Name, uses, why, s.Health(e.ID))
			}
		}
	}
	for _, v := range s.Verdicts() {
		if svc, ok := about[v.Endpoint]; !ok || !svc.Probe.Active() || v.Health == HealthUnknown || v.Share > 99 {
			t.Fatalf("%+v is about %+v", v, svc)
		}
	}
}

// checkKept holds that what is still known is about the same endpoint, asked the same.
func checkKept(t *rapid.T, before, after *State) {
	find := func(s *State, id uint32) (Service, Endpoint) {
		for _, svc := range s.Services() {
			if i := slices.IndexFunc(svc.Endpoints, func(e Endpoint) bool { return e.ID == id }); i >= 0 {
				return svc, svc.Endpoints[i]
			}
		}
		return Service{}, Endpoint{}
	}
	for _, v := range after.Verdicts() {
		if before.Health(v.Endpoint) != v {
			continue // it was said anew
		}
		was, one := find(before, v.Endpoint)
		is, same := find(after, v.Endpoint)
		if was.Name != is.Name || one.Address != same.Address || !sameQuestion(was.Probe, is.Probe) {
			t.Fatalf("%+v was about %+v %+v, and now about %+v %+v", v, was, one, is, same)
		}
	}
}
