package announce

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"time"

	"github.com/osrg/gobgp/v4/api"
	"github.com/osrg/gobgp/v4/pkg/apiutil"
	"github.com/osrg/gobgp/v4/pkg/packet/bgp"
	"github.com/osrg/gobgp/v4/pkg/server"
	"golang.org/x/sync/errgroup"
)

// queueLen is how many connections may wait for GoBGP to take them.
const queueLen = 32

// engine is one GoBGP server. It speaks the protocol and keeps the routes; it is
// given its connections and opens none (see DESIGN.md). Its methods may be called
// concurrently until stop.
type engine struct {
	srv    *server.BgpServer
	queue  chan<- net.Conn
	cancel context.CancelFunc
}

// stateEvent says that a session changed its state.
type stateEvent struct {
	serial   int // of the engine
	peer     netip.Addr
	state    PeerState
	routerID netip.Addr
	reason   string // why; empty when this node took the neighbour away
	graceful bool   // the neighbour's routes are kept for a while
	limit    bool   // it sent too many prefixes
}

// startEngine starts a server. onState and onRoutes are called from a goroutine of
// the server, in order.
func startEngine(group *errgroup.Group, cfg BGPConfig, log *slog.Logger, onState func(stateEvent), onRoutes func()) (*engine, error) {
	ctx, cancel := context.WithCancel(context.Background())
	e := &engine{srv: server.NewBgpServer(server.LoggerOption(slog.New(quiet{log.Handler()}), nil)), cancel: cancel}
	queue, err := acceptQueue(e.srv)
	if err != nil {
		cancel()
		return nil, err
	}
	e.queue = queue
	group.Go(func() error { e.srv.Serve(); return nil })
	if err := e.begin(ctx, cfg, onState, onRoutes); err != nil {
		e.stop(ctx, false, "")
		return nil, fmt.Errorf("start bgp: %w", err)
	}
	return e, nil
}

// acceptQueue gives the server a queue of connections to take as if a listener of
// its own had accepted them, and returns it. GoBGP has no public way to hand it a
// connection; with listen port -1 it leaves the field alone. It must be called before
// the server runs. TestGoBGPTakesOurConnections finds out when this ends with a new version.
func acceptQueue(srv *server.BgpServer) (chan<- net.Conn, error) {
	field := reflect.ValueOf(srv).Elem().FieldByName("acceptCh")
	if !field.IsValid() || field.Type() != reflect.TypeFor[chan net.Conn]() {
		return nil, errors.New("gobgp has no accept queue where version 4.8.0 has it")
	}
	queue := make(chan net.Conn, queueLen)
	reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().Set(reflect.ValueOf(queue))
	return queue, nil
}

func (e *engine) begin(ctx context.Context, cfg BGPConfig, onState func(stateEvent), onRoutes func()) error {
	err := e.srv.StartBgp(ctx, &api.StartBgpRequest{Global: &api.Global{
		Asn: cfg.AS, RouterId: cfg.RouterID.String(), ListenPort: -1,
	}})
	if err != nil {
		return err
	}
	if err := e.setPolicies(ctx); err != nil {
		return err
	}
	return e.srv.WatchEvent(ctx, server.WatchEventMessageCallbacks{
		OnPathUpdate: func([]*apiutil.Path, time.Time) { onRoutes() },
		OnPathEor:    func(*apiutil.Path, time.Time) { onRoutes() },
		OnPeerUpdate: func(ev *apiutil.WatchEventMessage_PeerEvent, _ time.Time) {
			if ev.Type == apiutil.PEER_EVENT_STATE {
				onState(newStateEvent(ev.Peer.State))
			}
		},
	}, server.WatchPeer(), server.WatchUpdate(false, "", ""), server.WatchEor(false))
}

