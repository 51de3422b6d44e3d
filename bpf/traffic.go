package bpf

import (
	"fmt"
	"net/netip"
	"sync"

	"github.com/cilium/ebpf"
)

// trafficBook knows whose figures stand under which endpoint id in the map traffic, so that a
// service's sums never go back: what an endpoint counted stays in them when it is gone. Methods may
// be called concurrently.
type trafficBook struct {
	mu   sync.Mutex
	live map[uint16]trafficPlace
	past map[uint16]trafficPlace  // endpoints that are gone, whose flows may still count
	base map[uint16]EndpointStats // of services: what ids counted that are somebody else's now
	m    *ebpf.Map
	zero []pontoonEndpointStats // one for each processor
}

// trafficPlace is whom an id means.
type trafficPlace struct {
	service uint16
	addr    netip.AddrPort
}

func placeOf(ep *pontoonEndpoint) trafficPlace {
	return trafficPlace{ep.Service, addrPort(ep.Addr, ep.Port)}
}

// open takes over what was found in the maps.
func (b *trafficBook) open(m *ebpf.Map, endpoints map[uint16]pontoonEndpoint) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	b.m, b.zero = m, make([]pontoonEndpointStats, cpus)
	b.live, b.past, b.base = map[uint16]trafficPlace{}, map[uint16]trafficPlace{}, map[uint16]EndpointStats{}
	for id, ep := range endpoints {
		b.live[id] = placeOf(&ep)
	}
	return nil
}

// came notes whom an id means from now on. Figures of somebody else go into the sums of whoever
// that was, and the new one begins with none.
func (b *trafficBook) came(id uint16, ep *pontoonEndpoint) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	at := placeOf(ep)
	was, known := b.live[id]
	if !known {
		was, known = b.past[id]
	}
	if !known || was != at {
		if known {
			figures, err := b.read(id)
			if err != nil {
				return err
			}
			sum := b.base[was.service]
			sum.add(figures)
			b.base[was.service] = sum
		}
		if err := b.m.Put(uint32(id), b.zero); err != nil {
			return fmt.Errorf("clear endpoint figures: %w", err)
		}
	}
	b.live[id] = at
	delete(b.past, id)
	return nil
}

// went notes that the endpoint is gone. Its flows may go on for a while.
func (b *trafficBook) went(id uint16) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.past[id] = b.live[id]
	delete(b.live, id)
}

// forget drops what belongs to services that are neither wanted nor have flows.
func (b *trafficBook) forget(gone func(service uint16) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, at := range b.past {
		if gone(at.service) {
			delete(b.past, id)
		}
	}
	for service := range b.base {
		if gone(service) {
			delete(b.base, service)
		}
	}
}

// read adds up the processors' figures.
func (b *trafficBook) read(id uint16) (EndpointStats, error) {
	var sum EndpointStats
	var perCPU []pontoonEndpointStats
	if err := b.m.Lookup(uint32(id), &perCPU); err != nil {
		return sum, fmt.Errorf("read endpoint figures: %w", err)
	}
	for _, one := range perCPU {
		sum.Forward.Packets += one.ForwardPackets
		sum.Forward.Bytes += one.ForwardBytes
		sum.Reply.Packets += one.ReplyPackets
		sum.Reply.Bytes += one.ReplyBytes
		sum.New += one.NewFlows
	}
	return sum, nil
}

// services adds up everything, by service. A failure to read one endpoint's figures leaves it out.
func (b *trafficBook) services(counts *accounts) (map[uint32]ServiceStats, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := map[uint32]ServiceStats{}
	add := func(service uint16, figures EndpointStats, at netip.AddrPort) {
		s := out[uint32(service)]
		s.add(figures)
		if at.IsValid() {
			if s.Endpoints == nil {
				s.Endpoints = map[netip.AddrPort]EndpointStats{}
			}
			sum := s.Endpoints[at]
			sum.add(figures)
			s.Endpoints[at] = sum
		}
		out[uint32(service)] = s
	}
	var failed error
	for _, book := range []map[uint16]trafficPlace{b.live, b.past} {
		for id, at := range book {
			figures, err := b.read(id)
			if err != nil {
				failed = err
				continue
			}
			figures.Active = counts.get(id)
			if _, live := b.live[id]; !live {
				at.addr = netip.AddrPort{}
			}
			add(at.service, figures, at.addr)
		}
	}
	for service, figures := range b.base {
		add(service, figures, netip.AddrPort{})
	}
	return out, failed
}

// place returns whom an id means at present.
func (b *trafficBook) place(id uint16) (trafficPlace, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	at, ok := b.live[id]
	return at, ok
}
