package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/transport"
	"pontoon/web"
)

// A node that is removed while it lives learns of it from the log. One that was
// away learns nothing: its peers refuse it, and it would hold its VIPs for ever.
// So a node that has long been without contact asks its peers whether it still
// is a member, over the protocol that takes anybody; they answer only while they
// know for certain.

const (
	// askAfter is how long a node is without contact before it asks. It is more
	// than contactBehind, so that nobody who answers knows less than the log held
	// when this node joined.
	askAfter = 6 * time.Second
	askEvery = 2 * time.Second
)

// removedText is what a removed node says of itself, and how to mend it.
const removedText = "this node was removed from its cluster: run `pontoon leave` on it, and join again if that is meant"

// memberQuestion asks whether name is a member with the key it joined with.
type memberQuestion struct {
	Name string `json:"name"`
	Key  []byte `json:"key"` // fsm.Node.Key
}

type memberAnswer struct {
	Member     bool   `json:"member"`
	Recoveries uint64 `json:"recoveries"` // fsm.Cluster.Recoveries of who answers
}

func (m *member) serveMember(w http.ResponseWriter, r *http.Request) {
	var q memberQuestion
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&q); err != nil {
		answer(w, 0, nil, fmt.Errorf("read question: %w", err))
		return
	}
	if m.contact.stale(time.Now()) {
		answer(w, 0, nil, errors.New("not known here at the moment"))
		return
	}
	s := m.store.State()
	answer(w, 0, memberAnswer{Member: isMember(s, q), Recoveries: s.Cluster().Recoveries}, nil)
}

func isMember(s *fsm.State, q memberQuestion) bool {
	n, ok := s.Node(fsm.NodeID(q.Name))
	return ok && bytes.Equal(q.Key, n.Key)
}

// removed says that the cluster has taken this node off its list.
func (m *member) removed() bool { return m.outcast.Load() || m.superseded.Load() }

// watchMembers closes what is open with nodes that are members no longer, and
// finds out when this node is one of them.
func (m *member) watchMembers(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	lost := time.Now() // since when there is no contact
	self, known, departed := m.self(), map[machine]bool{}, map[machine]time.Time{}
	for {
		changed := m.store.Changed()
		// Before the state is looked at: fresh contact says that it is new.
		live, fresh := m.contact.everFresh(), !m.contact.stale(time.Now())
		s := m.store.State()
		now := machines(s)
		m.partWith(departed, known, now)
		if fresh {
			lost = time.Now()
			m.dismissGuests()
		}
		switch {
		case s.Cluster().ID != "" && (fresh || live && known[self] && !now[self]):
			m.setRemoved(!now[self])
		case time.Since(lost) > askAfter && !m.removed() && m.refusedByPeers(ctx, s):
			m.setRemoved(true)
		}
		known = now
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
		}
	}
}

// partWith closes the connections of those who are known and not among the
// members now, once they have had the time to hear of it.
func (m *member) partWith(departed map[machine]time.Time, known, now map[machine]bool) {
	for p := range known {
		if !now[p] && p != m.self() {
			departed[p] = time.Now()
		}
	}
	for p, at := range departed {
		if time.Since(at) > askEvery/2 {
			m.mux.Disconnect(p.name, p.key)
			delete(departed, p)
		}
	}
}

func (m *member) setRemoved(removed bool) {
	if m.outcast.Swap(removed) == removed {
		return
	}
	if removed && !m.leaving.Load() {
		m.events.add(Event{Kind: web.EventLeave, Node: fsm.NodeID(m.cfg.Name), Text: removedText})
	}
	m.wakeDriver()
}

// refusedByPeers asks all peers that are known from the state or from Raft. One
// that is certain is enough.
func (m *member) refusedByPeers(ctx context.Context, s *fsm.State) bool {
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	peers := map[string]string{}
	if servers, err := m.raft.servers(); err == nil {
		for _, srv := range servers {
			peers[string(srv.ID)] = string(srv.Address)
		}
	}
	for _, n := range s.Nodes() {
		peers[string(n.Name)] = n.Address
	}
	delete(peers, m.cfg.Name)
	var refused atomic.Bool
	var g errgroup.Group
	for name, address := range peers {
		g.Go(func() error {
			if m.refusedBy(ctx, name, address) {
				refused.Store(true)
				cancel()
			}
			return nil
		})
	}
	_ = g.Wait() // the answers are in refused
	return refused.Load()
}

func (m *member) refusedBy(ctx context.Context, name, address string) bool {
	var reply memberAnswer
	_, err := m.askMember(ctx, name, address, &reply)
	m.logger.Debug("asked a peer whether this node is a member", "peer", name, "member", reply.Member, "err", err)
	return err == nil && !reply.Member
}

// askMember asks the node of that name whether this node is a member, and says
// which machine answered.
func (m *member) askMember(ctx context.Context, name, address string, reply *memberAnswer) (who machine, err error) {
	conn, err := m.mux.Dial(ctx, address, transport.ALPNJoin, name)
	if err != nil {
		return who, err
	}
	defer conn.Close()
	who.name = name
	who.key, _ = transport.PeerKey(conn)
	key := m.id.Key()
	a, err := post(ctx, conn, "/member", memberQuestion{Name: m.cfg.Name, Key: key[:]})
	if err != nil {
		return who, err
	}
	if err := json.Unmarshal(a.Value, reply); err != nil {
		return who, fmt.Errorf("read answer of %s: %w", name, err)
	}
	return who, nil
}
