package main

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pontoon/fsm"
)

// serviceFlags are the settings of a service on the command line.
type serviceFlags struct {
	vip         vipFlag
	share       string
	instance    string
	ports       portsFlag
	protocol    *choice
	mode        *choice
	tunnel      *choice
	algorithm   *choice
	affinity    *choice
	affinityFor time.Duration
	idleTimeout time.Duration
	idleReset   bool
	onRemove    *choice
	onFull      *choice
	newFlowRate uint32
	drainFor    time.Duration
	replicate   *choice
	minAge      time.Duration
	probe       probeFlags
	endpoints   endpointsFlag
	add         endpointsFlag
	remove      endpointsFlag
}

// addTo defines the flags. Their defaults are not told to pflag: the daemon
// fills in what is not given, and one place knows the defaults.
func (f *serviceFlags) addTo(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&f.vip, "vip", "the virtual address clients connect to, or auto[:POOL] for one of a pool")
	a.completingFlag(cmd, "vip", vipNames())
	fs.StringVar(&f.share, "share", "", "with --vip auto: be on one address with the services of the pool that say the same")
	fs.StringVar(&f.instance, "instance", "", "the instance the virtual address belongs to (default: the one it is in)")
	a.completingFlag(cmd, "instance", instanceNames())
	fs.Var(&f.ports, "port", "the port clients connect to, 1 to 65535, or a range like 8000-8100, whose offsets carry over to the endpoints' ports")
	f.protocol = newChoice("", string(fsm.TCP), string(fsm.UDP), string(fsm.SCTP))
	f.protocol.addTo(cmd, "protocol", "", "the transport protocol (default tcp)")
	f.mode = newChoice("", string(fsm.ModeFullNAT), string(fsm.ModeOneArm), string(fsm.ModeDNAT), string(fsm.ModeDSR))
	f.mode.addTo(cmd, "mode", "", "the kind of address translation (default fullnat)")
	f.tunnel = newChoice("", string(fsm.TunnelL2), string(fsm.TunnelIPIP))
	f.tunnel.addTo(cmd, "tunnel", "", "of mode dsr: l2 to endpoints in a subnet of the load balancer, ipip to any (default l2)")
	f.algorithm = newChoice("", string(fsm.RoundRobin), string(fsm.Maglev), string(fsm.LeastConnections))
	f.algorithm.addTo(cmd, "algorithm", "", "how new flows are spread: rr by weight in turn, maglev by hash, lc to the fewest connections (default rr)")
	f.affinity = newChoice("", string(fsm.AffinityNone), string(fsm.AffinityClientIP))
	f.affinity.addTo(cmd, "affinity", "", "client-ip: all flows of a client address go to one endpoint (default none)")
	fs.DurationVar(&f.affinityFor, "affinity-timeout", 0,
		"forget where a client belongs this long after its last new flow, 1s to 168h (default 3h)")
	f.addPoliciesTo(cmd)
	f.probe.addTo(cmd)
	fs.Var(&f.endpoints, "endpoint", "a backend; weight 0 to 100, default 1, 0 takes no new flows (repeat)")
}

// addPoliciesTo defines the flags about what becomes of flows.
func (f *serviceFlags) addPoliciesTo(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.DurationVar(&f.idleTimeout, "idle-timeout", 0,
		"forget an established flow after this silence, 1s to 24h (default 1h, for udp 2m)")
	fs.BoolVar(&f.idleReset, "idle-reset", false, "tell both sides when a connection is forgotten for its silence (default false)")
	f.onRemove = newChoice("", string(fsm.RemoveReset), string(fsm.RemoveDrop), string(fsm.RemoveKeep))
	f.onRemove.addTo(cmd, "on-remove", "",
		"what the flows of an endpoint get that is removed, set down, or drained until its deadline; keep: they go on (default reset)")
	f.onFull = newChoice("", string(fsm.FullDrop), string(fsm.FullReset))
	f.onFull.addTo(cmd, "on-full", "", "what a new flow gets when the flow table is full (default drop)")
	fs.Uint32Var(&f.newFlowRate, "new-flow-rate", 0,
		"new flows a second and node before the flood defence starts: TCP has to repeat its SYN, others are dropped (default 50000)")
	f.replicate = newChoice("", string(fsm.ReplicateEstablished), string(fsm.ReplicateAll), string(fsm.ReplicateNone))
	f.replicate.addTo(cmd, "replicate", "", "which flows the other nodes hold copies of; all: half-open ones too (default established)")
	fs.DurationVar(&f.minAge, "replicate-min-age", 0, "copy a flow to the other nodes only once it is this old, 0s to 1h (default 0s)")
	fs.DurationVar(&f.drainFor, "drain-timeout", 0, "how long a drained endpoint keeps its flows, 1s to 168h; 0s is without end (default 0s)")
}

// serviceBody is a service as it is sent: with an address, or with the wish for one.
type serviceBody struct {
	fsm.Service
	VIP   string `json:"vip"`
	Share string `json:"share,omitempty"`
}

func (f *serviceFlags) body(s fsm.Service) serviceBody {
	out := serviceBody{Service: s, VIP: f.vip.auto, Share: f.share}
	if f.vip.auto == "" && s.VIP.IsValid() {
		out.VIP = s.VIP.String()
	}
	return out
}