// setPolicies makes two things sure. Nothing a neighbour tells enters the table that
// is announced from: it can neither be passed on nor stand against a route of our
// own, and what is learned is read from what each neighbour said. And the marks of
// Route.Prepend become prepended AS numbers, after the one that every neighbour of
// another AS gets; a neighbour of the same AS sees an empty path, which stays so.
func (e *engine) setPolicies(ctx context.Context) error {
	local := &api.Policy{Name: "own", Statements: []*api.Statement{{
		Name:       "own",
		Conditions: &api.Conditions{RouteType: api.Conditions_ROUTE_TYPE_LOCAL},
		Actions:    &api.Actions{RouteAction: api.RouteAction_ROUTE_ACTION_ACCEPT},
	}}}
	prepend := &api.Policy{Name: "prepend"}
	for bit := uint32(1); bit <= maxPrepend; bit *= 2 {
		name := fmt.Sprintf("prepend-%d", bit)
		mark := fmt.Sprintf("%d:0:%d", uint32(markAS), bit)
		err := e.srv.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: &api.DefinedSet{
			DefinedType: api.DefinedType_DEFINED_TYPE_LARGE_COMMUNITY, Name: name, List: []string{"^" + mark + "$"},
		}})
		if err != nil {
			return err
		}
		prepend.Statements = append(prepend.Statements, &api.Statement{
			Name:       name,
			Conditions: &api.Conditions{LargeCommunitySet: &api.MatchSet{Type: api.MatchSet_TYPE_ANY, Name: name}},
			Actions: &api.Actions{
				AsPrepend:      &api.AsPrependAction{UseLeftMost: true, Repeat: bit},
				LargeCommunity: &api.CommunityAction{Type: api.CommunityAction_TYPE_REMOVE, Communities: []string{"^" + mark + "$"}},
			},
		})
	}
	for _, a := range []struct {
		policy    *api.Policy
		direction api.PolicyDirection
		otherwise api.RouteAction
	}{
		{local, api.PolicyDirection_POLICY_DIRECTION_IMPORT, api.RouteAction_ROUTE_ACTION_REJECT},
		{prepend, api.PolicyDirection_POLICY_DIRECTION_EXPORT, api.RouteAction_ROUTE_ACTION_ACCEPT},
	} {
		if err := e.srv.AddPolicy(ctx, &api.AddPolicyRequest{Policy: a.policy}); err != nil {
			return err
		}
		err := e.srv.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: "global", Direction: a.direction, Policies: []*api.Policy{a.policy}, DefaultAction: a.otherwise,
		}})
		if err != nil {
			return err
		}
	}
	return nil
}

// addPeer adds a neighbour. restarting says that it may still hold routes of this
// node from before: it is told that forwarding went on meanwhile (RFC 4724, section 4.1).
func (e *engine) addPeer(ctx context.Context, p BGPPeer, restart time.Duration, restarting bool) error {
	if err := e.srv.AddPeer(ctx, &api.AddPeerRequest{Peer: newPeer(p, restart, restarting)}); err != nil {
		return fmt.Errorf("add peer %v: %w", p.Address, err)
	}
	return nil
}

func newPeer(p BGPPeer, restart time.Duration, restarting bool) *api.Peer {
	peer := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: p.Address.String(), PeerAsn: p.AS, LocalAsn: p.LocalAS},
		// GoBGP waits for connections; it gets those opened from here the same way.
		Transport: &api.Transport{PassiveMode: true},
		Timers: &api.Timers{Config: &api.TimersConfig{
			HoldTime: uint64(p.Hold / time.Second), KeepaliveInterval: uint64(p.Keepalive / time.Second),
			IdleHoldTimeAfterReset: 1,
		}},
		TtlSecurity:  &api.TtlSecurity{Enabled: p.TTLSecurity, TtlMin: maxTTL},
		EbgpMultihop: &api.EbgpMultihop{Enabled: p.Multihop != 0, MultihopTtl: uint32(p.Multihop)},
	}
	if p.Source.IsValid() {
		peer.Transport.LocalAddress = p.Source.String()
	}
	if p.GracefulRestart {
		peer.GracefulRestart = &api.GracefulRestart{
			Enabled: true, RestartTime: uint32(restart / time.Second), LocalRestarting: restarting,
			// What is announced here does not depend on what the neighbours say, so their
			// End-of-RIB is waited for no longer than GoBGP can be told to.
			DeferralTime: 1,
		}
	}
	for _, f := range p.families() {
		family := apiutil.ToApiFamily(f.Afi(), f.Safi())
		peer.AfiSafis = append(peer.AfiSafis, &api.AfiSafi{
			Config:            &api.AfiSafiConfig{Family: family, Enabled: true},
			MpGracefulRestart: &api.MpGracefulRestart{Config: &api.MpGracefulRestartConfig{Enabled: p.GracefulRestart}},
			PrefixLimits:      &api.PrefixLimit{Family: family, MaxPrefixes: p.MaxPrefixes},
		})
	}
	return peer
}

