package bpf

import (
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cilium/ebpf"
)

// Stats is what the data plane has counted. Drops and Counters are read at the time of the call
// and count since the maps were made; the rest is from the last sweep.
type Stats struct {
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

// ServiceStats are the figures of one service on this node.
type ServiceStats struct {
	EndpointStats
	Endpoints map[netip.AddrPort]EndpointStats
}

// EndpointStats counts what this node owns: live connections, packets and bytes of live and ended
// ones, and connections completed since this process started.
type EndpointStats struct {
	Flows, Packets, Bytes, New uint64
}

func (s *EndpointStats) add(o EndpointStats) {
	s.Flows += o.Flows
	s.Packets += o.Packets
	s.Bytes += o.Bytes
	s.New += o.New
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
	pontoonCounterCOUNTER_FLOOD_REPEATED: "flood_repeated",
	pontoonCounterCOUNTER_ICMP_ERROR:     "icmp_error",
	pontoonCounterCOUNTER_FRAGMENT:       "fragment",
	pontoonCounterCOUNTER_TRANSLATED:     "translated",
	pontoonCounterCOUNTER_ENCAPSULATED:   "encapsulated",
	pontoonCounterCOUNTER_TOO_BIG:        "too_big",
	pontoonCounterCOUNTER_AFFINITY:       "affinity",
	pontoonCounterCOUNTER_XDP_FORWARD:    "xdp_forward",
	pontoonCounterCOUNTER_XDP_PASS:       "xdp_pass",
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
	pontoonCounterCOUNTER_ECHO:           "echo",
}

// Stats returns a snapshot that the caller may keep.
func (d *Dataplane) Stats() Stats {
	s := d.totals.snapshot()
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

// place is where connections of a service go.
type place struct {
	service  uint32
	endpoint netip.AddrPort
}

// totals gathers figures from the records that pass and from the sweeps.
type totals struct {
	lostRecords atomic.Uint64

	mu    sync.Mutex
	ended map[place]EndpointStats // of connections that are gone, and New
	last  tally
}

// observe takes note of a record on its way to Events.
func (t *totals) observe(record []byte) {
	isNew := record[recordReason] == reasonNew
	ended := record[recordOp] == opDelete
	if !isNew && !ended {
		return
	}
	r, err := parseRecord(record)
	if err != nil {
		return
	}
	at := place{uint32(r.Service), addrPort(r.Endpoint, r.EndpointPort)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended == nil {
		t.ended = map[place]EndpointStats{}
	}
	sum := t.ended[at]
	if isNew {
		sum.New++
	} else {
		sum.Packets += r.ForwardPackets + r.ReplyPackets
		sum.Bytes += r.ForwardBytes + r.ReplyBytes
	}
	t.ended[at] = sum
}

// swept replaces the figures of the last sweep. Places whose service is gone and that no flow
// names are forgotten, so that endpoints that come and go do not pile up.
func (t *totals) swept(now tally, known func(service uint32) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last = now
	maps.DeleteFunc(t.ended, func(at place, _ EndpointStats) bool {
		_, live := now.places[at]
		return !live && !known(at.service)
	})
}

func (t *totals) snapshot() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Stats{
		Established: t.last.owned + t.last.replica, HalfOpen: t.last.halfOpen,
		Owned: t.last.owned, Replica: t.last.replica, Closed: t.last.closed,
		LostRecords: t.lostRecords.Load(),
		Services:    map[uint32]ServiceStats{},
	}
	for _, figures := range []map[place]EndpointStats{t.last.places, t.ended} {
		for at, figure := range figures {
			service := s.Services[at.service]
			if service.Endpoints == nil {
				service.Endpoints = map[netip.AddrPort]EndpointStats{}
			}
			service.add(figure)
			sum := service.Endpoints[at.endpoint]
			sum.add(figure)
			service.Endpoints[at.endpoint] = sum
			s.Services[at.service] = service
		}
	}
	return s
}

// tally is what one sweep counts.
type tally struct {
	owned, replica, closed, halfOpen uint64
	places                           map[place]EndpointStats
	census                           census
}

func newTally(entries int) tally {
	return tally{places: map[place]EndpointStats{}, census: make(census, entries)}
}

// count takes one half of an entry of the flow table.
func (t *tally) count(key *pontoonFlowKey, f *pontoonFlow) {
	t.census.count(f)
	if !f.reply() {
		switch {
		case FlowState(f.State) == StateClosed:
			t.closed++
		case f.replica():
			t.replica++
		default:
			t.owned++
		}
	}
	if f.replica() {
		return
	}
	at := place{uint32(f.Service), addrPort(f.NewDaddr, f.NewDport)}
	figure := EndpointStats{Packets: f.packets(), Bytes: f.bytes()}
	if f.reply() {
		at.endpoint = addrPort(key.Saddr, key.Sport)
	} else if FlowState(f.State) != StateClosed {
		figure.Flows = 1
	}
	sum := t.places[at]
	sum.add(figure)
	t.places[at] = sum
}
