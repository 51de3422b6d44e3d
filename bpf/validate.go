package bpf

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
)

// Validate reports everything that is wrong, joined.
func (w Desired) Validate() error {
	var errs []error
	type place struct {
		vip   netip.AddrPort
		proto uint8
	}
	places, services, endpoints := map[place]bool{}, map[uint32]bool{}, map[uint32]bool{}
	for _, vip := range w.VIPs {
		if !vip.IsValid() {
			errs = append(errs, errors.New("a vip is no address"))
		}
	}
	for _, s := range w.Services {
		p := place{s.VIP, s.Protocol}
		if places[p] {
			errs = append(errs, fmt.Errorf("service %d: %s protocol %d is there twice", s.ID, s.VIP, s.Protocol))
		}
		if services[s.ID] {
			errs = append(errs, fmt.Errorf("service id %d is there twice", s.ID))
		}
		places[p], services[s.ID] = true, true
		for _, e := range s.Endpoints {
			if endpoints[e.ID] {
				errs = append(errs, fmt.Errorf("endpoint id %d is there twice", e.ID))
			}
			endpoints[e.ID] = true
		}
		if err := s.validate(); err != nil {
			errs = append(errs, fmt.Errorf("service %d: %w", s.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (s Service) validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if s.ID == 0 || s.ID > math.MaxUint16 {
		bad("id %d is not between 1 and %d", s.ID, math.MaxUint16)
	}
	if !s.VIP.IsValid() || s.VIP.Port() == 0 {
		bad("vip %s is not an address and port", s.VIP)
	}
	if s.PortEnd != 0 && s.PortEnd < s.VIP.Port() {
		bad("port range %d-%d ends before it begins", s.VIP.Port(), s.PortEnd)
	}
	if s.Protocol != protoTCP && s.Protocol != protoUDP && s.Protocol != protoSCTP {
		bad("protocol %d is neither TCP, UDP nor SCTP", s.Protocol)
	}
	if s.Mode < ModeFullNAT || s.Mode > ModeDSR {
		bad("unknown %s", s.Mode)
	}
	if s.Algorithm < AlgorithmRR || s.Algorithm > AlgorithmLC {
		bad("unknown %s", s.Algorithm)
	}
	if s.IdleTimeout < 0 || s.IdleTimeout > maxIdleTimeout {
		bad("idle timeout %s is not between 0 and %s", s.IdleTimeout, maxIdleTimeout)
	}
	if s.Affinity < 0 || s.Affinity > maxIdleTimeout {
		bad("affinity %s is not between 0 and %s", s.Affinity, maxIdleTimeout)
	}
	if s.Replicate > ReplicateNone {
		bad("unknown %s", s.Replicate)
	}
	if s.ReplicateMinAge < 0 || s.ReplicateMinAge > maxReplicateMinAge {
		bad("minimum age of replicated flows %s is not between 0 and %s", s.ReplicateMinAge, maxReplicateMinAge)
	}
	if s.ReplicateMinAge > 0 && s.Replicate != ReplicateEstablished {
		bad("a minimum age of replicated flows goes with established, not with %s", s.Replicate)
	}
	for _, e := range s.Endpoints {
		if err := s.validateEndpoint(e); err != nil {
			bad("endpoint %s: %w", e.Addr, err)
		}
	}
	return errors.Join(errs...)
}

func (s Service) validateEndpoint(e Endpoint) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if e.ID == 0 || e.ID > math.MaxUint16 {
		bad("id %d is not between 1 and %d", e.ID, math.MaxUint16)
	}
	if !e.Addr.IsValid() || e.Addr.Port() == 0 {
		bad("it is not an address and port")
		return errors.Join(errs...)
	}
	if s.ranged() && int(e.Addr.Port())+int(s.PortEnd-s.VIP.Port()) > math.MaxUint16 {
		bad("ports %d-%d do not fit above its port", s.VIP.Port(), s.PortEnd)
	}
	v4 := e.Addr.Addr().Unmap().Is4()
	for _, a := range e.Sources {
		if a.Unmap().Is4() != v4 {
			bad("source %s is of the other IP family", a)
		}
	}
	needsSource := s.Mode == ModeFullNAT || s.Mode == ModeOneArm || s.Mode == ModeDSR && s.Tunnel == TunnelIPIP
	if needsSource && len(e.Sources) == 0 && e.takesNew() {
		bad("%s needs a source address", s.Mode)
	}
	if s.Mode != ModeFullNAT && v4 != s.VIP.Addr().Unmap().Is4() {
		bad("%s cannot lead to the other IP family", s.Mode)
	}
	if s.Mode == ModeDSR && e.Addr.Port() != s.VIP.Port() {
		bad("dsr cannot change the port")
	}
	return errors.Join(errs...)
}

// mode is the mode as the program knows it.
func (s Service) mode() uint8 {
	if s.Mode == ModeDSR && s.Tunnel == TunnelIPIP {
		return uint8(pontoonNatModeMODE_DSR_TUNNEL)
	}
	return uint8(s.Mode)
}
