package fsm

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// The universe of the property tests is small, so that commands meet.
var (
	propNodes     = []NodeID{"a", "b", "c", "d"}
	propInstances = []string{DefaultInstance, "blue", "green"}
	propServices  = []string{"s1", "s2", "s3"}
	propTokens    = []string{"t1", "t2", "t3"}
	propAddrs     = []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "192.0.2.1", "2001:db8::1"}
)

// dice is uniform over 0..n-1. The integers and samples of rapid lean towards
// the first few values, which would leave whole commands untried.
func dice(t *rapid.T, label string, n int) int {
	v := 0
	for _, bit := range tosses.Draw(t, label) {
		v <<= 1
		if bit {
			v |= 1
		}
	}
	return v % n
}

var tosses = rapid.SliceOfN(rapid.Bool(), 10, 10)

func pick[T any](t *rapid.T, label string, from []T) T { return from[dice(t, label, len(from))] }

func flag(t *rapid.T, label string) bool { return rapid.Bool().Draw(t, label) }

// often is true nine times out of ten: a world where nothing works shows
// little.
func often(t *rapid.T, label string) bool { return dice(t, label, 10) > 0 }

func genClock(t *rapid.T) time.Time {
	return epoch0.Add(time.Duration(dice(t, "hours", 101)) * time.Hour)
}

func genToken(t *rapid.T) (id string, role Role) {
	return pick(t, "token", propTokens), pick(t, "role", []Role{RoleLB, RoleLB, RoleLB, RoleWitness})
}

func genNode(t *rapid.T, role Role) Node {
	name := pick(t, "name", propNodes)
	n := lbNode(name, 1+slices.Index(propNodes, name))
	n.Role = role
	if !often(t, "address") {
		n.Address = "10.0.0.1:7400"
	}
	if !often(t, "same machine") {
		n.Key = nodeKey("another machine")
	}
	if !often(t, "key") {
		n.Key = n.Key[:dice(t, "key length", KeySize)]
	}
	return n
}

func genMembership(t *rapid.T) Command {
	id, role := genToken(t)
	node := pick(t, "node", propNodes)
	switch dice(t, "membership", 8) {
	case 0, 1:
		now := genClock(t)
		ttl := time.Duration(dice(t, "ttl", 91)) * time.Hour
		return CreateToken{Token: Token{ID: id, Hash: secretHash(id), Role: role, Expires: now.Add(ttl)}, Now: now}
	case 2, 3:
		secret := id
		if !often(t, "secret") {
			secret = "guess"
		}
		return JoinNode{TokenID: id, SecretHash: secretHash(secret), Node: genNode(t, role), Now: genClock(t)}
	case 4:
		return SetVoter{Node: node}
	case 5:
		return RemoveNode{Node: node, Force: !often(t, "force")}
	case 6:
		return RecoverCluster{Survivor: node, GossipKey: make([]byte, pick(t, "gossip key", []int{0, gossipKeyLen, gossipKeyLen}))}
	}
	return RevokeToken{ID: id}
}

func genHealth(t *rapid.T) Command {
	node := pick(t, "node", propNodes)
	switch dice(t, "health", 6) {
	case 0, 1:
		return NodeVerdict{Node: node, Alive: often(t, "alive")}
	case 2, 3, 4:
		return NodeReport{Node: node, Ready: often(t, "ready"), LinksUp: often(t, "links"), InSync: flag(t, "sync")}
	}
	return DrainNode{Node: node, Draining: flag(t, "draining")}
}

func genInstance(t *rapid.T) Command {
	name := pick(t, "instance", propInstances)
	switch dice(t, "instance command", 6) {
	case 4, 5:
		return genSettings(t, name)
	case 0:
		return PutInstance{Name: name, Priorities: rapid.MapOfN(rapid.SampledFrom(propNodes), rapid.IntRange(-2, 2), 0, 2).Draw(t, "priorities")}
	case 1:
		return DeleteInstance{Name: name}
	}
	return MoveInstance{Name: name, To: pick(t, "to", propNodes)}
}

