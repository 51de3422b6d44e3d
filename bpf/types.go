package bpf

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strconv"
	"time"
)

// Mode says which addresses of a packet are rewritten on its way to an endpoint.
type Mode uint8

const (
	// ModeFullNAT sends from the VIP to the endpoint.
	ModeFullNAT Mode = Mode(pontoonNatModeMODE_FULLNAT)
	// ModeOneArm sends from an address of the load balancer to the endpoint.
	ModeOneArm Mode = Mode(pontoonNatModeMODE_ONEARM)
	// ModeDNAT keeps the client's address; the endpoint's way back must lead here.
	ModeDNAT Mode = Mode(pontoonNatModeMODE_DNAT)
	// ModeDSR changes no address of the client's packet; the endpoint holds the VIP itself and
	// answers the client directly.
	ModeDSR Mode = Mode(pontoonNatModeMODE_DSR)
)

// String returns the name that the configuration uses.
func (m Mode) String() string {
	switch m {
	case ModeFullNAT:
		return "fullnat"
	case ModeOneArm:
		return "onearm"
	case ModeDNAT:
		return "dnat"
	case ModeDSR:
		return "dsr"
	}
	return "mode " + strconv.Itoa(int(m))
}

// Algorithm says how the endpoint of a new flow is chosen.
type Algorithm uint8

const (
	// AlgorithmRR takes endpoints in turn, in exact proportion to their weights.
	AlgorithmRR Algorithm = Algorithm(pontoonAlgorithmALGORITHM_RR)
	// AlgorithmMaglev takes the endpoint that a consistent hash of the client's tuple names,
	// the same one on every node.
	AlgorithmMaglev Algorithm = Algorithm(pontoonAlgorithmALGORITHM_MAGLEV)
	// AlgorithmLC takes the endpoint with the fewest established connections for its weight.
	AlgorithmLC Algorithm = Algorithm(pontoonAlgorithmALGORITHM_LC)
)

// String returns the name that the configuration uses.
func (a Algorithm) String() string {
	switch a {
	case AlgorithmRR:
		return "rr"
	case AlgorithmMaglev:
		return "maglev"
	case AlgorithmLC:
		return "lc"
	}
	return "algorithm " + strconv.Itoa(int(a))
}

// Tunnel says how a packet of ModeDSR travels to its endpoint.
type Tunnel uint8

const (
	TunnelL2   Tunnel = 0 // only the MAC address changes: the endpoint is on a link of ours
	TunnelIPIP Tunnel = 1 // IP in IP: RFC 2003 for IPv4, RFC 2473 for IPv6
)

// Policy says what becomes of packets that have nowhere to go.
type Policy uint8

const (
	PolicyReset Policy = 0 // TCP: reset, SCTP: abort, UDP: ICMP port unreachable
	PolicyDrop  Policy = 1 // nothing is said
	PolicyKeep  Policy = 2 // OnRemove and OnDead only: flows go on as before
	// PolicyMove is for OnDead only: the flow is forgotten, so that its next packet chooses an endpoint anew.
	// What has a state of its own at the endpoint, TCP and SCTP, cannot go on at another and is reset.
	PolicyMove Policy = 3
)

// Replicate says what the other nodes are told of the flows of a service.
type Replicate uint8

const (
	ReplicateEstablished Replicate = 0 // connections once they are established, and their end
	ReplicateAll         Replicate = 1 // connections from their first packet on
	ReplicateNone        Replicate = 2 // nothing: their connections end with their load balancer
)

// String returns the name that the configuration uses.
func (r Replicate) String() string {
	switch r {
	case ReplicateEstablished:
		return "established"
	case ReplicateAll:
		return "all"
	case ReplicateNone:
		return "none"
	}
	return "replicate " + strconv.Itoa(int(r))
}

// EndpointState says which flows an endpoint has.
type EndpointState uint8

const (
	EndpointUp    EndpointState = 0
	EndpointDrain EndpointState = 1 // keeps its flows, takes no new ones
	EndpointDown  EndpointState = 2 // has none
	// EndpointDead takes no new flows: probes found it dead. What it never answered is forgotten, so that what
	// is sent again goes elsewhere; what becomes of the others is Service.OnDead.
	EndpointDead EndpointState = 3
)

// FlowState is where a connection stands.
type FlowState uint8

// States up to StateRefused are half-open. Two-way UDP counts as established.
const (
	StateSyn         FlowState = FlowState(pontoonFlowStateFLOW_SYN)
	StateSynAck      FlowState = FlowState(pontoonFlowStateFLOW_SYNACK)
	StateRefused     FlowState = FlowState(pontoonFlowStateFLOW_REFUSED)
	StateEstablished FlowState = FlowState(pontoonFlowStateFLOW_ESTABLISHED)
	StateFin         FlowState = FlowState(pontoonFlowStateFLOW_FIN)
	StateClosed      FlowState = FlowState(pontoonFlowStateFLOW_CLOSED)
)

