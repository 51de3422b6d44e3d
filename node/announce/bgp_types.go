package announce

import (
	"log/slog"
	"net/netip"
	"time"
)

// BGPOptions is what a BGP speaker is made with.
type BGPOptions struct {
	Logger *slog.Logger // default: nothing is logged
	// Notify is called when something about the peers or the learned routes changed:
	// a session's state or last error, a route received or withdrawn. It is called
	// from goroutines of the speaker, at most once until Learned is called when only
	// routes change, and must not block. Default: nobody is told.
	Notify func()
}

// BGPConfig is the whole of what the speaker is to be towards its neighbours.
// Durations of less than a second are not spoken: they are rounded up.
type BGPConfig struct {
	AS       uint32     // of this node, where a peer names no other
	RouterID netip.Addr // an IPv4 address, unique among the neighbours (RFC 6286)
	// Port is where neighbours may connect to, on every address; 0 is nowhere, and
	// every session is opened from here.
	Port uint16
	// RestartTime is for how long neighbours are asked to keep the routes when this
	// end is gone (RFC 4724); 0 reads as 2 minutes. At most 4095 s.
	RestartTime time.Duration
	Peers       []BGPPeer    // by address: each once
	Import      []ImportRule // what Learned tells of; none: nothing
	MaxImport   uint32       // how many prefixes Learned tells of; 0 reads as 1000
	// Multipath makes Learned tell all next hops of paths that are equally good, and
	// not the best one alone.
	Multipath bool
}

// BGPPeer is one neighbour. Any difference but in MaxPrefixes is another session.
type BGPPeer struct {
	Address netip.Addr
	AS      uint32
	LocalAS uint32 // what this node calls itself here; 0 reads as BGPConfig.AS
	Port    uint16 // 0 reads as 179
	// Password is the key of TCP MD5 signatures (RFC 2385); empty: none are made.
	Password string
	// Multihop is the TTL of packets to a neighbour of another AS that is not on a
	// link of this node; 0 and 1: it is.
	Multihop    uint8
	TTLSecurity bool // send and expect TTL 255 (RFC 5082)
	Passive     bool // wait for the neighbour to connect
	// Hold is after which silence the neighbour is taken for dead; 0 reads as 9 s.
	// Keepalive is how often it hears from here; 0 reads as a third of Hold.
	Hold, Keepalive time.Duration
	Source          netip.Addr // of the connection; zero: as the kernel's routes have it
	// IPv4 and IPv6 say which routes are exchanged, whatever the session runs over.
	IPv4, IPv6 bool
	// GracefulRestart asks the neighbour to keep the routes when this end restarts,
	// and keeps its routes when it does (RFC 4724).
	GracefulRestart bool
	// MaxPrefixes is how many prefixes of a family the neighbour may send. With one
	// more the session is closed, for a minute. 0 reads as 10000.
	MaxPrefixes uint32
}

// ImportRule lets prefixes in that lie within Prefix and whose length is MinLen to
// MaxLen. Without both, it is Prefix itself and nothing else; with MinLen alone,
// everything from there to single addresses; with MaxLen alone, from Prefix on.
type ImportRule struct {
	Prefix         netip.Prefix
	MinLen, MaxLen uint8
}

// ImportAll is the rules that let everything in.
func ImportAll() []ImportRule {
	return []ImportRule{
		{Prefix: netip.PrefixFrom(netip.IPv4Unspecified(), 0), MaxLen: 32},
		{Prefix: netip.PrefixFrom(netip.IPv6Unspecified(), 0), MaxLen: 128},
	}
}

// Route is one prefix to announce.
type Route struct {
	Prefix netip.Prefix
	// NextHop is of the prefix's family. Zero is this end of each session; where a
	// session runs over the other family, it is an address of this node on the same
	// link (a global one), and without such an address the session's own.
	NextHop netip.Addr
	MED     uint32 // a router prefers the lower one
	// LocalPref goes to neighbours of the same AS only: the higher one is preferred.
	LocalPref uint32
	// Prepend is how often the own AS stands in the path beyond the first time.
	// Neighbours of the same AS do not see it. At most 31.
	Prepend          uint8
	Communities      []uint32    // RFC 1997
	LargeCommunities [][3]uint32 // RFC 8092
}

// PeerState is the state of a session (RFC 4271, section 8.2.2).
type PeerState string

// The states of a session.
const (
	StateIdle        PeerState = "idle"    // it rests before the next try
	StateConnect     PeerState = "connect" // a connection is being opened from here
	StateActive      PeerState = "active"  // it waits, for the neighbour or for the next try
	StateOpenSent    PeerState = "opensent"
	StateOpenConfirm PeerState = "openconfirm"
	StateEstablished PeerState = "established"
)

// PeerStatus is what is to be seen of one neighbour.
type PeerStatus struct {
	Address     netip.Addr
	AS, LocalAS uint32
	State       PeerState
	Since       time.Time // of being established, or of not being so
	// Received is how many prefixes the neighbour sent, Accepted how many of them the
	// import rules let in, Advertised how many the session was given to announce.
	Received, Accepted, Advertised int
	Flaps                          int    // how often the session ended after it had been established
	MessagesIn, MessagesOut        uint64 // of the present session
	HoldTime                       time.Duration
	RouterID                       netip.Addr // zero before the first session
	// Error says in plain words why the session is not established. It is empty when it is.
	Error string
}

// RouteView is one route as it stands between this node and one neighbour.
type RouteView struct {
	Peer             netip.Addr
	Prefix           netip.Prefix
	NextHop          netip.Addr
	MED, LocalPref   uint32
	ASPath           []uint32
	Communities      []uint32
	LargeCommunities [][3]uint32
	// Best says of a received route that Learned has it; of an announced one nothing.
	Best bool
}

// Learned is one prefix the import rules let in.
type Learned struct {
	Prefix   netip.Prefix
	NextHops []netip.Addr // sorted; several only with BGPConfig.Multipath
}

// PeerAction is what a change of the configuration means for a session.
type PeerAction string

// What may become of a session.
const (
	PeerAdded   PeerAction = "add"
	PeerReset   PeerAction = "reset"
	PeerRemoved PeerAction = "remove"
)

// PeerChange is one session that a change of the configuration touches.
type PeerChange struct {
	Peer   netip.Addr
	Action PeerAction
	Why    string // in plain words
	// Quiet is a reset of which the neighbour is not told: the connection just ends, so that one which has agreed to
	// graceful restart keeps the routes until the session is back (RFC 4724, 4.2).
	Quiet bool
}
