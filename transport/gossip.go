package transport

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sync/errgroup"
)

// gossipKeySize is the length of a gossip key in bytes: AES-256.
const gossipKeySize = 32

// Defaults of the gossip timers. DESIGN.md has the arithmetic and what was
// measured with them.
const (
	defaultProbeInterval  = 100 * time.Millisecond
	defaultProbeTimeout   = 40 * time.Millisecond
	defaultSuspicionMult  = 4
	defaultGossipInterval = 30 * time.Millisecond
	defaultRejoinInterval = 500 * time.Millisecond

	gossipStreamTimeout    = time.Second
	gossipPushPullInterval = 3 * time.Second

	// suspicionMaxMult caps how much longer than the base a suspicion may last
	// while confirmations by others are missing (only with five nodes and more).
	suspicionMaxMult = 2
	// awarenessMax lets a node that finds itself slow at most double its probe
	// interval before it accuses others.
	awarenessMax = 2
	// missesToSuspect is how many of its own pings in a row a node must miss
	// before it shows a member as suspect. One lost datagram is no news.
	missesToSuspect = 2
)

// GossipConfig says how a Gossip is to work.
type GossipConfig struct {
	// Node is what this member is called in gossip, unique there: two members of
	// one name at two addresses would hide each other. It is made like a node's
	// name but may have 127 characters, to leave room for what tells two machines
	// apart that had one name in turn. Required.
	Node string
	// Bind is the address and port (UDP and TCP) to bind and to be known by. The
	// address must be a specific one. Port 0 picks a free port (tests).
	Bind netip.AddrPort
	// Keys encrypt and authenticate all traffic (AES-256-GCM); 32 bytes each. The
	// first encrypts, all decrypt. At least one is required.
	Keys [][]byte
	// Meta is up to 511 bytes that other members see with this node.
	Meta []byte

	// ProbeInterval is how often this node probes one member. Default 100 ms.
	ProbeInterval time.Duration
	// ProbeTimeout is how long a direct probe waits before others are asked to
	// probe in its stead. It must be under half of ProbeInterval, so that their
	// answer can arrive within the round. Default 40 ms.
	ProbeTimeout time.Duration
	// SuspicionMult times ProbeInterval is how long a member that failed a probe
	// has to speak up before it is declared dead (times log10 of the number of
	// members from ten on). Default 4.
	SuspicionMult int
	// GossipInterval is how often pending news is sent out. Default 30 ms.
	GossipInterval time.Duration
	// RejoinInterval is how often seeds that are not alive are tried again, and
	// how long until lists are exchanged with a member that came to life.
	// Default 500 ms.
	RejoinInterval time.Duration

	// Logger defaults to one that discards. The library's own lines go to it at
	// level debug.
	Logger *slog.Logger
}

// Validate reports everything that is wrong with the configuration.
func (c GossipConfig) Validate() error {
	var errs []error
	if err := checkGossipName(c.Node); err != nil {
		errs = append(errs, err)
	}
	if a := c.Bind.Addr(); !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
		errs = append(errs, fmt.Errorf("bind address %q is not the address of one machine", c.Bind))
	}
	if err := checkGossipKeys(c.Keys); err != nil {
		errs = append(errs, err)
	}
	if len(c.Meta) > memberlist.MetaMaxSize-1 {
		errs = append(errs, fmt.Errorf("meta has %d bytes, more than %d", len(c.Meta), memberlist.MetaMaxSize-1))
	}
	if c.ProbeInterval < 0 || c.ProbeTimeout < 0 || c.GossipInterval < 0 || c.RejoinInterval < 0 || c.SuspicionMult < 0 {
		errs = append(errs, errors.New("a timer is negative"))
	}
	if d := c.withDefaults(); d.ProbeTimeout*2 >= d.ProbeInterval {
		errs = append(errs, fmt.Errorf("probe timeout %s is not under half of the probe interval %s", d.ProbeTimeout, d.ProbeInterval))
	}
	return errors.Join(errs...)
}

