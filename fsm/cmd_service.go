package fsm

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// withDefaults fills in what was not given.
func withDefaults(svc Service) Service {
	svc.Protocol = cmp.Or(svc.Protocol, TCP)
	svc.Mode = cmp.Or(svc.Mode, ModeFullNAT)
	svc.Algorithm = cmp.Or(svc.Algorithm, RoundRobin)
	svc.Affinity = cmp.Or(svc.Affinity, AffinityNone)
	svc.OnRemove = cmp.Or(svc.OnRemove, RemoveReset)
	svc.OnFull = cmp.Or(svc.OnFull, FullDrop)
	svc.NewFlowRate = cmp.Or(svc.NewFlowRate, DefaultNewFlowRate)
	svc.Replicate = cmp.Or(svc.Replicate, ReplicateEstablished)
	svc.Probe = normalProbe(svc.Probe)
	svc.OnDown = cmp.Or(svc.OnDown, DownKeep)
	svc.AllDown = cmp.Or(svc.AllDown, AllDownOpen)
	if svc.Mode == ModeDSR {
		svc.Tunnel = cmp.Or(svc.Tunnel, TunnelL2)
	}
	if svc.Affinity == AffinityClientIP {
		svc.AffinityTimeout = cmp.Or(svc.AffinityTimeout, DefaultAffinityTimeout)
	}
	if svc.IdleTimeout == 0 {
		svc.IdleTimeout = DefaultIdleTimeout
		if svc.Protocol == UDP {
			svc.IdleTimeout = DefaultIdleTimeoutUDP
		}
	}
	return svc
}

// normalService fills in the defaults and sorts the endpoints, in a copy. Ids
// are left out: they are Apply's to give.
func normalService(svc Service) Service {
	svc = withDefaults(svc)
	svc.ID = 0
	svc.VIP = svc.VIP.Unmap()
	if svc.PortEnd == svc.Port {
		svc.PortEnd = 0
	}
	endpoints := make([]Endpoint, len(svc.Endpoints))
	for i, e := range svc.Endpoints {
		e.ID = 0
		e.Address = unmapped(e.Address)
		e.Admin = cmp.Or(e.Admin, AdminUp)
		endpoints[i] = e
	}
	slices.SortStableFunc(endpoints, func(a, b Endpoint) int { return a.Address.Compare(b.Address) })
	svc.Endpoints = endpoints
	return svc
}

func unmapped(ap netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func compareEndpoint(e Endpoint, at netip.AddrPort) int { return e.Address.Compare(at) }

// endpointAt finds an endpoint by its address.
func (s Service) endpointAt(at netip.AddrPort) (int, bool) {
	return slices.BinarySearchFunc(s.Endpoints, at, compareEndpoint)
}

func (c PutService) apply(d *draft) error {
	svc := normalService(c.Service)
	chk := &checker{object: "service " + shown(svc.Name)}
	var old Service
	at := d.services.get(svc.Name)
	if at != nil {
		old = *at
	}
	if c.Create && at != nil {
		chk.clash(ErrExists, "name", svc.Name, "exists already: use \"pontoon service update\" to change it")
	}
	svc.Endpoints = keepDeadlines(svc.Endpoints, old)
	var vip VIP // of a service that asks for one
	if c.Auto != nil {
		vip = d.assign(chk, *c.Auto, svc, old)
		svc.VIP = vip.Address
	} else {
		d.checkVIPOf(chk, svc)
	}
	d.checkService(chk, svc)
	if at == nil && d.services.len() >= MaxServices {
		chk.clash(ErrInUse, "name", svc.Name, "would be service %d: the data plane has room for %d", d.services.len()+1, MaxServices)
	}
	if len(svc.Endpoints) > len(old.Endpoints)+d.endpointIDs.room() {
		chk.clash(ErrInUse, "endpoints", len(svc.Endpoints), "are more than there is room for: the cluster has %d, of at most %d",
			d.endpointIDs.held, MaxID)
	}
	if err := chk.err(); err != nil {
		return err
	}
	svc.ID = old.ID
	if at == nil {
		svc.ID = d.serviceIDs.take()
	}
	d.giveEndpointIDs(&svc, old)
	d.keepVerdicts(old, svc)
	if was := d.vips.get(vip.Address); c.Auto != nil && (was == nil || *was != vip) {
		d.vips.put(vip.Address, vip)
	}
	d.putService(svc)
	if old.VIP != svc.VIP {
		d.release(old.VIP)
	}
	return nil
}

// keepDeadlines gives the endpoints that were draining, and still are, the
// deadline they had: putting a service as it is must not prolong a drain. It
// writes to endpoints.
func keepDeadlines(endpoints []Endpoint, old Service) []Endpoint {
	for i, e := range endpoints {
		if j, ok := old.endpointAt(e.Address); ok && e.Admin == AdminDrain && old.Endpoints[j].Admin == AdminDrain {
			endpoints[i].DrainUntil = old.Endpoints[j].DrainUntil
		}
	}
	return endpoints
}

// giveEndpointIDs gives the endpoints of svc their ids: those that old has keep
// theirs, new ones get the next. Ids of endpoints that are gone are free only
// afterwards, unless there is no other way, so that they are not given again at
// once.
func (d *draft) giveEndpointIDs(svc *Service, old Service) {
	var fresh []int
	gone := make(map[netip.AddrPort]uint32, len(old.Endpoints))
	for _, e := range old.Endpoints {
		gone[e.Address] = e.ID
	}
	for i, e := range svc.Endpoints {
		if id, ok := gone[e.Address]; ok {
			svc.Endpoints[i].ID = id
			delete(gone, e.Address)
		} else {
			fresh = append(fresh, i)
		}
	}
	give := func() {
		for _, i := range fresh {
			svc.Endpoints[i].ID = d.endpointIDs.take()
		}
	}
	free := func() {
		for _, id := range gone { // the order does not matter to a set
			d.endpointIDs.drop(id)
		}
	}
	if len(fresh) <= d.endpointIDs.room() {
		give()
		free()
		return
	}
	free()
	give()
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
	until := chk.instant("until", c.Until)
	if c.Admin != AdminDrain && !until.IsZero() {
		chk.bad("until", stamp(until), "goes with %s only: leave it out", AdminDrain)
	}
	if err := chk.err(); err != nil {
		return err
	}
	i, ok := svc.endpointAt(unmapped(c.Endpoint))
	if !ok {
		return refuse(ErrNotFound, "service %s has no endpoint %s: see \"pontoon service show %s\"", svc.Name, shown(c.Endpoint), svc.Name)
	}
	svc.Endpoints = slices.Clone(svc.Endpoints)
	svc.Endpoints[i].Admin, svc.Endpoints[i].DrainUntil = c.Admin, until
	d.putService(svc)
	return nil
}

// Deadline is when a drain that begins at now ends by the service's
// DrainTimeout; zero is never. It is for whoever proposes the drain.
func (s Service) Deadline(now time.Time) time.Time {
	if s.DrainTimeout <= 0 {
		return time.Time{}
	}
	return now.Add(time.Duration(s.DrainTimeout))
}
