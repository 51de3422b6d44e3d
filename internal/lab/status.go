package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"
)

// Status is the part of `pontoon status -o json` (and of GET /v1/status,
// which is the same document) the lab looks at. The lab keeps its own copy of
// the names on purpose: it stands outside and notices when they change.
type Status struct {
	Cluster struct {
		ID      string `json:"id"`
		Leader  string `json:"leader"`
		Term    uint64 `json:"term"`
		Applied uint64 `json:"applied"`
		Quorum  bool   `json:"quorum"`
	} `json:"cluster"`
	Self      string           `json:"self"`
	Nodes     []NodeStatus     `json:"nodes"`
	Instances []InstanceStatus `json:"instances"`
	Services  []ServiceStatus  `json:"services"`
	Failovers []Failover       `json:"failovers"` // newest first
	BGP       []BGPStatus      `json:"bgp"`       // the node's own sessions
	Flows     struct {
		Established uint64 `json:"established"`
		Owned       uint64 `json:"owned"`
		Replica     uint64 `json:"replica"`
		Adopted     uint64 `json:"adopted"`
	} `json:"flows"`
}

// NodeStatus is one node as another one sees it.
type NodeStatus struct {
	Name     string   `json:"name"`
	Address  string   `json:"address"` // of the cluster port
	Raft     string   `json:"raft"`    // leader, voter, nonvoter
	Alive    bool     `json:"alive"`
	Ready    bool     `json:"ready"`
	InSync   bool     `json:"in_sync"`
	Applied  uint64   `json:"applied"`
	MasterOf []string `json:"master_of"`
}

// BGPStatus is one BGP session of the node that was asked.
type BGPStatus struct {
	Peer       string `json:"peer"`
	AS         uint32 `json:"as"`
	State      string `json:"state"`
	Received   int    `json:"received"`
	Advertised int    `json:"advertised"`
	BFD        string `json:"bfd"` // up, down, off
	Flaps      int    `json:"flaps"`
	Error      string `json:"error"`
}

// Failover is a change of mastership with its timeline.
type Failover struct {
	Instance string             `json:"instance"`
	From     string             `json:"from"`
	To       string             `json:"to"`
	Epoch    uint64             `json:"epoch"`
	Cause    string             `json:"cause"`
	Parts    map[string]float64 `json:"parts_ms"` // since the old master's last sign of life, or the wish
}

// FailoverSteps are the keys of Failover.Parts, in their order.
func FailoverSteps() []string {
	return []string{"detected", "confirmed", "elected", "committed", "announced", "first_packet"}
}

// Timeline says the parts in words.
func (f Failover) Timeline() string {
	var words []string
	for _, step := range FailoverSteps() {
		if ms, known := f.Parts[step]; known {
			words = append(words, fmt.Sprintf("%s %.0f", strings.ReplaceAll(step, "_", " "), ms))
		}
	}
	return strings.Join(words, ", ")
}

// Failover is the timeline of the instance's mastership with that epoch, if it
// is recorded.
func (s Status) Failover(instance string, epoch uint64) (Failover, bool) {
	for _, f := range s.Failovers {
		if f.Instance == instance && f.Epoch == epoch {
			return f, true
		}
	}
	return Failover{}, false
}

// InstanceStatus is one instance and its master, "" for none.
type InstanceStatus struct {
	Name   string `json:"name"`
	Master string `json:"master"`
	Epoch  uint64 `json:"epoch"`
}

// ServiceStatus is one service as the node that was asked sees it.
type ServiceStatus struct {
	Name      string           `json:"name"`
	Endpoints []EndpointStatus `json:"endpoints"`
}

// EndpointStatus is one endpoint of a service.
type EndpointStatus struct {
	Address netip.AddrPort `json:"address"`
	Health  string         `json:"health"`       // up, down, unknown
	Since   time.Time      `json:"health_since"` // by the prober's clock
	Error   string         `json:"health_error"` // why it is down, in words
}

