package node

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/fsm"
	"pontoon/transport"
)

// admitting is a leader that can sign, and a token for one joiner.
func admitting(t *testing.T) (*member, *transport.CA, transport.Token) {
	t.Helper()
	m := aloneInMemory(t)
	m.cfg.DataDir = t.TempDir()
	ca, err := transport.NewCA("0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	if err := ca.Save(m.cfg.DataDir); err != nil {
		t.Fatal(err)
	}
	token, err := transport.NewToken("lb", ca.Certificate())
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	_, err = m.Propose(t.Context(), fsm.CreateToken{
		Token: fsm.Token{ID: token.ID, Hash: token.SecretHash(), Role: fsm.RoleLB, Expires: now.Add(time.Hour)}, Now: now,
	})
	if err != nil {
		t.Fatal(err)
	}
	return m, ca, token
}

func joiner() Config {
	c := Config{Name: "lb2", Role: "lb"}
	c.Cluster.Address, c.Cluster.GossipPort = "192.0.2.2:7400", 7401
	return c
}

// requestOf is what a joiner sends, and what it finishes the answer with.
func requestOf(t *testing.T, token transport.Token) (joinRequest, *transport.Request) {
	t.Helper()
	cfg := joiner()
	csr, err := transport.NewRequest(cfg.Name)
	if err != nil {
		t.Fatal(err)
	}
	return joinRequest{
		TokenID: token.ID, Secret: token.Secret[:], Name: cfg.Name, Role: cfg.Role,
		Address: cfg.Cluster.Address, GossipPort: cfg.Cluster.GossipPort, CSR: csr.CSR(),
	}, csr
}

// A joiner whose answer was lost asks again with the same key, and is the member that it became at first. By then the
// token is spent: nobody gets in with another key, or with the member's name and none of its own.
func TestAJoinThatIsRepeatedIsTheSameJoin(t *testing.T) {
	m, _, token := admitting(t)
	req, csr := requestOf(t, token)
	first, err := m.admit(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	index := m.store.State().Index()
	again, err := m.admit(t.Context(), req)
	if err != nil {
		t.Fatalf("the same request again: %v", err)
	}
	if now := m.store.State().Index(); now != index {
		t.Errorf("the second request wrote something: the state went from %d to %d", index, now)
	}
	if again.Slot != first.Slot || again.ClusterID != first.ClusterID {
		t.Errorf("the second answer is %+v, the first was %+v", again, first)
	}
	if _, err := csr.Finish(again.Cert, again.CA); err != nil {
		t.Errorf("the second answer's certificate: %v", err)
	}
	other, _ := requestOf(t, token)
	if _, err := m.admit(t.Context(), other); !errors.Is(err, fsm.ErrExists) && !errors.Is(err, fsm.ErrTokenInvalid) {
		t.Errorf("the same name and token with another key: %v, want a refusal", err)
	}
	bare := req
	bare.CSR = nil
	if _, err := m.admit(t.Context(), bare); err == nil {
		t.Error("a request without a key got in")
	}
}

// The first answer is lost, after the node has become a member: the joiner asks again, and has joined.
func TestAJoinerWhoseAnswerIsLostAsksAgain(t *testing.T) {
	m, ca, token := admitting(t)
	mux, err := transport.NewMux(transport.MuxConfig{
		Address: "127.0.0.1:0", Identity: identityOf(t, ca, "lb1"), Authorize: func(string, [32]byte) error { return nil },
	})
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	l, real := mux.Listen(transport.ALPNJoin), m.joinHandler()
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			real.ServeHTTP(&unheard{header: http.Header{}}, r)
			panic(http.ErrAbortHandler)
		}
		real.ServeHTTP(w, r)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var g errgroup.Group
	g.Go(func() error { return mux.Run(ctx) })
	g.Go(func() error { return serveHTTP(ctx, l, serve, m.logger) })
	t.Cleanup(func() {
		cancel()
		if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	id, reply, err := requestJoin(ctx, joiner(), mux.Addr().String(), token)
	if err != nil {
		t.Fatal(err)
	}
	n, ok := m.store.State().Node("lb2")
	if key := id.Key(); !ok || string(n.Key) != string(key[:]) || n.Slot != reply.Slot {
		t.Errorf("the state has %+v (%v), the joiner slot %d", n, ok, reply.Slot)
	}
	if asked.Load() != 2 {
		t.Errorf("the joiner asked %d times, want 2", asked.Load())
	}
}

// unheard is where an answer goes that is lost.
type unheard struct{ header http.Header }

func (u *unheard) Header() http.Header         { return u.header }
func (u *unheard) Write(b []byte) (int, error) { return len(b), nil }
func (u *unheard) WriteHeader(int)             {}
