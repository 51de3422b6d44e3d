package fsm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// epoch0 is the clock of the tests.
var epoch0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func secretHash(secret string) []byte {
	h := sha256.Sum256([]byte(secret))
	return h[:]
}

func testCluster() Cluster {
	return Cluster{ID: "c1", CA: []byte{1, 2, 3}, GossipKey: [][]byte{bytes.Repeat([]byte{7}, 32)}, Seed: 42}
}

func lbNode(name NodeID, host int) Node {
	return Node{Name: name, Role: RoleLB, Address: fmt.Sprintf("192.0.2.%d:7400", host), GossipPort: 7401, Key: nodeKey(name)}
}

// nodeKey stands for the key of a machine of that name.
func nodeKey(name NodeID) []byte { return secretHash("key of " + string(name)) }

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func addrPort(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

func endpoint(at string, weight uint16) Endpoint {
	return Endpoint{Address: addrPort(at), Weight: weight}
}

func webService() Service {
	return Service{
		Name: "web", VIP: addr("10.0.0.100"), Port: 80, Protocol: TCP, Mode: ModeFullNAT, Algorithm: Maglev,
		Endpoints: []Endpoint{endpoint("10.1.0.2:8080", 1), endpoint("10.1.0.1:8080", 2)},
	}
}

// do applies commands that must all succeed, at the indices that follow.
func do(t testing.TB, s *State, cmds ...Command) *State {
	t.Helper()
	for _, c := range cmds {
		next, err := s.Apply(s.Index()+1, c)
		if err != nil {
			t.Fatalf("apply %s %+v: %v", Kind(c), c, err)
		}
		s = next
	}
	return s
}

func initCluster() Command {
	return InitCluster{Cluster: testCluster(), Node: lbNode("lb1", 1)}
}

// joining returns the commands that bring a node in.
func joining(n Node) []Command {
	id := "t-" + strings.ToLower(string(n.Name))
	return []Command{
		CreateToken{Token: Token{ID: id, Hash: secretHash(id), Role: n.Role, Expires: epoch0.Add(time.Hour)}, Now: epoch0},
		JoinNode{TokenID: id, SecretHash: secretHash(id), Node: n, Now: epoch0},
		SetVoter{Node: n.Name},
	}
}

// healthy returns the commands that make a node eligible and in sync.
func healthy(names ...NodeID) []Command {
	var out []Command
	for _, name := range names {
		out = append(out, NodeVerdict{Node: name, Alive: true}, NodeReport{Node: name, Ready: true, LinksUp: true, InSync: true})
	}
	return out
}

// threeNodes is a cluster of lb1, lb2 and lb3, all healthy, with lb1 master of
// the default instance and a service on a VIP.
func threeNodes(t testing.TB) *State {
	t.Helper()
	s := do(t, New(), initCluster())
	s = do(t, s, healthy("lb1")...)
	s = do(t, s, joining(lbNode("lb2", 2))...)
	s = do(t, s, joining(lbNode("lb3", 3))...)
	s = do(t, s, healthy("lb2", "lb3")...)
	return do(t, s,
		PutVIP{VIP: VIP{Address: addr("10.0.0.100")}},
		PutService{Service: webService(), Create: true})
}

// refused applies a command that must fail, and checks kind, wording, and that
// nothing but the index has changed.
func refused(t testing.TB, s *State, c Command, kind error, words ...string) {
	t.Helper()
	before := snap(t, s)
	next, err := s.Apply(s.Index()+1, c)
	if !errors.Is(err, kind) {
		t.Fatalf("apply %s %+v: error %v, want kind %v", Kind(c), c, err, kind)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error is more than one line: %q", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
	if next.Index() != s.Index()+1 {
		t.Errorf("index %d after a refusal, want %d", next.Index(), s.Index()+1)
	}
	back := *next
	back.index = s.index
	if got := snap(t, &back); !bytes.Equal(got, before) {
		t.Errorf("a refused command changed the state:\n%s\n%s", before, got)
	}
	if !bytes.Equal(snap(t, s), before) {
		t.Errorf("a refused command wrote to the old state")
	}
	if err2 := s.Check(c); err2 == nil || err2.Error() != err.Error() {
		t.Errorf("Check says %v, Apply says %v", err2, err)
	}
}

func snap(t testing.TB, s *State) []byte {
	t.Helper()
	b, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func master(s *State, instance string) NodeID {
	inst, _ := s.Instance(instance)
	return inst.Master
}
