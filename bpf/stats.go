package bpf

import (
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
)

// Stats is what the data plane has counted. Established, HalfOpen, Owned, Replica, Closed and the
// Flows of services and endpoints are from the last sweep; the rest is read at the time of the call
// and counts since the maps were made.
type Stats struct {
	Connections uint64 // in the flow table, closed ones included
	Established uint64 // connections in the flow table that are not closed; owned + replica
	HalfOpen    uint64 // connections that are not complete
	Owned       uint64
	Replica     uint64
	Closed      uint64 // waiting for their last packets
	Adopted     uint64 // replicas that saw a packet here, since the maps were made
	Max         uint64 // connections the flow table takes
	LostRecords uint64 // records that did not make it into Events, ring and channel together
	Drops       map[string]uint64
	Counters    map[string]uint64
	Services    map[uint32]ServiceStats
}

// ServiceStats are the figures of one service on this node: those of its endpoints together, and
// what endpoints counted that it had before. They begin anew when this process does or the service
// is gone for good.
type ServiceStats struct {
	EndpointStats
	Endpoints map[netip.AddrPort]EndpointStats
}

// EndpointStats counts what this node has done for one endpoint.
type EndpointStats struct {
	Flows   uint64 // connections that are not closed and whose last packet this node forwarded
	Active  uint64 // connections that are not closed, copies of other nodes' included
	New     uint64 // connections completed
	Forward Volume // to the endpoint
	Reply   Volume // from the endpoint
}

// Volume counts what was forwarded: packets on the wire, and their bytes from the IP header on.
type Volume struct {
	Packets, Bytes uint64
}

func (v *Volume) add(o Volume) {
	v.Packets += o.Packets
	v.Bytes += o.Bytes
}

func (s *EndpointStats) add(o EndpointStats) {
	s.Flows += o.Flows
	s.Active += o.Active
	s.New += o.New
	s.Forward.add(o.Forward)
	s.Reply.add(o.Reply)
}

// counterNames are the names under which Stats reports. Their prefix decides the map.
var counterNames = map[pontoonCounter]string{
	pontoonCounterDROP_NO_FLOW:           "drop/no_flow",
	pontoonCounterDROP_NO_SERVICE:        "drop/no_service",
	pontoonCounterDROP_NO_ENDPOINT:       "drop/no_endpoint",
	pontoonCounterDROP_PROTOCOL:          "drop/protocol",
	pontoonCounterDROP_ICMP:              "drop/icmp",
	pontoonCounterDROP_FRAGMENT:          "drop/fragment",
	pontoonCounterDROP_TTL:               "drop/ttl",
	pontoonCounterDROP_SNAT_EXHAUSTED:    "drop/snat_exhausted",
	pontoonCounterDROP_DNAT_COLLISION:    "drop/dnat_collision",
	pontoonCounterDROP_TABLE_FULL:        "drop/table_full",
	pontoonCounterDROP_HALF_OPEN:         "drop/half_open",
	pontoonCounterDROP_NO_ROUTE:          "drop/no_route",
	pontoonCounterDROP_FWD_DISABLED:      "drop/forwarding_disabled",
	pontoonCounterDROP_FRAG_NEEDED:       "drop/fragmentation_needed",
	pontoonCounterDROP_REWRITE:           "drop/rewrite",
	pontoonCounterDROP_SNAT_CONFLICT:     "drop/snat_conflict",
	pontoonCounterDROP_FLOOD:             "drop/flood",
	pontoonCounterDROP_MALFORMED:         "drop/malformed",
	pontoonCounterDROP_ICMP_UNKNOWN:      "drop/icmp_unknown",
	pontoonCounterDROP_TRANSLATE:         "drop/translate",
	pontoonCounterDROP_DOOMED:            "drop/doomed",
	pontoonCounterDROP_LAND:              "drop/land",
	pontoonCounterDROP_NO_PROGRAM:        "drop/no_program",
	pontoonCounterDROP_MARTIAN:           "drop/martian",
	pontoonCounterDROP_SCTP_FRAGMENT:     "drop/sctp_fragment",
	pontoonCounterDROP_NOT_HELD:          "drop/not_held",
	pontoonCounterDROP_NO_LEASE:          "drop/no_lease",
	pontoonCounterDROP_BROUGHT:           "drop/brought",
	pontoonCounterDROP_BRING_LIMIT:       "drop/bring_limit",
	pontoonCounterCOUNTER_FLOOD_REPEATED: "flood_repeated",
	pontoonCounterCOUNTER_ICMP_ERROR:     "icmp_error",
	pontoonCounterCOUNTER_FRAGMENT:       "fragment",
	pontoonCounterCOUNTER_TRANSLATED:     "translated",
	pontoonCounterCOUNTER_ENCAPSULATED:   "encapsulated",
	pontoonCounterCOUNTER_TOO_BIG:        "too_big",
	pontoonCounterCOUNTER_AFFINITY:       "affinity",
	pontoonCounterCOUNTER_XDP_FORWARD:    "xdp_forward",
	pontoonCounterCOUNTER_XDP_PASS:       "xdp_pass",
	pontoonCounterCOUNTER_EXPIRED:        "expired",
	pontoonCounterCOUNTER_ANSWER_LIMITED: "answer_limited",
	pontoonCounterCOUNTER_ECHOED:         "echoed",
	pontoonCounterCOUNTER_HALF_EVICTED:   "half_open_evicted",
	pontoonCounterCOUNTER_HALF_UNTOLD:    "half_open_untold",
	pontoonCounterCOUNTER_REFUSED:        "refused",
	pontoonCounterCOUNTER_CREATED:        "created",
	pontoonCounterCOUNTER_PROMOTED:       "promoted",
	pontoonCounterCOUNTER_ADOPTED:        "adopted",
	pontoonCounterCOUNTER_TAKEN_OVER:     "taken_over",
	pontoonCounterCOUNTER_REPLACED:       "replaced",
	pontoonCounterCOUNTER_REVIVED:        "revived",
	pontoonCounterCOUNTER_RING_LOST:      "ring_lost",
	pontoonCounterCOUNTER_INSERT_FAILED:  "insert_failed",
	pontoonCounterCOUNTER_NEXT_HOP_MISS:  "next_hop_miss",
	pontoonCounterCOUNTER_NEIGHBOUR_MISS: "neighbour_miss",
	pontoonCounterCOUNTER_BROUGHT_BACK:   "brought_back",
	pontoonCounterCOUNTER_BROUGHT:        "brought",
	pontoonCounterCOUNTER_GUEST:          "guest",
	pontoonCounterCOUNTER_ECHO:           "echo",
}

