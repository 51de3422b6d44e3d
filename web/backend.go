package web

import (
	"context"
	"errors"
	"time"

	"pontoon/fsm"
)

// Sentinels of a Backend, beside those of fsm. They may be wrapped.
var (
	// ErrNoCluster says that the node is a member of nothing.
	ErrNoCluster = errors.New("this node is in no cluster: run `pontoon init` or `pontoon join`")

	// ErrNoLeader says that nobody can take a write now. It passes when the
	// members have elected somebody, so the API asks the client to try again.
	ErrNoLeader = errors.New("the cluster has no leader at the moment: try again, and look at `pontoon status` if it lasts")
)

// Backend is what the API stands on. All methods are safe for concurrent use
// and return ErrNoCluster, where they return an error, while the node is in no
// cluster.
type Backend interface {
	// State is the newest applied state. It is never nil and never blocks.
	State() *fsm.State

	// Status gathers what `pontoon status` shows. The caller owns the result.
	Status(ctx context.Context) (Status, error)

	// Propose brings a command to the leader and returns its index once it is
	// applied on this node. It returns fsm's sentinels, also when another node
	// refused, and ErrNoLeader when nobody leads for as long as ctx allows.
	Propose(ctx context.Context, cmd fsm.Command) (index uint64, err error)

	// Reads says whether all members read commands of this version, as far as is
	// known; it may wait a moment for what is not. What nobody asked for is not
	// written while one of them does not.
	Reads(ctx context.Context, version int) bool

	// Uses lists, for each node with a data plane, its addresses and where its routes
	// lead, but for what Pontoon has set: see AddressUse. A node that cannot be asked
	// is an entry with an error; that of this node is the error.
	Uses(ctx context.Context) ([]NodeUses, error)

	// ProposeIf is Propose for a command that replaces something, if that has the
	// fingerprint want just before (fsm.State.Fingerprint); else it returns
	// fsm.ErrChanged, and nothing has happened. A leader of a version that did not
	// know this yet does not look.
	ProposeIf(ctx context.Context, cmd fsm.Command, want string) (index uint64, err error)

	// Events returns what happened at or after since, oldest first, and a
	// function that blocks until there is more. A call of next that ends with
	// its context's error has taken nothing: the next call continues there.
	// The function is for one goroutine.
	Events(since time.Time) (backlog []Event, next func(ctx context.Context) ([]Event, error))

	// Flows lists the flow table of this node, one entry for each connection.
	Flows(ctx context.Context, f FlowFilter) ([]Flow, error)

	// FlushFlows forgets the flows of a service on every node and returns how
	// many connections this node forgot.
	FlushFlows(ctx context.Context, service string) (int, error)

	// CompareFlows compares, with each peer that lives, the flows that this node
	// forwards with what the peer holds of them. A peer that cannot be asked is
	// an entry with an error.
	CompareFlows(ctx context.Context) ([]FlowComparison, error)

	// Trace calls started when packets are being traced on this node, and emit
	// with each that f chooses, from one goroutine, until ctx ends or the node
	// stops (nil) or emit fails (its error). It returns ErrTraceBusy while
	// another session goes on.
	Trace(ctx context.Context, f TraceFilter, started func(), emit func(TraceEvent) error) (TraceSummary, error)

	// BGPRoutes lists the routes this node advertises to its peers, or has
	// received from them, one entry for each prefix and peer; an empty list where
	// it speaks no BGP. What the configuration says of them is left to the API.
	BGPRoutes(ctx context.Context, d BGPDirection) ([]BGPRoute, error)

	// Health never blocks, and works in no cluster too.
	Health() Health
}

// ClusterOps forms and leaves clusters. Its methods are safe for concurrent
// use, block until the work is done, and leave no trace when they fail, except
// where they say otherwise.
type ClusterOps interface {
	// Init makes this node the first of a new cluster. It returns
	// fsm.ErrAlreadyInitialised when it is in one.
	Init(ctx context.Context) (InitResult, error)

	// Join makes this node a member of the cluster req.Address belongs to. It
	// returns fsm.ErrTokenInvalid, fsm.ErrExists or fsm.ErrInUse when the
	// cluster refuses, and fsm.ErrAlreadyInitialised when this node is in one.
	Join(ctx context.Context, req JoinRequest) (JoinResult, error)

	// Leave hands over, drains and leaves. It calls progress with one sentence
	// for each step, from the goroutine that called Leave.
	Leave(ctx context.Context, force bool, progress func(string)) error

	// Recover rebuilds the cluster from this node alone, after its quorum was
	// lost for good. It returns an error that matches fsm.ErrInvalid when
	// req.Fenced is not exactly the other members, and fsm.ErrInUse while one of
	// them answers or a leader is heard; then nothing has happened. It calls
	// progress as Leave does.
	Recover(ctx context.Context, req RecoverRequest, progress func(string)) (RecoverResult, error)

	// CreateToken returns a join token; its secret is kept nowhere else.
	CreateToken(ctx context.Context, role fsm.Role, ttl time.Duration) (token string, err error)
}