// String returns a short lower-case word.
func (s FlowState) String() string {
	switch s {
	case StateSyn:
		return "syn"
	case StateSynAck:
		return "synack"
	case StateRefused:
		return "refused"
	case StateEstablished:
		return "established"
	case StateFin:
		return "fin"
	case StateClosed:
		return "closed"
	}
	return "none"
}

// Hooks that Options.Hook may name.
const (
	HookAuto   = "auto"   // XDP and TC on network cards, TC on virtual interfaces
	HookTC     = "tc"     // TCX where the kernel has it, else clsact
	HookClsact = "clsact" // the older form of TC, also on new kernels
	HookXDP    = "xdp"    // native XDP and TC on every interface that takes it, else TC

	HookXDPGeneric = "xdp-generic" // XDP in the kernel instead of the driver, and TC: slower than TC alone
)

// Limits and defaults of Options.
const (
	Slots                = 8       // nodes that may hand out SNAT ports
	DefaultMaxFlows      = 1 << 20 // connections
	DefaultMaxHalfOpen   = 1 << 17 // connections
	DefaultEventsBytes   = 8 << 20
	minFlows             = 64
	nextHopLife          = 5 * time.Second
	defaultTCPIdle       = time.Hour
	defaultUDPIdle       = 120 * time.Second
	maxIdleTimeout       = 21 * 24 * time.Hour
	maxReplicateMinAge   = time.Hour
	recordBatch          = 256 // records per event batch and per chunk of a snapshot
	recordBatchAge       = 2 * time.Millisecond
	eventBatches         = 256 // batches that may wait for the consumer
	dumpChunk            = 2048
	bringMax             = 1 << 16
	blockGrace           = 2 * time.Second
	minSweep             = time.Second
	sweepCPUShareInverse = 20 // a sweep may take 1/20 of one CPU
	// While connections are doomed it is more: their sides are to be told within seconds.
	doomedCPUShareInverse = 4
)

// Options says what a data plane is made of.
type Options struct {
	// PinDir is a folder on a BPF file system, made when missing. Several data planes on one
	// kernel need several. Required.
	PinDir string
	// Interfaces that packets arrive on, in the network namespace of the calling thread.
	Interfaces []string
	// MaxFlows bounds established connections; each takes two entries of about 168 bytes,
	// allocated at once. Default 1048576. A pinned table of another size is replaced while packets
	// flow, its connections moved; one whose connections would not fit keeps its size.
	MaxFlows uint32
	// MaxHalfOpen bounds connections that are not complete; the oldest give way. Default 131072.
	MaxHalfOpen uint32
	// EventsBytes is the size of the ring buffer, a power of two. Default 8 MiB.
	EventsBytes uint32
	// Slot is this node's number below 8: it says which SNAT ports are ours.
	Slot uint8
	// Hook is HookAuto (default), HookTC, HookClsact, HookXDP or HookXDPGeneric. Whatever is taken, the TC
	// program is attached too: it does what XDP cannot.
	Hook string
	// XDPMax is the size in bytes, from the IP header on, above which XDP leaves a packet to receive
	// offload and TC. Default 0: no limit.
	XDPMax uint32
	// Discard gives pinned maps up, with the flows in them, when they are of another layout
	// (ErrLayout), and starts afresh. Default: Open fails, and what is there goes on forwarding.
	Discard bool
	// Logger receives what an operator would want to know. Default: discarded.
	Logger *slog.Logger

	// timeouts other than the default ones are for tests.
	timeouts timeouts
	// nextHopLife is how long a next hop is not asked for again; longer for tests that look at every byte:
	// the packet that asks has its MAC addresses written by the kernel, later.
	nextHopLife time.Duration
	// bringMax bounds the frames brought to other nodes in a second, on each CPU and for each side.
	bringMax uint32
	// betweenTables is for tests: it is called while both flow tables of a change of size are in use.
	betweenTables func(*Dataplane) error
	// without names programs that a test can do without: the kernel takes long to look through them.
	without []string
	// objects stands in for openObjects, and may bring programs that are loaded, where a test has those of
	// an earlier one.
	objects func(*Dataplane) error
}

// Validate reports everything that is wrong, joined.
func (o Options) Validate() error {
	var errs []error
	if o.PinDir == "" {
		errs = append(errs, errors.New("pin folder is not set"))
	}
	if o.Slot >= Slots {
		errs = append(errs, fmt.Errorf("slot %d is not below %d", o.Slot, Slots))
	}
	switch o.Hook {
	case "", HookAuto, HookTC, HookClsact, HookXDP, HookXDPGeneric:
	default:
		errs = append(errs, fmt.Errorf("hook %q is not auto, tc, clsact, xdp or xdp-generic", o.Hook))
	}
	if o.MaxFlows != 0 && (o.MaxFlows < minFlows || o.MaxFlows > 1<<28) {
		errs = append(errs, fmt.Errorf("max flows %d is not between %d and %d", o.MaxFlows, minFlows, 1<<28))
	}
	if o.MaxHalfOpen != 0 && (o.MaxHalfOpen < minFlows || o.MaxHalfOpen > 1<<28) {
		errs = append(errs, fmt.Errorf("max half-open flows %d is not between %d and %d", o.MaxHalfOpen, minFlows, 1<<28))
	}
	if n := o.EventsBytes; n != 0 && (n < 4096 || n&(n-1) != 0) {
		errs = append(errs, fmt.Errorf("event bytes %d is not a power of two of at least 4096", n))
	}
	return errors.Join(errs...)
}

