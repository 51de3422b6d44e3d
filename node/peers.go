package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// maxPeerBody bounds what one node takes from another in one call.
const maxPeerBody = 64 << 20

// peerClient calls the internal API of other members over the cluster port.
type peerClient struct {
	http http.Client
}

// dialError marks a call that never reached the peer and may be repeated.
type dialError struct{ err error }

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// newPeerClient calls through mux; addressOf finds a member's cluster address.
func newPeerClient(mux *transport.Mux, addressOf func(node string) (string, bool)) *peerClient {
	dial := func(ctx context.Context, _, hostport string) (net.Conn, error) {
		node, _, err := net.SplitHostPort(hostport)
		if err != nil {
			return nil, &dialError{err}
		}
		addr, ok := addressOf(node)
		if !ok {
			return nil, &dialError{fmt.Errorf("no address known of node %s", node)}
		}
		c, err := mux.Dial(ctx, addr, transport.ALPNAPI, node)
		if err != nil {
			return nil, &dialError{err}
		}
		return c, nil
	}
	return &peerClient{http: http.Client{Transport: &http.Transport{
		DialTLSContext:      dial,
		MaxIdleConnsPerHost: 32, // more that ask at once pay for a handshake each
		IdleConnTimeout:     time.Minute,
	}}}
}

// peerAnswer is the body of every answer of the internal API.
type peerAnswer struct {
	Index uint64          `json:"index,omitempty"`
	Kind  string          `json:"kind,omitempty"`
	Error string          `json:"error,omitempty"`
	Value json.RawMessage `json:"value,omitempty"`
}

func (c *peerClient) call(ctx context.Context, node, path string, body []byte) (peerAnswer, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+node+":443"+path, bytes.NewReader(body))
	if err != nil {
		return peerAnswer{}, fmt.Errorf("call %s: %w", node, err)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if de := (*dialError)(nil); errors.As(err, &de) {
			return peerAnswer{}, fmt.Errorf("%w: reach %s: %w", errNotLeader, node, err)
		}
		return peerAnswer{}, fmt.Errorf("%w: call %s: %w", errUnknownOutcome, node, err)
	}
	defer resp.Body.Close()
	var a peerAnswer
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxPeerBody)).Decode(&a); err != nil {
		return a, fmt.Errorf("%w: read answer of %s: %w", errUnknownOutcome, node, err)
	}
	if a.Error != "" {
		return a, errorOf(a.Kind, a.Error)
	}
	return a, nil
}

func (c *peerClient) propose(ctx context.Context, node string, p proposal) (uint64, error) {
	path := "/internal/propose"
	if p.want != "" {
		path += "?want=" + url.QueryEscape(p.want)
	}
	a, err := c.call(ctx, node, path, p.command)
	return a.Index, err
}

// callFor sends in as JSON and decodes the answer's value into out.
func (c *peerClient) callFor(ctx context.Context, node, path string, in, out any) error {
	b, err := json.Marshal(in)
	if err != nil {
		return fmt.Errorf("encode call of %s: %w", path, err)
	}
	a, err := c.call(ctx, node, path, b)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(a.Value, out); err != nil {
		return fmt.Errorf("read answer of %s: %w", node, err)
	}
	return nil
}

func (c *peerClient) close() { c.http.CloseIdleConnections() }

// peerHandler serves the internal API; the cluster port has authenticated the
// caller as a member.
func (m *member) peerHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /internal/propose", m.forMembers(m.servePropose))
	mux.HandleFunc("POST /internal/report", m.forMembers(m.serveReport))
	mux.HandleFunc("POST /internal/join", m.forMembers(m.serveForwardedJoin))
	mux.HandleFunc("POST /internal/flush", m.forMembers(m.serveFlush))
	mux.HandleFunc("POST /internal/lost", m.forMembers(m.serveLost))
	mux.HandleFunc("POST /internal/decision", m.forMembers(m.serveDecision))
	mux.HandleFunc("POST /internal/reach", m.forMembers(m.serveReach))
	mux.HandleFunc("POST /internal/uses", m.forMembers(m.serveUses))
	return mux
}

func (m *member) servePropose(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPeerBody))
	if err != nil {
		answer(w, 0, nil, err)
		return
	}
	if _, err := fsm.Decode(b); err != nil {
		answer(w, 0, nil, fmt.Errorf("read command: %w", err)) // what is in the log stays there
		return
	}
	index, err := m.proposedHere(proposal{b, r.URL.Query().Get("want")})
	answer(w, index, nil, err)
}

// answer writes the one form of answer; the status is 200 even for a refusal,
// which is data here and not a transport failure.
func answer(w http.ResponseWriter, index uint64, value any, err error) {
	a := peerAnswer{Index: index}
	if err == nil && value != nil {
		a.Value, err = json.Marshal(value)
	}
	if err != nil {
		a.Kind, a.Error = kindOf(err), err.Error()
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a) // the caller is gone if this fails, and will see it
}

// serveHTTP runs an HTTP server on a listener of the cluster port until ctx ends.
func serveHTTP(ctx context.Context, l net.Listener, h http.Handler, logger *slog.Logger) error {
	srv := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if p, ok := transport.PeerOf(c); ok {
				key, _ := transport.PeerKey(c)
				return context.WithValue(ctx, peerKey{}, machine{p, key})
			}
			return ctx
		},
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) && ctx.Err() == nil {
		return fmt.Errorf("serve %s: %w", l.Addr(), err)
	}
	return nil
}
