package health

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"
)

// Type is how an endpoint is asked whether it is well.
type Type uint8

// The types of probes.
const (
	TypeNone  Type = iota // not probed
	TypeTCP               // a connection can be opened
	TypeHTTP              // a request is answered with a wanted status, and a wanted text where one is given
	TypeHTTPS             // the same through TLS
	TypeICMP              // an echo request (RFC 792, RFC 4443) is answered
	TypeUDP               // a datagram is answered
	TypeSCTP              // an INIT (RFC 9260) is answered with an INIT ACK
	TypeGRPC              // grpc.health.v1.Health/Check says SERVING
)

var typeNames = [...]string{"none", "tcp", "http", "https", "icmp", "udp", "sctp", "grpc"}

// String is the type's name in configuration.
func (t Type) String() string {
	if int(t) < len(typeNames) {
		return typeNames[t]
	}
	return fmt.Sprintf("type %d", uint8(t))
}

// ParseType reads a name that String writes; "" is TypeNone.
func ParseType(name string) (Type, error) {
	for i, n := range typeNames {
		if n == name {
			return Type(i), nil
		}
	}
	if name == "" {
		return TypeNone, nil
	}
	return 0, fmt.Errorf("read probe type %q: it must be one of %s", name, strings.Join(typeNames[:], ", "))
}

// Limits of a probe's times and counters.
const (
	MinInterval = 100 * time.Millisecond
	MaxInterval = time.Hour
	MinTimeout  = 10 * time.Millisecond
	MaxRuns     = 100 // of Rise and Fall

	maxBody    = 64 << 10 // of an HTTP answer's body is looked at
	maxPayload = 1400     // bytes of a UDP probe: one packet on any link
)

// Probe is how an endpoint is probed. It is comparable: equal probes of the same address are one.
type Probe struct {
	Type     Type
	Port     uint16        // 0: the endpoint's own
	Interval time.Duration // from the beginning of a probe to that of the next one; default 2 s
	Timeout  time.Duration // default 1 s, or the interval where that is shorter
	Rise     uint8         // passes in a row that bring an endpoint up; default 2
	Fall     uint8         // failures in a row that take it down; default 3
	Source   netip.Addr    // an address of this node; invalid: the kernel's choice

	// ThroughVIP sends the probe to the target's VIP by the way the data plane would send a client's
	// packet, with the endpoint as the next hop: what passes shows that the endpoint holds the VIP.
	// Types tcp, udp and icmp only.
	ThroughVIP bool

	Method string // http, https: default GET
	Path   string // http, https: default /
	Host   string // http, https: default the endpoint's address
	Expect string // http, https: wanted status, like 200,204,300-399; default 200-399
	Body   string // http, https: must be within the first 64 KiB of the body; udp: within the answer
	Send   string // udp: the payload as it is sent; default an empty datagram

	TLS         bool   // grpc: through TLS (https always is)
	TLSVerify   bool   // https, grpc: the certificate must be valid for ServerName by the system's authorities
	ServerName  string // https, grpc: name asked for (SNI); default Host without its port, then the address
	GRPCService string // grpc: whose health is asked; "" is the server's own
}

func (p Probe) withDefaults() Probe {
	if p.Interval == 0 {
		p.Interval = 2 * time.Second
	}
	if p.Timeout == 0 {
		p.Timeout = min(time.Second, p.Interval)
	}
	if p.Rise == 0 {
		p.Rise = 2
	}
	if p.Fall == 0 {
		p.Fall = 3
	}
	if p.Type == TypeHTTP || p.Type == TypeHTTPS {
		if p.Method == "" {
			p.Method = "GET"
		}
		if p.Path == "" {
			p.Path = "/"
		}
		if p.Expect == "" {
			p.Expect = "200-399"
		}
	}
	return p
}