// removePeer ends the session, tells the neighbour that it is none any more, and
// forgets what it said.
func (e *engine) removePeer(ctx context.Context, addr netip.Addr) error {
	if err := e.srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: addr.String()}); err != nil {
		return fmt.Errorf("remove peer %v: %w", addr, err)
	}
	return nil
}

// resetPeer ends an established session and tells the neighbour why.
func (e *engine) resetPeer(ctx context.Context, addr netip.Addr, why string) error {
	return e.srv.ResetPeer(ctx, &api.ResetPeerRequest{Address: addr.String(), Communication: why})
}

// stop ends all sessions and the server. Gracefully, connections are closed without
// a word, so that neighbours that agreed to it keep the routes; otherwise they are
// told why (RFC 9003).
func (e *engine) stop(ctx context.Context, graceful bool, why string) {
	if !graceful {
		e.shutDown(ctx, why)
	}
	_ = e.srv.StopBgp(ctx, &api.StopBgpRequest{AllowGracefulRestart: graceful}) // fails only when it is stopped
	e.cancel()
	e.srv.Stop() // the rest of its goroutines
}

// farewell is how long a session may take to say its last word.
const farewell = 500 * time.Millisecond

func (e *engine) shutDown(ctx context.Context, why string) {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	asked := map[netip.Addr]bool{}
	for deadline := time.Now().Add(farewell); time.Now().Before(deadline); <-tick.C {
		peers := e.peers(ctx)
		up := 0
		for addr, p := range peers {
			if p.state != StateEstablished {
				continue
			}
			up++
			if !asked[addr] {
				asked[addr] = true
				_ = e.srv.ShutdownPeer(ctx, &api.ShutdownPeerRequest{Address: addr.String(), Communication: why})
			}
		}
		if up == 0 {
			return
		}
	}
}

// quiet lets GoBGP speak at the level of debugging only: what matters of it is
// said by the speaker itself.
type quiet struct{ slog.Handler }

func (q quiet) Enabled(ctx context.Context, _ slog.Level) bool {
	return q.Handler.Enabled(ctx, slog.LevelDebug)
}

func (q quiet) Handle(ctx context.Context, r slog.Record) error {
	r.Level = slog.LevelDebug
	return q.Handler.Handle(ctx, r)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.Handler.WithAttrs(attrs)} }
func (q quiet) WithGroup(name string) slog.Handler       { return quiet{q.Handler.WithGroup(name)} }

// families is the route families a neighbour is spoken to about.
func (p BGPPeer) families() []bgp.Family {
	var out []bgp.Family
	if p.IPv4 {
		out = append(out, bgp.RF_IPv4_UC)
	}
	if p.IPv6 {
		out = append(out, bgp.RF_IPv6_UC)
	}
	return out
}

// setLimit changes how many prefixes a neighbour may send, which touches no session.
func (e *engine) setLimit(ctx context.Context, p BGPPeer, restart time.Duration) error {
	_, err := e.srv.UpdatePeer(ctx, &api.UpdatePeerRequest{Peer: newPeer(p, restart, false)})
	if err != nil {
		return fmt.Errorf("set the prefix limit of peer %v: %w", p.Address, err)
	}
	return nil
}
