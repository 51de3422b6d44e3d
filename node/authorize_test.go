package node

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// ofOneNode is a member that knows lb1 with a key of zeros.
func ofOneNode(t *testing.T) *member {
	t.Helper()
	s := newStore()
	s.Apply(entry(t, 3, oneNode()[0]))
	return &member{store: s, guests: map[machine]bool{}}
}

func confirm(m *member) {
	now := time.Now()
	m.contact.answer(now, 0)
	m.contact.fresh(now, now, 3)
}

func TestOnlyTheMachineThatJoinedIsAdmitted(t *testing.T) {
	other := [fsm.KeySize]byte{1}
	for _, tc := range []struct {
		what  string
		peer  machine
		fresh error
	}{
		{"the member", machine{name: "lb1"}, nil},
		{"another machine of its name", machine{"lb1", other}, errOtherKey},
		{"a stranger", machine{"lb9", other}, errNotMember},
	} {
		t.Run(tc.what, func(t *testing.T) {
			m := ofOneNode(t)
			if err := m.authorize(tc.peer.name, tc.peer.key); err != nil {
				t.Errorf("refused while nothing certain is known: %v", err)
			}
			if guest := m.guests[tc.peer]; guest != (tc.fresh != nil) {
				t.Errorf("is a guest: %v", guest)
			}
			confirm(m)
			if err := m.authorize(tc.peer.name, tc.peer.key); !errors.Is(err, tc.fresh) {
				t.Errorf("in contact: %v, want %v", err, tc.fresh)
			}
		})
	}
}

func TestAGuestMayNotCallTheInternalAPI(t *testing.T) {
	m := ofOneNode(t)
	served := 0
	h := m.forMembers(func(http.ResponseWriter, *http.Request) { served++ })
	for _, p := range []machine{{name: "lb1"}, {"lb1", [fsm.KeySize]byte{1}}, {name: "lb9"}, {}} {
		r := httptest.NewRequestWithContext(context.WithValue(t.Context(), peerKey{}, p), http.MethodPost, "/internal/propose", nil)
		h(httptest.NewRecorder(), r)
	}
	if served != 1 {
		t.Errorf("%d of 4 callers were served, want the one member", served)
	}
}

func TestGossipOfAnotherMachineOfTheNameDoesNotCount(t *testing.T) {
	old, now := gossipName(machine{"lb1", [fsm.KeySize]byte{1}}), gossipName(machine{name: "lb1"})
	if old == now {
		t.Fatal("two machines have one name in gossip")
	}
	got := membersOnly(ofOneNode(t).store.State(), []transport.GossipMember{
		{Node: old, State: transport.GossipAlive}, {Node: now, State: transport.GossipDead}, {Node: "lb1", State: transport.GossipAlive},
	})
	if len(got) != 1 || got[0].Node != "lb1" || got[0].State != transport.GossipDead {
		t.Errorf("heard %+v, want lb1 dead and nobody else", got)
	}
}
