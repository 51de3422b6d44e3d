package node

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
	"pontoon/web"
)

const (
	// joinTimeout bounds a join as a whole, of who joins.
	joinTimeout = 15 * time.Second
	// admitTimeout bounds it where it is asked for: less, so that who joins hears that there is no leader.
	admitTimeout = 10 * time.Second
)

// joinRequest is what a joiner sends over the one protocol of the cluster port
// that takes no client certificate. The connection is bound to the CA the
// token names before the secret is sent.
type joinRequest struct {
	TokenID    string `json:"token_id"`
	Secret     []byte `json:"secret"`
	Name       string `json:"name"`
	Role       string `json:"role"`
	Address    string `json:"address"`
	GossipPort uint16 `json:"gossip_port"`
	CSR        []byte `json:"csr"`
}

// joinReply makes the joiner a member.
type joinReply struct {
	ClusterID string `json:"cluster_id"`
	Cert      []byte `json:"cert"`
	CA        []byte `json:"ca"`
	Slot      uint8  `json:"slot"`
}

func (m *member) joinHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /join", m.serveJoin)
	mux.HandleFunc("POST /member", m.serveMember)
	return mux
}

// serveJoin takes a joiner's request on any member and brings it to the leader.
func (m *member) serveJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
		answer(w, 0, nil, fmt.Errorf("read join request: %w", err))
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), admitTimeout)
	defer cancel()
	reply, err := m.admitAnywhere(ctx, req)
	answer(w, 0, reply, err)
}

func (m *member) admitAnywhere(ctx context.Context, req joinRequest) (joinReply, error) {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		if m.raft.isLeader() {
			reply, err := m.admit(ctx, req)
			if !errors.Is(err, errNotLeader) {
				return reply, err
			}
		} else if _, id := m.raft.LeaderWithID(); id != "" && string(id) != m.cfg.Name {
			var reply joinReply
			err := m.peers.callFor(ctx, string(id), "/internal/join", req, &reply)
			if !errors.Is(err, errNotLeader) {
				return reply, err
			}
		}
		select {
		case <-ctx.Done():
			return joinReply{}, &remoteError{kind: web.ErrNoLeader, text: "the cluster has no leader: join again when `pontoon status` names one"}
		case <-again.C:
		}
	}
}

// serveForwardedJoin takes a request that another member passed on.
func (m *member) serveForwardedJoin(w http.ResponseWriter, r *http.Request) {
	var req joinRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20)).Decode(&req); err != nil {
		answer(w, 0, nil, fmt.Errorf("read join request: %w", err))
		return
	}
	reply, err := m.admit(r.Context(), req)
	answer(w, 0, reply, err)
}

// admit decides, on the leader. The token is spent and the node becomes a
// member in one committed step; the Raft group follows by itself (adjustGroup).
// Who asks again with the same key, because the answer was lost, gets it again.
func (m *member) admit(ctx context.Context, req joinRequest) (joinReply, error) {
	if !m.raft.isLeader() {
		return joinReply{}, errNotLeader
	}
	key, err := transport.RequestKey(req.CSR)
	if err != nil {
		return joinReply{}, err
	}
	hash := sha256.Sum256(req.Secret)
	cmd := fsm.JoinNode{
		TokenID: req.TokenID, SecretHash: hash[:], Now: time.Now().UTC(),
		Node: fsm.Node{
			Name: fsm.NodeID(req.Name), Role: fsm.Role(req.Role), Address: req.Address, GossipPort: req.GossipPort, Key: key[:],
		},
	}
	s := m.store.State()
	if _, ok := entered(s, cmd.Node); !ok {
		if err := s.Check(cmd); err != nil {
			return joinReply{}, err
		}
	}
	cert, ca, err := m.certify(req)
	if err != nil {
		return joinReply{}, err
	}
	n, err := m.enter(ctx, cmd)
	if err != nil {
		return joinReply{}, err
	}
	m.wakeLeader()
	return joinReply{ClusterID: s.Cluster().ID, Cert: cert, CA: ca, Slot: n.Slot}, nil
}

// certify signs the key of who joins, and returns what it is signed with beside it.
func (m *member) certify(req joinRequest) (cert, issuer []byte, err error) {
	addr, err := netip.ParseAddrPort(req.Address)
	if err != nil {
		return nil, nil, fmt.Errorf("address %q: %w", req.Address, err)
	}
	ca, err := transport.LoadCA(m.cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, errors.New("the leader has not received the CA key yet: join again in a few seconds")
	} else if err != nil {
		return nil, nil, err
	}
	cert, err = ca.Sign(req.CSR, req.Name, []netip.Addr{addr.Addr()})
	return cert, ca.Certificate(), err
}

