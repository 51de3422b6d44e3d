package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"pontoon/fsm"
)

// machine is one life of a name: a node's name may go to another machine, and
// the first one still holds a certificate for it. The key tells them apart.
type machine struct {
	name string
	key  [fsm.KeySize]byte
}

func machineOf(n fsm.Node) machine {
	m := machine{name: string(n.Name)}
	copy(m.key[:], n.Key)
	return m
}

// machines are the members of a state.
func machines(s *fsm.State) map[machine]bool {
	out := map[machine]bool{}
	for _, n := range s.Nodes() {
		out[machineOf(n)] = true
	}
	return out
}

// self is this machine as a member.
func (m *member) self() machine { return machine{m.cfg.Name, m.id.Key()} }

var (
	errNotMember = errors.New("not a member of this cluster")
	errOtherKey  = errors.New("its certificate is not the one it joined with: another machine has taken its name; run `pontoon leave --force` there")
)

// checkMember says whether the state has p as a member.
func checkMember(s *fsm.State, p machine) error {
	n, ok := s.Node(fsm.NodeID(p.name))
	switch {
	case !ok:
		return errNotMember
	case !bytes.Equal(n.Key, p.key[:]):
		return errOtherKey
	}
	return nil
}

// authorize admits the cluster's members, with the key each joined with. While
// this node does not know the newest state it must let in whoever the CA has
// signed: the leader it needs to hear from may have joined while it was away.
//
// That goes for a known name with another key as well. Which of two keys is the
// later one cannot be told from here; if this node refused the later one and its
// vote were the one that is missing, no leader would ever come up to tell it. So
// it takes both sides and decides when it knows: the older machine can win no
// election, since it lacks the entry that removed it, which a majority has; what
// it asks over the API is checked again (forMembers); and it is sent away within
// moments of fresh contact (dismissGuests).
func (m *member) authorize(name string, key [fsm.KeySize]byte) error {
	p := machine{name, key}
	err := checkMember(m.store.State(), p)
	if err != nil && m.contact.stale(time.Now()) {
		m.guestMu.Lock()
		defer m.guestMu.Unlock()
		m.guests[p] = true
		return nil
	}
	return err
}

// dismissGuests closes the connections of those who were let in while this node
// knew too little, and who turned out to be no members.
func (m *member) dismissGuests() {
	m.guestMu.Lock()
	guests := m.guests
	m.guests = map[machine]bool{}
	m.guestMu.Unlock()
	s := m.store.State()
	for p := range guests {
		if err := checkMember(s, p); err != nil {
			m.logger.Info("sending a node away that was let in unknown", "node", p.name, "reason", err)
			m.mux.Disconnect(p.name, p.key)
		}
	}
}

type peerKey struct{}

// peerFrom names the machine on the other end of an internal call.
func peerFrom(ctx context.Context) machine {
	p, _ := ctx.Value(peerKey{}).(machine)
	return p
}

// forMembers keeps guests from the internal API. A guest may turn out to be a
// member as this node learns more, so it is told to try again.
func (m *member) forMembers(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p := peerFrom(r.Context())
		if err := checkMember(m.store.State(), p); err != nil {
			answer(w, 0, nil, fmt.Errorf("%w: node %s: %w", errNotLeader, p.name, err))
			return
		}
		h(w, r)
	}
}