// Stats returns a snapshot that the caller may keep.
func (d *Dataplane) Stats() Stats {
	s := d.totals.snapshot()
	s.Services = d.serviceStats()
	s.Connections = d.accounts.get(0)
	s.Max = uint64(d.maps.Flows.MaxEntries() / 2)
	s.Drops, s.Counters = map[string]uint64{}, map[string]uint64{}
	for index, name := range counterNames {
		value, err := counter(d.maps.Counters, index)
		if err != nil {
			d.log.Warn("counter not read", "counter", name, "err", err)
			continue
		}
		if reason, ok := strings.CutPrefix(name, "drop/"); ok {
			s.Drops[reason] = value
		} else {
			s.Counters[name] = value
		}
	}
	s.Adopted = s.Counters["adopted"]
	s.LostRecords += s.Counters["ring_lost"]
	return s
}

// TableUse is how full the flow table is.
type TableUse struct {
	Connections uint64 // closed ones that wait for their last packets included
	Max         uint64 // beyond it, new ones are refused
	Refused     uint64 // packets that began a connection and found no room, since the maps were made
}

// TableUse reads a few numbers only, so it may be called often.
func (d *Dataplane) TableUse() (TableUse, error) {
	refused, err := counter(d.maps.Counters, pontoonCounterDROP_TABLE_FULL)
	if err != nil {
		return TableUse{}, fmt.Errorf("look how full the flow table is: %w", err)
	}
	return TableUse{Connections: d.accounts.get(0), Max: uint64(d.maps.Flows.MaxEntries() / 2), Refused: refused}, nil
}

func counter(m *ebpf.Map, index pontoonCounter) (uint64, error) {
	var perCPU []uint64
	if err := m.Lookup(uint32(index), &perCPU); err != nil {
		return 0, fmt.Errorf("read counter %d: %w", index, err)
	}
	sum := uint64(0)
	for _, v := range perCPU {
		sum += v
	}
	return sum, nil
}

// serviceStats adds to what the programs counted what the last sweep did.
func (d *Dataplane) serviceStats() map[uint32]ServiceStats {
	services, err := d.traffic.services(&d.accounts)
	if err != nil {
		d.log.Warn("figures of endpoints not read", "err", err)
	}
	d.totals.mu.Lock()
	defer d.totals.mu.Unlock()
	for service, n := range d.totals.last.services {
		s := services[uint32(service)]
		s.Flows = n
		services[uint32(service)] = s
	}
	for id, n := range d.totals.last.endpoints {
		at, ok := d.traffic.place(id)
		if s := services[uint32(at.service)]; ok && s.Endpoints != nil {
			sum := s.Endpoints[at.addr]
			sum.Flows += n
			s.Endpoints[at.addr] = sum
		}
	}
	return services
}

// totals keeps what the last sweep counted.
type totals struct {
	lostRecords atomic.Uint64

	mu   sync.Mutex
	last lastSweep
}

func (t *totals) swept(now tally) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = lastSweep{
		owned: now.owned, replica: now.replica, closed: now.closed, halfOpen: now.halfOpen,
		services: now.services.there(), endpoints: now.endpoints.there(),
	}
}

// lastSweep is what is kept of a tally.
type lastSweep struct {
	owned, replica, closed, halfOpen uint64
	services, endpoints              map[uint16]uint64 // owned connections that are not closed
}

func (t *totals) snapshot() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{
		Established: t.last.owned + t.last.replica, HalfOpen: t.last.halfOpen,
		Owned: t.last.owned, Replica: t.last.replica, Closed: t.last.closed,
		LostRecords: t.lostRecords.Load(),
	}
}

// tally is what one sweep counts.
type tally struct {
	owned, replica, closed, halfOpen uint64
	services, endpoints              census // owned connections that are not closed
	present                          census // by service, all connections
	census                           census
}

func newTally() tally {
	return tally{
		services: make(census, ids), endpoints: make(census, ids),
		present: make(census, ids), census: make(census, ids),
	}
}

// count takes one half of an entry of the flow table.
func (t *tally) count(f *pontoonFlow) {
	if f.reply() {
		return
	}
	t.census.count(f)
	t.present[f.Service]++
	switch {
	case FlowState(f.State) == StateClosed:
		t.closed++
	case f.replica():
		t.replica++
	default:
		t.owned++
		t.services[f.Service]++
		t.endpoints[f.Endpoint]++
	}
}

// there is what is not 0.
func (c census) there() map[uint16]uint64 {
	out := map[uint16]uint64{}
	for i, n := range c {
		if n > 0 {
			out[uint16(i)] = n
		}
	}
	return out
}
