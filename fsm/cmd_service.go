package fsm

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"
)

// normalService fills in the defaults and sorts the endpoints, in a copy.
func normalService(svc Service) Service {
	svc.VIP = svc.VIP.Unmap()
	svc.Protocol = cmp.Or(svc.Protocol, TCP)
	svc.Mode = cmp.Or(svc.Mode, ModeFullNAT)
	svc.Algorithm = cmp.Or(svc.Algorithm, RoundRobin)
	if svc.IdleTimeout == 0 {
		svc.IdleTimeout = DefaultIdleTimeoutTCP
		if svc.Protocol == UDP {
			svc.IdleTimeout = DefaultIdleTimeoutUDP
		}
	}
	endpoints := make([]Endpoint, len(svc.Endpoints))
	for i, e := range svc.Endpoints {
		e.Address = netip.AddrPortFrom(e.Address.Addr().Unmap(), e.Address.Port())
		e.Admin = cmp.Or(e.Admin, AdminUp)
		endpoints[i] = e
	}
	slices.SortStableFunc(endpoints, func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
	svc.Endpoints = endpoints
	return svc
}

func compareEndpoint(e Endpoint, at netip.AddrPort) int { return e.Address.Compare(at) }

func (c PutService) apply(d *draft) error {
	svc := normalService(c.Service)
	chk := &checker{object: "service " + shown(svc.Name)}
	old := d.services.get(svc.Name)
	if c.Create && old != nil {
		chk.clash(ErrExists, "name", svc.Name, "exists already: use \"pontoon service update\" to change it")
	}
	d.checkService(chk, svc)
	if old == nil && d.services.len() >= MaxServices {
		chk.clash(ErrInUse, "name", svc.Name, "would be service %d: the data plane has room for %d", d.services.len()+1, MaxServices)
	}
	if old == nil && d.nextService == math.MaxUint32 {
		chk.clash(ErrInUse, "id", nil, "is not to be had: all ids of this cluster have been given away")
	}
	if err := chk.err(); err != nil {
		return err
	}
	if old != nil {
		svc.ID = old.ID
	} else {
		svc.ID = d.nextService
		d.nextService++
	}
	d.putService(svc)
	return nil
}

func (d *draft) checkService(chk *checker, svc Service) {
	chk.name("name", svc.Name)
	if chk.address("vip", svc.VIP) {
		switch v := d.vips.get(svc.VIP); {
		case v == nil:
			chk.bad("vip", svc.VIP, "does not exist: create it with \"pontoon vip create %s\"", svc.VIP)
		case v.Kind != VIPService:
			chk.bad("vip", svc.VIP, "is of kind %s: use one of kind %s", v.Kind, VIPService)
		}
	}
	chk.port("port", svc.Port)
	oneOf(chk, "protocol", svc.Protocol, TCP, UDP)
	oneOf(chk, "mode", svc.Mode, ModeDNAT, ModeOneArm, ModeFullNAT)
	oneOf(chk, "algorithm", svc.Algorithm, RoundRobin, Maglev)
	if svc.IdleTimeout < MinIdleTimeout || svc.IdleTimeout > MaxIdleTimeout {
		chk.bad("idle_timeout", svc.IdleTimeout, "must be %s to %s", MinIdleTimeout, MaxIdleTimeout)
	}
	if owner := d.frontends.get(frontendOf(svc)); owner != nil && *owner != svc.Name {
		chk.clash(ErrInUse, "port", svc.Port, "with %s on %s is in use by service %s: choose another port or VIP",
			svc.Protocol, svc.VIP, *owner)
	}
	if len(svc.Endpoints) > MaxEndpoints {
		chk.bad("endpoints", len(svc.Endpoints), "are too many: at most %d", MaxEndpoints)
		return
	}
	for i, e := range svc.Endpoints {
		if i > 0 && svc.Endpoints[i-1].Address == e.Address {
			chk.bad("endpoints", e.Address, "is there twice: leave one out")
		}
		d.checkEndpoint(chk, e)
	}
}

// checkEndpoint names the endpoint by its address, because the position after
// sorting is not the one the user wrote.
func (d *draft) checkEndpoint(chk *checker, e Endpoint) {
	if !e.Address.IsValid() {
		chk.bad("endpoints", nil, "has one without an address: give an address and a port like 192.0.2.20:8080")
		return
	}
	var own checker
	if own.address("address", e.Address.Addr()) && d.vips.has(e.Address.Addr()) {
		own.bad("address", e.Address.Addr(), "is a VIP of this cluster: give the address of the server itself")
	}
	own.port("port", e.Address.Port())
	if e.Weight > MaxWeight {
		own.bad("weight", e.Weight, "must be 0 to %d", MaxWeight)
	}
	oneOf(&own, "admin", e.Admin, AdminUp, AdminDrain, AdminDown)
	for _, p := range own.problems {
		p.Field = fmt.Sprintf("endpoints[%s].%s", e.Address, p.Field)
		chk.problems = append(chk.problems, p)
	}
}

func (d *draft) service(name string) (Service, error) {
	svc := d.services.get(name)
	if svc == nil {
		return Service{}, refuse(ErrNotFound, "service %s does not exist: see \"pontoon service list\"", shown(name))
	}
	return *svc, nil
}

func (c DeleteService) apply(d *draft) error {
	svc, err := d.service(c.Name)
	if err != nil {
		return err
	}
	d.dropService(svc)
	return nil
}

func (c SetEndpointAdmin) apply(d *draft) error {
	svc, err := d.service(c.Service)
	if err != nil {
		return err
	}
	chk := &checker{object: "service " + svc.Name}
	oneOf(chk, "admin", c.Admin, AdminUp, AdminDrain, AdminDown)
	if err := chk.err(); err != nil {
		return err
	}
	at := netip.AddrPortFrom(c.Endpoint.Addr().Unmap(), c.Endpoint.Port())
	i, ok := slices.BinarySearchFunc(svc.Endpoints, at, compareEndpoint)
	if !ok {
		return refuse(ErrNotFound, "service %s has no endpoint %s: see \"pontoon service show %s\"", svc.Name, shown(c.Endpoint), svc.Name)
	}
	svc.Endpoints = slices.Clone(svc.Endpoints)
	svc.Endpoints[i].Admin = c.Admin
	d.putService(svc)
	return nil
}
