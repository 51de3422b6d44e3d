package fsm

import (
	"cmp"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// ProbeType is what an endpoint is asked, to learn whether it works. "", which
// versions before 6 wrote, reads as ProbeNone.
type ProbeType string

// The types of probe.
const (
	ProbeTCP   ProbeType = "tcp"   // a connection is accepted
	ProbeHTTP  ProbeType = "http"  // a request is answered with an expected status, and body
	ProbeHTTPS ProbeType = "https" // likewise by TLS
	ProbeICMP  ProbeType = "icmp"  // an echo request is answered: the machine lives
	ProbeUDP   ProbeType = "udp"   // a datagram is answered by one
	ProbeSCTP  ProbeType = "sctp"  // INIT is answered by INIT ACK
	ProbeGRPC  ProbeType = "grpc"  // grpc.health.v1.Health/Check says SERVING
	ProbeNone  ProbeType = "none"  // nothing is asked: the endpoint counts as up
)

// The bounds and defaults of a Probe.
const (
	MinProbeInterval     = Duration(100 * time.Millisecond)
	MaxProbeInterval     = Duration(time.Hour)
	DefaultProbeInterval = Duration(2 * time.Second)
	MinProbeTimeout      = Duration(10 * time.Millisecond)
	DefaultProbeTimeout  = Duration(time.Second)
	DefaultProbeRise     = 2
	DefaultProbeFall     = 3
	MaxProbeCount        = 100 // of Rise and Fall

	DefaultProbeMethod = "GET"
	DefaultProbePath   = "/"
	DefaultProbeExpect = "200-399"

	MaxProbePath = 1024 // bytes, also of Body and Send as they are written
	MaxProbeName = 255  // bytes of Host, ServerName and GRPCService
)

// maxTimeoutIntervals is how many intervals a probe may take: so many of one
// endpoint may be under way at once.
const maxTimeoutIntervals = 10

// Probe says how the endpoints of a service are asked whether they work. Apply
// fills in the defaults; what does not go with the type is left out.
type Probe struct {
	Type     ProbeType  `json:"type,omitempty"`     // default "none"; the API fills in DefaultProbe
	Port     uint16     `json:"port,omitempty"`     // default: the endpoint's own, of a port range its first
	Interval Duration   `json:"interval,omitempty"` // between two probes of one endpoint, before jitter; default 2s
	Timeout  Duration   `json:"timeout,omitempty"`  // for the whole of one probe; default 1s
	Rise     uint8      `json:"rise,omitempty"`     // so many good ones in a row make an endpoint up; default 2
	Fall     uint8      `json:"fall,omitempty"`     // so many bad ones in a row make it down; default 3
	Source   netip.Addr `json:"source,omitzero"`    // an address of the probing node; default the kernel's choice
	// ThroughVIP has the probe's packets addressed to the VIP and the service's port, and
	// sent to the endpoint as the data plane would. ModeDSR only.
	ThroughVIP bool `json:"through_vip,omitempty"`

	Method string `json:"method,omitempty"` // http, https; default "GET"
	Path   string `json:"path,omitempty"`   // http, https; default "/"
	Host   string `json:"host,omitempty"`   // http, https; default the endpoint's address
	Expect string `json:"expect,omitempty"` // http, https: the good status, see ParseStatusSet; default "200-399"
	// Body has to be contained in the first 64 KiB of the answer's body (http, https), or
	// in the answering datagram (udp). "" is any answer.
	Body string `json:"body,omitempty"`
	Send string `json:"send,omitempty"` // udp: the datagram, see Payload; default an empty one

	TLS         bool   `json:"tls,omitempty"`          // grpc
	TLSVerify   bool   `json:"tls_verify,omitempty"`   // https, grpc with TLS: the certificate has to be valid
	ServerName  string `json:"server_name,omitempty"`  // https, grpc with TLS: SNI, and whose certificate it has to be
	GRPCService string `json:"grpc_service,omitempty"` // grpc: the service that is asked for; "" is the server as a whole
}

// DefaultProbe is the probe of a service of which nobody said how it is probed:
// one that needs no knowledge of the endpoint. It is filled in by whoever
// proposes a service, so that those of older versions stay as they are.
func DefaultProbe(p Protocol) Probe {
	switch p {
	case TCP, "":
		return Probe{Type: ProbeTCP}
	case SCTP:
		return Probe{Type: ProbeSCTP}
	}
	return Probe{Type: ProbeNone}
}

// Active says whether the probe asks anything.
func (p Probe) Active() bool { return p.Type != "" && p.Type != ProbeNone }

// http says whether a request of HTTP is sent.
func (p Probe) http() bool { return p.Type == ProbeHTTP || p.Type == ProbeHTTPS }

// tls says whether TLS is spoken.
func (p Probe) tls() bool { return p.Type == ProbeHTTPS || p.Type == ProbeGRPC && p.TLS }

// sameQuestion says whether two probes ask the same and so tell the same of an
// endpoint, however often they do and however long they wait.
func sameQuestion(a, b Probe) bool {
	a.Interval, a.Timeout, a.Rise, a.Fall = b.Interval, b.Timeout, b.Rise, b.Fall
	return a == b
}

// Payload returns the datagram that Send describes: text with the escapes of a
// Go string, like "\x00ping\n".
func (p Probe) Payload() ([]byte, error) {
	s, err := strconv.Unquote(`"` + p.Send + `"`)
	if err != nil {
		return nil, refuse(ErrInvalid, "send %s is no text with the escapes of Go, like \\x00 and \\n; write \\\" for a quote", shown(p.Send))
	}
	return []byte(s), nil
}

// StatusRange is a range of HTTP status codes, both ends included.
type StatusRange struct{ First, Last uint16 }

// ParseStatusSet reads a set of HTTP status codes (100 to 599), like "200" or
// "200,204,300-399".
func ParseStatusSet(s string) ([]StatusRange, error) {
	var out []StatusRange
	for part := range strings.SplitSeq(s, ",") {
		from, to, ranged := strings.Cut(strings.TrimSpace(part), "-")
		r := StatusRange{First: parseStatus(from)}
		if r.Last = r.First; ranged {
			r.Last = parseStatus(to)
		}
		if r.First == 0 || r.Last < r.First {
			return nil, refuse(ErrInvalid, "%s is no set of status codes: want some of 100 to 599, like \"200\" or \"200,204,300-399\"", shown(s))
		}
		out = append(out, r)
	}
	return out, nil
}

// parseStatus returns 0 for what is no status code.
func parseStatus(s string) uint16 {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n < 100 || n > 599 {
		return 0
	}
	return uint16(n)
}

// normalProbe fills in the defaults. What does not belong to the type stays, to
// be refused.
func normalProbe(p Probe) Probe {
	p.Type = cmp.Or(p.Type, ProbeNone)
	p.Source = p.Source.Unmap()
	if !p.Active() {
		return p
	}
	p.Interval = cmp.Or(p.Interval, DefaultProbeInterval)
	p.Timeout = cmp.Or(p.Timeout, DefaultProbeTimeout)
	p.Rise = cmp.Or(p.Rise, DefaultProbeRise)
	p.Fall = cmp.Or(p.Fall, DefaultProbeFall)
	if p.http() {
		p.Method = cmp.Or(p.Method, DefaultProbeMethod)
		p.Path = cmp.Or(p.Path, DefaultProbePath)
		p.Expect = cmp.Or(p.Expect, DefaultProbeExpect)
	}
	return p
}
