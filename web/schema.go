package web

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"pontoon/fsm"
)

// fieldDoc completes the schema of one field of the replicated types. Their
// package knows nothing of OpenAPI, and judges their content itself: what is
// said here is documentation, apart from the type and the numeric bound.
type fieldDoc struct {
	text     string
	values   []any // documented, judged by fsm
	max      float64
	readOnly bool
}

// fieldDocs are those of the replicated types, by schema and field.
var fieldDocs = map[string]map[string]fieldDoc{
	"Node": {
		"name":        {text: "Unique in the cluster."},
		"role":        {text: "lb: full member. witness: votes, owns no data plane.", values: []any{fsm.RoleLB, fsm.RoleWitness}},
		"address":     {text: "Its cluster port, ip:port."},
		"gossip_port": {text: "UDP and TCP, on the same address."},
		"slot":        {text: "Its partition of the SNAT ports; 255 for a witness."},
		"voter":       {text: "It has caught up and votes."},
		"alive":       {text: "The leader's verdict."},
		"ready":       {text: "Its data plane is attached and has applied the state."},
		"links_up":    {text: "All its data plane interfaces have carrier."},
		"in_sync":     {text: "It holds every flow its live peers hold."},
		"draining":    {text: "Its operator asked it to own nothing."},
		"joined":      {text: "Raft index of its join."},
	},
	"Assignment": {
		"master":     {text: "Empty while nobody is eligible.", readOnly: true},
		"succession": {text: "The master first, then who follows, in order.", readOnly: true},
		"epoch":      {text: "Raft index at which the master last changed; only grows.", readOnly: true},
	},
	"VIP": {
		"address":  {text: "As in the path, if given."},
		"instance": {text: "The instance it moves with; default \"default\"."},
		"kind": {
			text:   "service: clients connect to it (default). gateway: the endpoints' next hop. snat: a source towards endpoints in mode fullnat, in place of the service's VIP.",
			values: []any{fsm.VIPService, fsm.VIPGateway, fsm.VIPSNAT},
		},
		"interface": {text: "Default: the one whose subnet contains the address."},
		"on_quorum_loss": {
			text: "What a node that hears of no quorum any more does with it: release stops claiming it within the node's lease, hold goes on, " +
				"and then two nodes may; packets are forwarded either way; default release.",
			values: []any{fsm.QuorumRelease, fsm.QuorumHold},
		},
		"announce": {
			text:   "How the network learns of it. l2 (default): ARP and neighbour discovery on a link. bgp: routes to the BGP peers. none: not by Pontoon.",
			values: []any{fsm.AnnounceL2, fsm.AnnounceBGP, fsm.AnnounceNone},
		},
		"pool":  {text: "The pool that handed the address out, and gets it back when no service is on it any more.", readOnly: true},
		"share": {text: "What a service says that wants to be on this address of a pool too.", readOnly: true},
		"on_no_endpoint": {
			text:   "With announce bgp only: what becomes of its routes while none of its services has an endpoint that takes new flows. withdraw (default) or keep.",
			values: []any{fsm.NoEndpointWithdraw, fsm.NoEndpointKeep},
		},
	},
	"InstanceSettings": {
		"kind":            {values: []any{fsm.InstanceBackup, fsm.InstanceECMP}},
		"announce_policy": {values: []any{fsm.PolicyRanked, fsm.PolicyMasterOnly}},
	},
	"BGP":        bgpDocs(),
	"BGPNode":    bgpNodeDocs(),
	"ImportRule": importDocs(),
	"BGPPeer":    bgpPeerDocs(),
	"Service":    serviceDocs(),
	"Endpoint":   endpointDocs(),
	"Probe":      probeDocs(),
	"Pool":       poolDocs(),
}

func serviceDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"name":     {text: "As in the path, if given."},
		"id":       {text: "Given by the cluster; ignored in a request.", readOnly: true},
		"vip":      {text: "A VIP of kind service, IPv4 or IPv6; or \"auto\" or \"auto:POOL\" for an address of a pool."},
		"port":     {text: "1 to 65535; of a range the first.", max: 65535},
		"port_end": {text: "The last port of a range; one port when left out. Port port+i leads to the endpoint's port+i.", max: 65535},
		"protocol": {text: "Default tcp.", values: []any{fsm.TCP, fsm.UDP, fsm.SCTP}},
		"mode": {
			text: "dnat: destination only. onearm: source becomes an address of the load balancer. fullnat (default): source becomes " +
				"the VIP, or one of the instance's VIPs of kind snat; the only one whose endpoints may be of the other IP family. " +
				"dsr: no address changes, endpoints answer clients directly; they hold the VIP and listen on the service's port.",
			values: []any{fsm.ModeDNAT, fsm.ModeOneArm, fsm.ModeFullNAT, fsm.ModeDSR},
		},
		"tunnel":    {text: "With mode dsr only. l2 (default): endpoints are in a subnet of the load balancer. ipip: IP in IP.", values: []any{fsm.TunnelL2, fsm.TunnelIPIP}},
		"algorithm": {text: "rr (default): weighted round robin. maglev: consistent hashing. lc: fewest established flows for the weight.", values: []any{fsm.RoundRobin, fsm.Maglev, fsm.LeastConnections}},
		"affinity":  {text: "client-ip: all flows of a client address go to one endpoint. Default none.", values: []any{fsm.AffinityNone, fsm.AffinityClientIP}},
		"affinity_timeout": {
			text: "How long a client stays with its endpoint after its last new flow, 1s to 168h; with affinity client-ip only. Default 3h.",
		},
		"idle_timeout":  {text: "Of an established flow, 1s to 24h; default 1h (tcp, sctp), 2m (udp)."},
		"idle_reset":    {text: "Both sides are told when a connection idles out."},
		"on_remove":     {text: "What the flows of an endpoint get that is deleted, set down, or drained until its deadline. reset (default): they are refused. drop: nothing is said. keep: they go on.", values: []any{fsm.RemoveReset, fsm.RemoveDrop, fsm.RemoveKeep}},
		"on_full":       {text: "What a new connection gets when the flow table is full. drop (default) or reset.", values: []any{fsm.FullDrop, fsm.FullReset}},
		"new_flow_rate": {text: "New flows a second and node before the flood defence starts: TCP then has to repeat its SYN, others are dropped. Default 50000.", max: math.MaxUint32},
		"replicate": {
			text: "Which flows the other nodes hold copies of, so that they outlive this one. established (default): complete connections. " +
				"all: half-open ones too. none: nothing.",
			values: []any{fsm.ReplicateEstablished, fsm.ReplicateAll, fsm.ReplicateNone},
		},
		"replicate_min_age": {text: "With replicate established only: a flow is copied once it is this old, 0s (default) to 1h. Those that end before cost the peers nothing, and are lost with the node."},
		"drain_timeout":     {text: "How long a drained endpoint keeps its flows, 1s to 168h; without end when left out."},
		"probe":             {text: "How endpoints are asked whether they work. When left out: by tcp or sctp, as the protocol is; with udp not at all."},
		"on_down": {
			text: "What the flows of an endpoint get that is found down; new ones it does not get in any case. keep (default): they go on. reset: they are refused. " +
				"move: they are forgotten, and the next packet chooses anew; a TCP connection is reset then.",
			values: []any{fsm.DownKeep, fsm.DownReset, fsm.DownMove},
		},
		"all_down": {
			text:   "What new flows get when all endpoints are down. open (default): they go to all as if they were up. closed: they are refused.",
			values: []any{fsm.AllDownOpen, fsm.AllDownClosed},
		},
		"slow_start": {text: "Over how long the weight of an endpoint grows, in ten steps, that is up again, 1s to 1h; at once when left out."},
	}
}

func endpointDocs() map[string]fieldDoc {
	return map[string]fieldDoc{
		"id":          {text: "Given by the cluster; ignored in a request.", readOnly: true},
		"address":     {text: "address:port; an IPv6 address in brackets."},
		"weight":      {text: "0 takes no new flows; default 1.", max: 65535},
		"admin":       {text: "drain keeps its flows and gets no new ones, down keeps none; default up.", values: []any{fsm.AdminUp, fsm.AdminDrain, fsm.AdminDown}},
		"drain_until": {text: "When the flows of a draining endpoint are ended; absent when never. Ignored in a request.", readOnly: true},
	}
}

// familyOf says whose fieldDocs a schema shares.
var familyOf = map[string][]string{
	"Node": {"Node"}, "NodeStatus": {"Node"},
	"InstanceStatus": {"Assignment", "InstanceSettings"}, "InstanceRequest": {"InstanceSettings"},
	"BGP": {"BGP"}, "BGPSettings": {"BGP"}, "BGPNode": {"BGPNode"}, "ImportRule": {"ImportRule"},
	bgpPeerSchema: {"BGPPeer"}, "BGPPeerStatus": {"BGPPeer"},
	"VIP":     {"VIP"},
	"Service": {"Service"}, "ServiceStatus": {"Service"},
	"Endpoint": {"Endpoint"}, "EndpointStatus": {"Endpoint"}, "Probe": {"Probe"},
	"Pool": {"Pool"}, "PoolStatus": {"Pool"}, "PoolBrief": {"Pool"},
}

// requestSchemas are those that arrive in a body as a replicated type. Nothing
// in them is required by the schema: fsm fills in defaults and says what is
// missing, together with everything else that is wrong.
var requestSchemas = []string{"VIP", "Service", "Endpoint", "Probe", "Pool", "BGP", "BGPNode", "ImportRule", bgpPeerSchema}