// path is where to write a service, with the conditions the flags set.
func (f *serviceFlags) path(name string, create bool) string {
	q := url.Values{}
	if create {
		q.Set("create", "true")
	}
	if f.instance != "" {
		q.Set("instance", f.instance)
	}
	if len(q) == 0 {
		return servicePath(name)
	}
	return servicePath(name) + "?" + q.Encode()
}

func (f *serviceFlags) addEditsTo(cmd *cobra.Command) {
	cmd.Flags().Var(&f.add, "add-endpoint", "a backend to add, or to give another weight (repeat)")
	cmd.Flags().Var(&f.remove, "remove-endpoint", "a backend to remove (repeat)")
}

// checkEdits refuses an update that changes nothing or says two things at once.
func (f *serviceFlags) checkEdits(cmd *cobra.Command) error {
	given := false
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { given = given || f.Changed })
	if !given {
		return usagef("nothing to change is given")
	}
	if len(f.endpoints.list) > 0 && len(f.add.list)+len(f.remove.list) > 0 {
		return usagef("--endpoint replaces the whole list: leave --add-endpoint and --remove-endpoint out, or it")
	}
	return f.checkZeros(cmd)
}

// merge puts what was given on the command line into s.
func (f *serviceFlags) merge(cmd *cobra.Command, s *fsm.Service) error {
	if f.vip.addr.IsValid() {
		s.VIP = f.vip.addr
	}
	if f.ports.first != 0 {
		s.Port, s.PortEnd = f.ports.first, f.ports.last
	}
	set(&s.Protocol, f.protocol)
	set(&s.Algorithm, f.algorithm)
	set(&s.OnRemove, f.onRemove)
	set(&s.OnFull, f.onFull)
	if set(&s.Replicate, f.replicate) && s.Replicate != fsm.ReplicateEstablished {
		s.ReplicateMinAge = 0 // it goes with established only
	}
	if set(&s.Mode, f.mode) && s.Mode != fsm.ModeDSR {
		s.Tunnel, s.Probe.ThroughVIP = "", false // they went with the mode that was
	}
	set(&s.Tunnel, f.tunnel)
	if set(&s.Affinity, f.affinity) && s.Affinity == fsm.AffinityNone {
		s.AffinityTimeout = 0
	}
	if cmd.Flags().Changed("idle-reset") {
		s.IdleReset = f.idleReset
	}
	if cmd.Flags().Changed("endpoint") {
		s.Endpoints = keepAdmin(f.endpoints.list, s.Endpoints)
	}
	f.mergeNumbers(cmd, s)
	f.probe.merge(cmd, s)
	return f.edit(s)
}

// mergeNumbers puts in the durations and rates that were given.
func (f *serviceFlags) mergeNumbers(cmd *cobra.Command, s *fsm.Service) {
	changed := cmd.Flags().Changed
	if changed("idle-timeout") {
		s.IdleTimeout = fsm.Duration(f.idleTimeout)
	}
	if changed("affinity-timeout") {
		s.AffinityTimeout = fsm.Duration(f.affinityFor)
	}
	if changed("new-flow-rate") {
		s.NewFlowRate = f.newFlowRate
	}
	if changed("replicate-min-age") {
		s.ReplicateMinAge = fsm.Duration(f.minAge)
	}
	if changed("drain-timeout") {
		s.DrainTimeout = fsm.Duration(f.drainFor)
	}
}

// checkZeros refuses a zero where it would be read as "the default": who types 0
// means something else.
func (f *serviceFlags) checkZeros(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case changed("idle-timeout") && f.idleTimeout == 0:
		return usagef("--idle-timeout 0s: want 1s to 24h")
	case changed("affinity-timeout") && f.affinityFor == 0:
		return usagef("--affinity-timeout 0s: want 1s to 168h; --affinity none switches it off")
	case changed("new-flow-rate") && f.newFlowRate == 0:
		return usagef("--new-flow-rate 0: want 1 to %d", uint32(math.MaxUint32))
	}
	return f.probe.checkZeros(cmd)
}

// set puts the word that was given into a setting; it tells whether one was.
func set[T ~string](setting *T, given *choice) bool {
	if given.value != "" {
		*setting = T(given.value)
	}
	return given.value != ""
}

// keepAdmin gives the endpoints that stay their administrative state: a new list
// must not send new flows to one that somebody is draining.
func keepAdmin(list, before []fsm.Endpoint) []fsm.Endpoint {
	list = slices.Clone(list)
	for i := range list {
		for _, b := range before {
			if b.Address == list[i].Address {
				list[i].Admin = b.Admin
			}
		}
	}
	return list
}

// edit applies --add-endpoint and --remove-endpoint.
func (f *serviceFlags) edit(s *fsm.Service) error {
	at := func(address netip.AddrPort) int {
		return slices.IndexFunc(s.Endpoints, func(e fsm.Endpoint) bool { return e.Address == address })
	}
	for _, e := range f.add.list {
		if i := at(e.Address); i >= 0 {
			s.Endpoints[i].Weight = e.Weight // its admin state is not ours to change
			continue
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	for _, e := range f.remove.list {
		i := at(e.Address)
		if i < 0 {
			return fmt.Errorf("service %s has no endpoint %s: see `pontoon service show %s`", s.Name, e.Address, s.Name)
		}
		s.Endpoints = slices.Delete(s.Endpoints, i, i+1)
	}
	return nil
}