func genService(t *rapid.T) Service {
	var endpoints []Endpoint
	for range dice(t, "endpoints", 3) {
		at := netip.AddrFrom4([4]byte{10, 0, 0, byte(3 + dice(t, "host", 10))})
		weight := uint16(pick(t, "weight", []int{0, 1, 1, 2, 100, 100, 100, 101}))
		e := Endpoint{Address: netip.AddrPortFrom(at, 80), Weight: weight, Admin: pick(t, "admin", []AdminState{"", "", AdminDrain, AdminDown})}
		if e.Admin == AdminDrain {
			e.DrainUntil = pick(t, "until", []time.Time{{}, epoch0, epoch0.Add(time.Nanosecond)})
		}
		endpoints = append(endpoints, e)
	}
	return Service{
		Name: pick(t, "service", propServices), VIP: addr(pick(t, "vip", append(propAddrs, propAddrs[:2]...))),
		Port: pick(t, "port", []uint16{0, 1, 1, 2, 2, 3}), PortEnd: pick(t, "port end", []uint16{0, 0, 0, 1, 2, 3, 4}),
		Protocol:  pick(t, "protocol", []Protocol{"", "", TCP, UDP, UDP, SCTP, "x"}),
		Affinity:  pick(t, "affinity", []Affinity{"", "", "", AffinityClientIP}),
		Probe:     pick(t, "probe", []Probe{{}, {Type: ProbeTCP}, {Type: ProbeTCP}, {Type: ProbeTCP, Rise: 1}, {Type: ProbeICMP}}),
		AllDown:   pick(t, "all down", []AllDown{"", "", AllDownClosed}),
		Endpoints: endpoints,
	}
}

func genConfig(t *rapid.T) Command {
	at, name := addr(pick(t, "vip", propAddrs)), pick(t, "service", propServices)
	switch dice(t, "config", 7) {
	case 0, 1:
		return PutVIP{VIP: VIP{
			Address: at, Instance: pick(t, "instance", propInstances), Kind: pick(t, "kind", []VIPKind{"", "", "", "", VIPGateway, VIPSNAT}),
			Announce: pick(t, "announce", []AnnounceMode{"", "", AnnounceBGP, AnnounceBGP, AnnounceNone}),
		}}
	case 2:
		return DeleteVIP{Address: at}
	case 3, 4:
		return PutService{Service: genService(t), Create: flag(t, "create")}
	case 5:
		return DeleteService{Name: name}
	}
	return SetEndpointAdmin{
		Service: name, Endpoint: addrPort("10.0.0.5:80"), Admin: pick(t, "admin", []AdminState{AdminUp, AdminDrain, AdminDrain, "x"}),
		Until: pick(t, "until", []time.Time{{}, {}, epoch0}),
	}
}

func genSingle(t *rapid.T) Command {
	switch dice(t, "kind", 17) {
	case 12:
		return genSetHealth(t)
	case 13:
		return PutService{Service: genService(t)}
	case 14:
		return genPool(t)
	case 10, 11:
		return genBGP(t)
	case 0, 1:
		return genMembership(t)
	case 2, 3, 4:
		return genHealth(t)
	case 5, 6, 15, 16:
		return genInstance(t)
	}
	return genConfig(t)
}

func genCommand(t *rapid.T) Command {
	if dice(t, "batch", 20) == 0 {
		return Batch{Commands: rapid.SliceOfN(rapid.Custom(genSingle), 0, 4).Draw(t, "commands")}
	}
	return genSingle(t)
}

// genLog is a log that starts from a cluster of three healthy nodes.
func genLog(t *rapid.T) []Command {
	log := []Command{InitCluster{Cluster: testCluster(), Node: lbNode("a", 1)}}
	log = append(log, joining(lbNode("b", 2))...)
	log = append(log, joining(lbNode("c", 3))...)
	log = append(log, healthy("a", "b", "c")...)
	log = append(log, PutVIP{VIP: VIP{Address: addr("10.0.0.1")}}, PutVIP{VIP: VIP{Address: addr("10.0.0.2")}})
	return append(log, rapid.SliceOfN(rapid.Custom(genCommand), 30, 80).Draw(t, "log")...)
}

// throughLog applies a command as a replica does, from its bytes.
func throughLog(t *rapid.T, s *State, c Command) (*State, error) {
	b, err := Encode(c)
	if err != nil {
		t.Fatal(err)
	}
	read, err := Decode(b)
	if err != nil {
		t.Fatalf("decode %s: %v", b, err)
	}
	return s.Apply(s.Index()+1, read)
}