func (o Options) withDefaults() Options {
	if o.MaxFlows == 0 {
		o.MaxFlows = DefaultMaxFlows
	}
	if o.MaxHalfOpen == 0 {
		o.MaxHalfOpen = DefaultMaxHalfOpen
	}
	if o.EventsBytes == 0 {
		o.EventsBytes = DefaultEventsBytes
	}
	if o.Hook == "" {
		o.Hook = HookAuto
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.nextHopLife == 0 {
		o.nextHopLife = nextHopLife
	}
	if o.bringMax == 0 {
		o.bringMax = bringMax
	}
	if o.timeouts == (timeouts{}) {
		o.timeouts = defaultTimeouts()
	}
	return o
}

// Desired is everything the data plane shall do, whole.
type Desired struct {
	Gen      uint64 // of the state it was made from; for the log only
	VIPs     []netip.Addr
	Services []Service
	// Retired says that this node has left: there is nothing to forward any more, but what it still
	// forwards is another's by now, and its flows are left to run out instead of being ended.
	Retired bool
}

// Service is one VIP, port range and protocol with all its endpoints.
type Service struct {
	ID          uint32         // replicated, 1..65535; flows name their service by it
	VIP         netip.AddrPort // the first port of the range
	PortEnd     uint16         // the last port of the range; 0: one port. Offsets carry over to the endpoint's port
	Protocol    uint8          // IP protocol number: 6, 17 or 132
	Mode        Mode
	Tunnel      Tunnel // how ModeDSR reaches the endpoint
	Algorithm   Algorithm
	IdleTimeout time.Duration // of established flows; 0: one hour for TCP and SCTP, 120 s for UDP
	IdleReset   bool          // both sides are told when a connection idles out
	Affinity    time.Duration // how long a client stays with its endpoint after its last new flow; 0: no affinity
	NewFlowRate uint32        // new flows a second; beyond it TCP must repeat its SYN, others are dropped; 0: no limit
	OnRemove    Policy        // what the flows of an endpoint that is gone or down get
	OnDead      Policy        // what those of an endpoint that is dead get
	Closed      bool          // while no endpoint takes new flows they get what PolicyReset says; otherwise nothing is said
	OnFull      Policy        // what a new flow gets when the table is full: PolicyReset or PolicyDrop
	Seed        uint32        // of the hash; the same on every node
	// Replicate is what the other nodes are told of its flows; ReplicateMinAge is how old a connection is before they
	// are told of it at all: short ones cost nothing then, and do not survive their load balancer.
	Replicate       Replicate
	ReplicateMinAge time.Duration
	// Epoch is that of the mastership, its low 32 bits, under which this node forwards the service's
	// packets; 0: it is not the master. Of two nodes that claim a flow the one with the higher epoch owns it.
	Epoch uint32
	// Shared says that routers bring its packets to any node at any time, because the instance of its
	// VIP has no master: what is not known here is brought to the other nodes (SetPeers), and a
	// flow whose directions pass two nodes stays with one of them.
	Shared bool
	// Strays are the nodes that may know a connection which is not known here, although its instance has a master:
	// routers that learn its VIP by BGP turn to the next node before the cluster does, while the endpoints' answers go on
	// arriving at the master. Packets of such connections are brought there (SetPeers).
	Strays    Strays
	Endpoints []Endpoint
}

// Strays are nodes, one bit for each slot. The zero value is nobody: what is not known is nobody's.
type Strays struct {
	Clients uint8 // who may know the connection that a client's packet belongs to
	// Answers is who may know the one that an answer belongs to which passes this node (ModeDNAT). While there is any, what
	// endpoints answer to a source port is brought to the node that gave the port out.
	Answers uint8
}

// Endpoint is one backend. Weight 0 takes no new flows.
type Endpoint struct {
	ID         uint32 // replicated, 1..65535; flows name their endpoint by it
	Addr       netip.AddrPort
	Weight     uint16
	State      EndpointState
	DrainUntil time.Time // EndpointDrain and EndpointDead: when its flows are ended by OnRemove; zero: never
	// Sources are the SNAT addresses, all of the endpoint's family: the VIP or the pool (fullnat), the gateway VIP
	// or an own address (onearm), the outer source (dsr by tunnel); none for dnat and dsr by L2.
	Sources []netip.Addr
}

// idle is the time after which an established flow of s is taken out.
func (s Service) idle() time.Duration {
	if s.IdleTimeout > 0 {
		return s.IdleTimeout
	}
	if s.Protocol == protoUDP {
		return defaultUDPIdle
	}
	return defaultTCPIdle
}

// takesNew tells whether the endpoint is chosen for new flows.
func (e Endpoint) takesNew() bool { return e.Weight > 0 && e.State == EndpointUp }