// enter makes the node of cmd a member, if it is none by the same key already, and returns it as it is committed.
func (m *member) enter(ctx context.Context, cmd fsm.JoinNode) (fsm.Node, error) {
	if n, ok := entered(m.store.State(), cmd.Node); ok {
		return n, nil
	}
	index, err := m.Propose(ctx, cmd)
	n, ok := entered(m.store.State(), cmd.Node)
	switch {
	case ok:
		return n, nil // also where it is refused because it has happened before
	case err == nil:
		err = fmt.Errorf("node %s was removed again right after it joined at index %d", cmd.Node.Name, index)
	}
	return n, err
}

// entered finds the member that joined as want did: by its name, with its key.
func entered(s *fsm.State, want fsm.Node) (fsm.Node, bool) {
	n, ok := s.Node(want.Name)
	return n, ok && bytes.Equal(n.Key, want.Key)
}

// requestJoin asks the member at address to admit a node of configuration cfg, and again with the same key while it is
// unknown what came of it.
func requestJoin(ctx context.Context, cfg Config, address string, token transport.Token) (*transport.Identity, joinReply, error) {
	var reply joinReply
	csr, err := transport.NewRequest(cfg.Name)
	if err != nil {
		return nil, reply, err
	}
	var a peerAnswer
	asked := false
	err = untilKnown(ctx, func(ctx context.Context) error {
		conn, err := transport.DialJoin(ctx, address, token.CAHash)
		switch {
		case err != nil && asked:
			return fmt.Errorf("%w: %w", errUnknownOutcome, err)
		case err != nil:
			return err
		}
		defer conn.Close()
		asked = true
		a, err = post(ctx, conn, "/join", joinRequest{
			TokenID: token.ID, Secret: token.Secret[:], Name: cfg.Name, Role: cfg.Role,
			Address: cfg.Cluster.Address, GossipPort: cfg.Cluster.GossipPort, CSR: csr.CSR(),
		})
		return err
	}, func() bool { return false }, func(string) {})
	if err != nil {
		return nil, reply, err
	}
	if err := json.Unmarshal(a.Value, &reply); err != nil {
		return nil, reply, fmt.Errorf("read answer of %s: %w", address, err)
	}
	id, err := csr.Finish(reply.Cert, reply.CA)
	return id, reply, err
}

// post speaks one HTTP exchange on a connection that exists already. Without an answer the outcome is unknown.
func post(ctx context.Context, conn net.Conn, path string, in any) (peerAnswer, error) {
	var a peerAnswer
	b, err := json.Marshal(in)
	if err != nil {
		return a, fmt.Errorf("encode request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://join"+path, bytes.NewReader(b))
	if err != nil {
		return a, fmt.Errorf("make request: %w", err)
	}
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return a, fmt.Errorf("set deadline: %w", err)
		}
	}
	if err := req.Write(conn); err != nil {
		return a, fmt.Errorf("%w: send request: %w", errUnknownOutcome, err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return a, fmt.Errorf("%w: read answer to the request: %w", errUnknownOutcome, err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, 1<<20)).Decode(&a); err != nil {
		return a, fmt.Errorf("%w: read answer to the request: %w", errUnknownOutcome, err)
	}
	if a.Error != "" {
		return a, errorOf(a.Kind, a.Error)
	}
	return a, nil
}

// checkPorts finds out before anything is asked of the cluster whether this
// machine can open the ports it would be known by.
func checkPorts(ctx context.Context, cfg Config) error {
	addr, err := netip.ParseAddrPort(cfg.Cluster.Address)
	if err != nil {
		return fmt.Errorf("cluster address: %w", err)
	}
	gossip := netip.AddrPortFrom(addr.Addr(), cfg.Cluster.GossipPort)
	var lc net.ListenConfig
	for _, p := range []struct{ key, network, addr string }{
		{"--address", "tcp", addr.String()}, {"--gossip-port", "tcp", gossip.String()}, {"--gossip-port", "udp", gossip.String()},
	} {
		if err := tryPort(ctx, lc, p.network, p.addr); err != nil {
			return fmt.Errorf("%s %s cannot be opened here (%w): free it, or choose another with %s", p.network, p.addr, err, p.key)
		}
	}
	return nil
}

func tryPort(ctx context.Context, lc net.ListenConfig, network, addr string) error {
	if network == "udp" {
		c, err := lc.ListenPacket(ctx, network, addr)
		if err != nil {
			return errors.Unwrap(err)
		}
		return c.Close()
	}
	l, err := lc.Listen(ctx, network, addr)
	if err != nil {
		return errors.Unwrap(err)
	}
	return l.Close()
}