func bytesOf(t *rapid.T, s *State) []byte {
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSameLogGivesSameBytesAlsoAfterARestore(t *testing.T) {
	accepted, total := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		log := genLog(t)
		restoreAt := rapid.IntRange(0, len(log)-1).Draw(t, "restore at")
		one, two := New(), New()
		for i, c := range log {
			if i == restoreAt {
				back, err := Restore(bytesOf(t, two))
				if err != nil {
					t.Fatal(err)
				}
				two = back
			}
			var err1, err2 error
			one, err1 = one.Apply(one.Index()+1, c)
			two, err2 = throughLog(t, two, c)
			if fmt.Sprint(err1) != fmt.Sprint(err2) {
				t.Fatalf("command %d %+v: one says %v, two says %v", i, c, err1, err2)
			}
			if total++; err1 == nil {
				accepted++
			}
			if a, b := bytesOf(t, one), bytesOf(t, two); !bytes.Equal(a, b) {
				t.Fatalf("after command %d %+v:\n%s\n%s", i, c, a, b)
			}
		}
	})
	t.Logf("%d of %d commands accepted", accepted, total)
	// The property is worth something only if commands of both kinds happen.
	if accepted < total/5 || accepted > total*19/20 {
		t.Errorf("%d of %d commands were accepted", accepted, total)
	}
}

func TestRestoreOfSnapshotIsTheSameState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			s, _ = s.Apply(s.Index()+1, c)
		}
		before := bytesOf(t, s)
		back, err := Restore(before)
		if err != nil {
			t.Fatal(err)
		}
		if after := bytesOf(t, back); !bytes.Equal(before, after) {
			t.Fatalf("before %s\nafter  %s", before, after)
		}
		if !slices.Equal(sortedFrontends(s), sortedFrontends(back)) {
			t.Fatalf("frontends %v, restored %v", sortedFrontends(s), sortedFrontends(back))
		}
	})
}

func sortedFrontends(s *State) []string {
	var out []string
	for _, r := range s.frontends.rows {
		out = append(out, fmt.Sprint(r.key, *r.val))
	}
	return out
}

func TestARefusedCommandChangesNothingButTheIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			before := bytesOf(t, s)
			check := s.Check(c)
			next, err := s.Apply(s.Index()+1, c)
			if fmt.Sprint(check) != fmt.Sprint(err) {
				t.Fatalf("check says %v, apply says %v", check, err)
			}
			if !bytes.Equal(before, bytesOf(t, s)) {
				t.Fatalf("%+v wrote to the old state", c)
			}
			if err != nil {
				same := *next
				same.index = s.index
				if !bytes.Equal(before, bytesOf(t, &same)) {
					t.Fatalf("refused %+v changed the state", c)
				}
			}
			if next.Index() != s.Index()+1 {
				t.Fatalf("index %d after %d", next.Index(), s.Index())
			}
			s = next
		}
	})
}

func TestMastershipInvariants(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		for _, c := range genLog(t) {
			next, err := s.Apply(s.Index()+1, c)
			checkAssignments(t, next)
			checkMoves(t, s, next, c, err)
			s = next
		}
	})
}

// checkAssignments holds what must be true of every single state.
func checkAssignments(t *rapid.T, s *State) {
	for _, inst := range s.Instances() {
		order := s.Eligible(inst.Name)
		if inst.Kind == InstanceECMP {
			checkShared(t, s, inst, order)
			continue
		}
		if inst.Master == "" {
			if len(order) > 0 || len(inst.Succession) > 0 {
				t.Fatalf("%+v has no master, eligible are %v", inst, order)
			}
			continue
		}
		n, ok := s.Node(inst.Master)
		if !ok || n.Role != RoleLB || !n.Alive {
			t.Fatalf("%+v has a master that cannot be: %+v", inst, n)
		}
		if len(order) > 0 && !slices.Contains(order, inst.Master) {
			t.Fatalf("%+v has a master that is not eligible, while %v are", inst, order)
		}
		want := append([]NodeID{inst.Master}, slices.DeleteFunc(order, func(n NodeID) bool { return n == inst.Master })...)
		if !slices.Equal(inst.Succession, want) {
			t.Fatalf("succession of %+v, want %v", inst, want)
		}
	}
}

// checkShared holds what must be true of an instance without a master: all who are eligible serve it, and
// without one those who are left of the last who did.
func checkShared(t *rapid.T, s *State, inst Instance, order []NodeID) {
	if inst.Master != "" || inst.Epoch == 0 {
		t.Fatalf("%+v has a master, or no epoch", inst)
	}
	if len(order) > 0 && !slices.Equal(inst.Succession, order) {
		t.Fatalf("%+v is served by others than %v, who are eligible", inst, order)
	}
	for _, name := range inst.Succession {
		if n, ok := s.Node(name); !ok || n.Role != RoleLB || !n.Alive {
			t.Fatalf("%+v is served by one that cannot: %+v", inst, n)
		}
	}
}