// Validate reports everything that is wrong, with the defaults filled in.
func (p Probe) Validate() error {
	p = p.withDefaults()
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if int(p.Type) >= len(typeNames) {
		bad("unknown type %d", p.Type)
	}
	if p.Interval < MinInterval || p.Interval > MaxInterval {
		bad("interval must be %v to %v, is %v", MinInterval, MaxInterval, p.Interval)
	}
	if p.Timeout < MinTimeout || p.Timeout > 10*p.Interval {
		bad("timeout must be %v to ten times the interval (%v), is %v", MinTimeout, 10*p.Interval, p.Timeout)
	}
	if p.Rise > MaxRuns || p.Fall > MaxRuns {
		bad("rise and fall must be 1 to %d, are %d and %d", MaxRuns, p.Rise, p.Fall)
	}
	if p.ThroughVIP && p.Type != TypeTCP && p.Type != TypeUDP && p.Type != TypeICMP {
		bad("type %v cannot be sent through the VIP: use tcp, udp or icmp", p.Type)
	}
	if len(p.Send) > maxPayload {
		bad("send must have at most %d bytes, has %d", maxPayload, len(p.Send))
	}
	if len(p.Body) > maxBody {
		bad("body must have at most %d bytes, has %d", maxBody, len(p.Body))
	}
	if p.Type == TypeHTTP || p.Type == TypeHTTPS {
		errs = append(errs, p.validateHTTP()...)
	}
	if len(p.GRPCService) > math.MaxUint8 {
		bad("grpc service must have at most %d bytes, has %d", math.MaxUint8, len(p.GRPCService))
	}
	if errs != nil {
		return fmt.Errorf("probe: %w", errors.Join(errs...))
	}
	return nil
}

func (p Probe) validateHTTP() (errs []error) {
	if strings.ContainsFunc(p.Method, func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune(`"(),/:;<=>?@[\]{}`, r) }) {
		errs = append(errs, fmt.Errorf("method must be a token like GET (RFC 9110, 5.6.2), is %q", p.Method))
	}
	unprintable := func(r rune) bool { return r <= ' ' || r >= 0x7f }
	if p.Path[0] != '/' || strings.ContainsFunc(p.Path, unprintable) {
		errs = append(errs, fmt.Errorf("path must begin with / and have neither spaces nor characters beyond ASCII, is %q", p.Path))
	}
	if strings.ContainsFunc(p.Host, unprintable) {
		errs = append(errs, fmt.Errorf("host must have neither spaces nor characters beyond ASCII, is %q", p.Host))
	}
	if _, err := parseStatuses(p.Expect); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// Health is what is concluded about an endpoint.
type Health uint8

// What is concluded.
const (
	Unknown Health = iota // not probed often enough yet
	Up
	Down
)

var healthNames = [...]string{"unknown", "up", "down"}

// String is the word for people.
func (h Health) String() string {
	if int(h) < len(healthNames) {
		return healthNames[h]
	}
	return fmt.Sprintf("health %d", uint8(h))
}

// Target is an endpoint that is to be probed.
type Target struct {
	Key    uint32         // the caller's number for it, in results again
	Addr   netip.AddrPort // of the endpoint
	VIP    netip.AddrPort // of the service; used with Probe.ThroughVIP
	Tunnel bool           // with Probe.ThroughVIP: IP in IP to the endpoint, else by its MAC address
	Probe  Probe
	Factor uint8  // the interval is multiplied by it; 0 is 1
	Start  Health // last known; counting begins from it
}

// Result is what is known about one target.
type Result struct {
	Key      uint32
	Health   Health
	Up       bool      // Health is Up
	Since    time.Time // UTC, when Health became so here; zero: it is what the target was given at the start
	Why      string    // in plain words why it is down; "" when it is not
	Flapping bool      // it changed too often: coming up takes more passes for a while

	At        time.Time // UTC, when the last probe ended; zero: none did
	Passed    bool      // it passed
	LastError string    // of the last probe that failed, or why none can be sent; "" if none did

	P50, P99, Last time.Duration // how long the last 64 probes that passed took, and the last one; 0: none did
	Probes         uint64        // that ended
	Failures       uint64        // of these
	Row            uint64        // how many of them, up to the last, ended like that
	Flying         bool          // one is under way
}