func (c GossipConfig) withDefaults() GossipConfig {
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	set(&c.ProbeInterval, defaultProbeInterval)
	set(&c.ProbeTimeout, defaultProbeTimeout)
	set(&c.GossipInterval, defaultGossipInterval)
	set(&c.RejoinInterval, defaultRejoinInterval)
	if c.SuspicionMult == 0 {
		c.SuspicionMult = defaultSuspicionMult
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Gossip is this node's part in the encrypted gossip among the cluster's nodes:
// who is there, and who does not answer. It reports; it decides nothing. All
// methods are safe for concurrent use.
type Gossip struct {
	cfg     GossipConfig
	list    *memberlist.Memberlist
	keyring *memberlist.Keyring
	bind    netip.AddrPort
	table   *gossipTable

	mu    sync.Mutex // never held while calling into memberlist
	seeds map[string]netip.AddrPort
	keys  sync.Mutex // serialises SetKeys

	life sync.RWMutex // read-held by calls that memberlist forbids after shutdown
	shut bool
}

// NewGossip validates cfg, binds the port and begins to answer. The caller must
// Run or Close the Gossip.
func NewGossip(cfg GossipConfig) (*Gossip, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure gossip: %w", err)
	}
	cfg = cfg.withDefaults()
	keyring, err := memberlist.NewKeyring(cloneKeys(cfg.Keys), slices.Clone(cfg.Keys[0]))
	if err != nil {
		return nil, fmt.Errorf("configure gossip keys: %w", err)
	}
	g := &Gossip{
		cfg:     cfg,
		keyring: keyring,
		table:   newGossipTable(cfg.Node, cfg.Meta),
		seeds:   map[string]netip.AddrPort{},
	}
	if g.list, err = memberlist.Create(g.listConfig()); err != nil {
		return nil, fmt.Errorf("bind gossip to %s: %w", cfg.Bind, err)
	}
	self := g.list.LocalNode()
	addr, _ := netip.AddrFromSlice(self.Addr)
	g.bind = netip.AddrPortFrom(addr.Unmap(), self.Port)
	return g, nil
}

func (g *Gossip) listConfig() *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Node
	c.BindAddr = g.cfg.Bind.Addr().String()
	c.BindPort = int(g.cfg.Bind.Port())
	c.AdvertiseAddr = c.BindAddr
	c.AdvertisePort = c.BindPort
	c.Keyring = g.keyring
	c.GossipVerifyIncoming = true
	c.GossipVerifyOutgoing = true

	c.ProbeInterval = g.cfg.ProbeInterval
	c.ProbeTimeout = g.cfg.ProbeTimeout
	c.SuspicionMult = g.cfg.SuspicionMult
	c.SuspicionMaxTimeoutMult = suspicionMaxMult
	c.AwarenessMaxMultiplier = awarenessMax
	c.GossipInterval = g.cfg.GossipInterval
	c.PushPullInterval = gossipPushPullInterval
	c.TCPTimeout = gossipStreamTimeout
	// A member that was replaced comes back under its name at another address;
	// whether it may is decided by its certificate, not here.
	c.DeadNodeReclaimTime = time.Second
	c.RequireNodeNames = false
	c.EnableCompression = false // a handful of members: messages are tiny

	c.Events = g.table
	c.Delegate = g.table
	c.Logger = log.New(&slogWriter{logger: g.cfg.Logger}, "", 0)
	return c
}

// Address returns the bound address and port.
func (g *Gossip) Address() netip.AddrPort { return g.bind }

// Run watches the members and re-joins seeds until ctx ends, then shuts down. It
// does not Leave: a daemon that stops is not a member that left.
func (g *Gossip) Run(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { g.watch(ctx, eg); return nil })
	eg.Go(func() error { g.rejoin(ctx, eg); return nil })
	return errors.Join(eg.Wait(), g.Close())
}

// Close shuts gossip down without leaving. Run does it at its end; it is needed
// only for a Gossip that was never run. It may be called more than once.
func (g *Gossip) Close() error {
	g.life.Lock()
	defer g.life.Unlock()
	g.shut = true
	if err := g.list.Shutdown(); err != nil {
		return fmt.Errorf("shut gossip down: %w", err)
	}
	return nil
}

// Join contacts the given addresses and exchanges member lists. One that answers
// is enough; the error, if none did, names each. Joining again, or joining
// oneself, does no harm. It blocks for up to about two seconds.
func (g *Gossip) Join(addrs []netip.AddrPort) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if g.shut {
		return errors.New("join gossip: it is shut down")
	}
	reached := make([]error, len(addrs))
	var eg errgroup.Group
	for i, a := range addrs {
		eg.Go(func() error {
			_, err := g.list.Join([]string{a.String()})
			reached[i] = flattenJoinError(err)
			return nil
		})
	}
	_ = eg.Wait() // results are in reached
	if len(addrs) == 0 || slices.Contains(reached, nil) {
		return nil
	}
	texts := make([]string, len(reached))
	for i, err := range reached {
		texts[i] = err.Error()
	}
	return fmt.Errorf("join gossip: no member answers: %s", strings.Join(texts, "; "))
}

// flattenJoinError takes the library's multi-line list of one error apart.
func flattenJoinError(err error) error {
	var list interface{ WrappedErrors() []error }
	if errors.As(err, &list) && len(list.WrappedErrors()) == 1 {
		return list.WrappedErrors()[0]
	}
	return err
}

// SetSeeds replaces the set of members (name to gossip address) that Run keeps
// trying to reach while they are not alive, so that a healed partition and a
// restart of all nodes mend themselves. This node itself is skipped.
func (g *Gossip) SetSeeds(addrs map[string]netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seeds = make(map[string]netip.AddrPort, len(addrs))
	for node, a := range addrs {
		if node != g.cfg.Node {
			g.seeds[node] = a
		}
	}
}

// Members returns what is known of every member, this node included, sorted by
// name. Members that are dead or left stay in the list until Forget.
func (g *Gossip) Members() []GossipMember { return g.table.members() }

// Changed returns a channel that yields a value when something in Members
// changed since the last one was taken. Signals coalesce: read Members after
// each. There is one channel for all callers, so one reader.
func (g *Gossip) Changed() <-chan struct{} { return g.table.changed }

// Forget drops a member that is dead or left from the list; one that is alive
// stays. A forgotten node that comes back appears again.
func (g *Gossip) Forget(node string) { g.table.forget(node) }

// Leave tells the others that this node goes for good, and waits until the news
// is out or ctx ends. Other members then show it as left (or, when the two
// messages of it overtake one another, as dead) without a suspicion first. Run
// goes on until its context ends.
func (g *Gossip) Leave(ctx context.Context) error {
	g.life.RLock()
	defer g.life.RUnlock()
	if g.shut {
		return errors.New("leave gossip: it is shut down")
	}
	left := func() time.Duration { // memberlist takes 0 for "for ever"
		if d, ok := ctx.Deadline(); ok {
			return max(time.Until(d), time.Millisecond)
		}
		return gossipStreamTimeout
	}
	g.table.setLeaving()
	if err := g.list.UpdateNode(left()); err != nil {
		return fmt.Errorf("leave gossip: announce: %w", err)
	}
	if err := g.list.Leave(left()); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}