// CheckEndpoint returns nil when the node that was asked knows the endpoint's health in
// each service that has it, in at least one, and has carried out everything it knows.
func (s Status) CheckEndpoint(at netip.AddrPort, health string) error {
	found := false
	for _, svc := range s.Services {
		for _, e := range svc.Endpoints {
			if e.Address != at {
				continue
			}
			found = true
			if e.Health != health {
				return fmt.Errorf("for %s, %s of %s is %s %s", s.Self, at, svc.Name, e.Health, e.Error)
			}
		}
	}
	if !found {
		return fmt.Errorf("%s knows no endpoint %s", s.Self, at)
	}
	if me, _ := s.Node(s.Self); me.Applied < s.Cluster.Applied {
		return fmt.Errorf("%s has carried out %d of %d", s.Self, me.Applied, s.Cluster.Applied)
	}
	return nil
}

// Master is the master of the named instance, "" when there is none.
func (s Status) Master(instance string) string {
	for _, i := range s.Instances {
		if i.Name == instance {
			return i.Master
		}
	}
	return ""
}

// CheckBGP returns nil when the node has so many BGP neighbours, a session with each, and with each of
// those it wants BFD with a session of that, too.
func (s Status) CheckBGP(peers int) error {
	if len(s.BGP) != peers {
		return fmt.Errorf("%s has %d BGP neighbours, not %d", s.Self, len(s.BGP), peers)
	}
	for _, p := range s.BGP {
		if p.State != "established" {
			return fmt.Errorf("the BGP session with %s is %s", p.Peer, p.State)
		}
		if p.BFD == "down" {
			return fmt.Errorf("the BFD session with %s is down", p.Peer)
		}
	}
	return nil
}

// Node is the entry of the named node.
func (s Status) Node(name string) (NodeStatus, bool) {
	for _, n := range s.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return NodeStatus{}, false
}

// CheckHealthy returns nil when all the named nodes vote, live, are ready and
// hold every flow, and otherwise an error that names the first that does not.
func (s Status) CheckHealthy(names ...string) error {
	if !s.Cluster.Quorum {
		return fmt.Errorf("%s sees no quorum", s.Self)
	}
	for _, name := range names {
		n, ok := s.Node(name)
		switch {
		case !ok:
			return fmt.Errorf("%s does not know %s", s.Self, name)
		case !n.Alive:
			return fmt.Errorf("%s is not alive", name)
		case n.Raft != "voter" && n.Raft != "leader":
			return fmt.Errorf("%s does not vote (%s)", name, n.Raft)
		case !n.Ready:
			return fmt.Errorf("%s is not ready", name)
		case !n.InSync:
			return fmt.Errorf("%s is not in sync", name)
		}
	}
	return nil
}

// statusTimeout bounds one question: a stopped daemon accepts and is silent.
const statusTimeout = time.Second

// maxAnswer bounds an answer; a status has a few kilobytes, a list of flows more.
const maxAnswer = 64 << 20

// Status asks the node's daemon over its Unix socket. It is much cheaper than
// the command line and may be called every few milliseconds.
func (n *Node) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var s Status
	if err := n.Get(ctx, "/v1/status", &s); err != nil {
		return s, fmt.Errorf("status of %s: %w", n.Name(), err)
	}
	return s, nil
}

// Get fetches one document from the daemon's API, over its Unix socket. A stopped
// daemon accepts and is silent: bound ctx.
func (n *Node) Get(ctx context.Context, path string, into any) error {
	return n.Call(ctx, http.MethodGet, path, nil, into)
}

// APIError is an answer of the daemon that is not what was asked for.
type APIError struct {
	Path   string
	Status int // of HTTP
	Body   string
}

func (e *APIError) Error() string { return fmt.Sprintf("%s: %d: %.200s", e.Path, e.Status, e.Body) }

// Call asks the daemon's API over its Unix socket: body, if not nil, is sent as
// JSON, and the answer is decoded into into, if that is not nil. An answer other
// than success is an *APIError.
func (n *Node) Call(ctx context.Context, method, path string, body, into any) error {
	tr := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", n.Socket())
		},
	}
	var sent io.Reader
	if body != nil {
		raw, err := json.Marshal(body)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		sent = bytes.NewReader(raw)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://localhost"+path, sent)
	if err != nil {
		return err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return err
	}
	if resp.StatusCode >= http.StatusMultipleChoices {
		return &APIError{Path: path, Status: resp.StatusCode, Body: string(answer)}
	}
	if into == nil {
		return nil
	}
	return json.Unmarshal(answer, into)
}