// checkMoves holds what must be true of the step between two states.
func checkMoves(t *rapid.T, before, after *State, c Command, err error) {
	for _, now := range after.Instances() {
		was, existed := before.Instance(now.Name)
		changed := was.Master != now.Master || was.Kind != now.Kind
		if now.Epoch < was.Epoch || changed != (now.Epoch != was.Epoch) {
			t.Fatalf("%s: %+v became %+v", Kind(c), was, now)
		}
		if changed && now.Epoch != after.Index() {
			t.Fatalf("%s at %d: epoch %d", Kind(c), after.Index(), now.Epoch)
		}
		if changed && err != nil {
			t.Fatalf("refused %s moved %s", Kind(c), now.Name)
		}
		stays := existed && was.Kind == now.Kind && slices.Contains(after.Eligible(now.Name), was.Master)
		if was.Kind == InstanceECMP && now.Kind == InstanceECMP && len(after.Eligible(now.Name)) == 0 && !movesOnPurpose(c, now.Name) {
			for _, n := range now.Succession {
				if !slices.Contains(was.Succession, n) {
					t.Fatalf("%+v: nobody is eligible, and %s serves %s, which it did not", c, n, now.Name)
				}
			}
		}
		if changed && stays && !movesOnPurpose(c, now.Name) {
			t.Fatalf("%+v moved %s from %s to %s without need", c, now.Name, was.Master, now.Master)
		}
	}
}

// movesOnPurpose tells whether the command is, or a batch has, an order to move
// or make anew this instance, or to make anew a node.
func movesOnPurpose(c Command, instance string) bool {
	switch c := c.(type) {
	case MoveInstance:
		return c.Name == instance
	case DeleteInstance:
		return c.Name == instance // inside a batch, followed by a PutInstance
	case Batch:
		return slices.ContainsFunc(c.Commands, func(c Command) bool { return movesOnPurpose(c, instance) })
	}
	return false
}

func TestServiceInvariants(t *testing.T) {
	made := uint32(0)
	rapid.Check(t, func(t *rapid.T) {
		s, highest := New(), uint32(0)
		defer func() { made += highest }()
		for _, c := range genLog(t) {
			known := map[string]uint32{}
			for _, svc := range s.Services() {
				known[svc.Name] = svc.ID
			}
			s, _ = s.Apply(s.Index()+1, c)
			fronts, services, before := map[frontend]string{}, s.Services(), highest
			for _, svc := range services {
				for port := int(svc.Port); port <= int(svc.LastPort()); port++ {
					f := frontend{svc.VIP, svc.Protocol, uint16(port)}
					if other, taken := fronts[f]; taken {
						t.Fatalf("services %s and %s share %v", svc.Name, other, f)
					}
					fronts[f] = svc.Name
				}
				if l := s.frontends.get(frontendOf(svc)); l == nil || *l != listenerOf(svc) {
					t.Fatalf("the index has %+v for %+v", l, svc)
				}
				if v, ok := s.VIP(svc.VIP); !ok || v.Kind != VIPService {
					t.Fatalf("service %+v is on vip %+v", svc, v)
				}
				for _, e := range svc.Endpoints {
					if _, clash := s.VIP(e.Address.Addr()); clash {
						t.Fatalf("endpoint %s of %s is a vip", e.Address, svc.Name)
					}
				}
				if id, ok := known[svc.Name]; svc.ID > before || (ok && id == svc.ID) {
					highest = max(highest, svc.ID)
				} else {
					t.Fatalf("service %s has id %d again, the highest was %d", svc.Name, svc.ID, highest)
				}
			}
			if len(services) != s.frontends.len() {
				t.Fatalf("index has %d frontends, there are %d services", s.frontends.len(), len(services))
			}
			checkPlaces(t, s)
		}
	})
	t.Logf("%d services made", made)
	if made < 50 {
		t.Errorf("only %d services were made, too few to tell anything", made)
	}
}

// checkPlaces holds that slots and addresses are nobody's twice.
func checkPlaces(t *rapid.T, s *State) {
	slots, places := map[uint8]NodeID{}, map[string]NodeID{}
	for _, n := range s.Nodes() {
		if (n.Role == RoleLB) != (n.Slot < MaxSlots) {
			t.Fatalf("role and slot of %+v", n)
		}
		if other, taken := slots[n.Slot]; taken && n.Slot != NoSlot {
			t.Fatalf("%s and %s share slot %d", n.Name, other, n.Slot)
		}
		if other, taken := places[n.Address]; taken {
			t.Fatalf("%s and %s share %s", n.Name, other, n.Address)
		}
		slots[n.Slot], places[n.Address] = n.Name, n.Name
		if len(n.Key) != KeySize {
			t.Fatalf("key of %+v", n)
		}
		if _, clash := s.VIP(addrPort(n.Address).Addr()); clash {
			t.Fatalf("node %s sits on a vip", n.Name)
		}
	}
}