// newSchemas prepares the registry with the replicated types, before any
// operation refers to them.
func newSchemas() huma.Registry {
	r := huma.NewMapRegistry("#/components/schemas/", schemaName)
	r.RegisterTypeAlias(reflect.TypeFor[fsm.Duration](), reflect.TypeFor[durationSchema]())
	r.RegisterTypeAlias(reflect.TypeFor[huma.ErrorModel](), reflect.TypeFor[Problem]())
	for _, t := range []reflect.Type{
		reflect.TypeFor[fsm.VIP](), reflect.TypeFor[fsm.Service](), reflect.TypeFor[fsm.Endpoint](), reflect.TypeFor[fsm.Probe](), reflect.TypeFor[fsm.Pool](),
		reflect.TypeFor[fsm.BGP](), reflect.TypeFor[fsm.BGPNode](), reflect.TypeFor[fsm.ImportRule](), reflect.TypeFor[fsm.BGPPeer](),
	} {
		r.Schema(t, true, t.Name())
	}
	return r
}

// bgpPeerSchema is the schema of a configured peer. That of a session has the name
// both types have.
const bgpPeerSchema = "BGPPeerConfig"

func schemaName(t reflect.Type, hint string) string {
	if t == reflect.TypeFor[fsm.BGPPeer]() {
		return bgpPeerSchema
	}
	return huma.DefaultSchemaNamer(t, hint)
}

// finishSchemas completes what reflection cannot know. It runs once, after the
// last operation is registered and before the first request.
func finishSchemas(r huma.Registry) {
	all := r.Map()
	for name, families := range familyOf {
		for _, family := range families {
			for field, d := range fieldDocs[family] {
				if p := property(all, name, field); p != nil {
					d.apply(p)
				}
			}
		}
	}
	// What GET answers can be sent back with PUT: the fields that only say how
	// things are may stand in a request and mean nothing there.
	ignored := func(typ string) *huma.Schema {
		return &huma.Schema{Type: typ, ReadOnly: true, Description: "Ignored in a request."}
	}
	for _, field := range endpointRuntime {
		all["Endpoint"].Properties[field] = ignored(all["EndpointStatus"].Properties[field].Type)
	}
	all["Endpoint"].Properties["traffic"] = ignored(huma.TypeObject)
	all["Service"].Properties["flows"] = ignored(huma.TypeInteger)
	all["Service"].Properties["traffic"] = ignored(huma.TypeObject)
	all["BGP"].Properties["speakers"] = &huma.Schema{Type: huma.TypeArray, Items: &huma.Schema{Type: huma.TypeObject}, ReadOnly: true, Description: "Ignored in a request."}
	all[bgpPeerSchema].Properties["session"] = &huma.Schema{Type: huma.TypeObject, ReadOnly: true, Description: "Ignored in a request."}
	for _, key := range poolRuntime {
		all["Pool"].Properties[key] = &huma.Schema{ReadOnly: true, Description: "Ignored in a request."}
	}
	all["Service"].Properties["vip"].Format = "" // or a word, see withoutAuto
	all["Service"].Properties["share"] = &huma.Schema{Type: huma.TypeString, Description: "With vip auto: services of a pool with the same share are on one address."}
	all["Service"].Properties["instance"] = &huma.Schema{Type: huma.TypeString, Description: "The instance the VIP has to be in; any when left out."}
	for _, name := range requestSchemas {
		all[name].Required = nil
	}
	for _, s := range all {
		for _, p := range s.Properties {
			if p.Type == huma.TypeArray {
				p.Nullable = false // see Status.normalise
			}
		}
		s.PrecomputeMessages()
	}
}

// property finds a field of a schema, or nil.
func property(all map[string]*huma.Schema, name, field string) *huma.Schema {
	s := all[name]
	if s == nil {
		return nil
	}
	return s.Properties[field]
}

// apply completes one field's schema. The allowed values are written into the
// document and not enforced here, so that one answer of fsm lists everything
// that is wrong.
func (d fieldDoc) apply(p *huma.Schema) {
	p.Description = cmp.Or(d.text, p.Description)
	p.ReadOnly = p.ReadOnly || d.readOnly
	p.Enum = nil
	if len(d.values) > 0 {
		p.Extensions = map[string]any{"enum": d.values}
	}
	if d.max > 0 {
		p.Maximum = &d.max
	}
}

// durationSchema stands for fsm.Duration, which reads and writes as text.
type durationSchema struct{}

var _ huma.SchemaProvider = durationSchema{}

// Schema describes a duration in Go's notation.
func (durationSchema) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{
		Type: huma.TypeString, Description: "A number with a unit, like \"90s\" or \"1h\".", Examples: []any{"1h0m0s"},
	}
}

// decode reads a body that has passed its schema. It is not left to huma, which
// would put defaults in the place of zeros that were meant.
func decode[T any](body json.RawMessage) (T, error) {
	var v T
	if err := json.Unmarshal(body, &v); err != nil {
		return v, fmt.Errorf("%s: %w", strings.TrimPrefix(err.Error(), "json: "), fsm.ErrInvalid)
	}
	return v, nil
}

// samePath refuses a body that names another object than its path. An absent
// name in the body is that of the path.
func samePath(field, inPath, inBody string) error {
	if inBody == "" || inBody == inPath {
		return nil
	}
	return fmt.Errorf("%s: the body says %q, the path %q: make them the same or leave it out of the body: %w",
		field, inBody, inPath, fsm.ErrInvalid)
}
