package fsm

import (
	"fmt"
	"net/netip"
)

// checkVIPOf holds that a service is on a VIP that takes services.
func (d *draft) checkVIPOf(chk *checker, svc Service) {
	if !chk.address("vip", svc.VIP) {
		return
	}
	switch v := d.vips.get(svc.VIP); {
	case v == nil:
		chk.bad("vip", svc.VIP, "does not exist: create it with \"pontoon vip create %s\"", svc.VIP)
	case v.Kind != VIPService:
		chk.bad("vip", svc.VIP, "is of kind %s: use one of kind %s", v.Kind, VIPService)
	}
}

// checkService validates a service in its normal form, by itself and against
// what else there is but its VIP.
func (d *draft) checkService(chk *checker, svc Service) {
	chk.name("name", svc.Name)
	oneOf(chk, "protocol", svc.Protocol, TCP, UDP, SCTP)
	d.checkPorts(chk, svc)
	checkForwarding(chk, svc)
	checkPolicies(chk, svc)
	checkProbe(chk, svc)
	d.checkEndpoints(chk, svc)
}

func (d *draft) checkPorts(chk *checker, svc Service) {
	chk.port("port", svc.Port)
	if svc.PortEnd != 0 && svc.PortEnd < svc.Port {
		chk.bad("port_end", svc.PortEnd, "is before port %d: give the last port of the range, or none", svc.Port)
		return
	}
	if owner, taken := d.overlapping(svc); taken {
		text := "with %s on %s is in use by service %s: choose another port or VIP"
		if other := d.services.get(owner); svc.PortEnd != 0 || other.PortEnd != 0 {
			text = "with %s on %s overlaps " + ports(*other) + " of service %s: choose other ports or another VIP"
		}
		chk.clash(ErrInUse, "port", ports(svc), text, svc.Protocol, svc.VIP, owner)
	}
}

// ports is "80" or "8000-8100".
func ports(svc Service) string {
	if svc.PortEnd == 0 {
		return fmt.Sprint(svc.Port)
	}
	return fmt.Sprintf("%d-%d", svc.Port, svc.PortEnd)
}

// checkForwarding is about how packets get to an endpoint, and to which.
func checkForwarding(chk *checker, svc Service) {
	oneOf(chk, "mode", svc.Mode, ModeDNAT, ModeOneArm, ModeFullNAT, ModeDSR)
	switch {
	case svc.Mode == ModeDSR:
		oneOf(chk, "tunnel", svc.Tunnel, TunnelL2, TunnelIPIP)
	case svc.Tunnel != "":
		chk.bad("tunnel", string(svc.Tunnel), "goes with mode %s only: leave it out", ModeDSR)
	}
	oneOf(chk, "algorithm", svc.Algorithm, RoundRobin, Maglev, LeastConnections)
	oneOf(chk, "affinity", svc.Affinity, AffinityNone, AffinityClientIP)
	switch {
	case svc.Affinity == AffinityClientIP:
		chk.span("affinity_timeout", svc.AffinityTimeout, MinAffinityTimeout, MaxAffinityTimeout)
	case svc.AffinityTimeout != 0:
		chk.bad("affinity_timeout", svc.AffinityTimeout, "goes with affinity %s only: leave it out", AffinityClientIP)
	}
}

// checkPolicies is about what becomes of flows.
func checkPolicies(chk *checker, svc Service) {
	chk.span("idle_timeout", svc.IdleTimeout, MinIdleTimeout, MaxIdleTimeout)
	if svc.DrainTimeout != 0 {
		chk.span("drain_timeout", svc.DrainTimeout, MinDrainTimeout, MaxDrainTimeout)
	}
	oneOf(chk, "on_remove", svc.OnRemove, RemoveReset, RemoveDrop, RemoveKeep)
	oneOf(chk, "on_full", svc.OnFull, FullDrop, FullReset)
	oneOf(chk, "on_down", svc.OnDown, DownKeep, DownReset, DownMove)
	oneOf(chk, "all_down", svc.AllDown, AllDownOpen, AllDownClosed)
	if svc.SlowStart != 0 {
		chk.span("slow_start", svc.SlowStart, MinSlowStart, MaxSlowStart)
	}
	oneOf(chk, "replicate", svc.Replicate, ReplicateEstablished, ReplicateAll, ReplicateNone)
	switch {
	case svc.ReplicateMinAge == 0:
	case svc.Replicate == ReplicateEstablished:
		chk.span("replicate_min_age", svc.ReplicateMinAge, 0, MaxReplicateMinAge)
	default:
		chk.bad("replicate_min_age", svc.ReplicateMinAge, "goes with replicate %s only: leave it out", ReplicateEstablished)
	}
}

func (d *draft) checkEndpoints(chk *checker, svc Service) {
	if len(svc.Endpoints) > MaxEndpoints {
		chk.bad("endpoints", len(svc.Endpoints), "are too many: at most %d", MaxEndpoints)
		return
	}
	for i, e := range svc.Endpoints {
		if i > 0 && svc.Endpoints[i-1].Address == e.Address {
			chk.bad("endpoints", e.Address, "is there twice: leave one out")
		}
		if !e.Address.IsValid() {
			chk.bad("endpoints", nil, "has one without an address: give an address and a port like 192.0.2.20:8080 or [2001:db8::20]:8080")
			continue
		}
		var own checker
		svc.Endpoints[i] = d.checkEndpoint(&own, svc, e)
		// It is named by its address, because its position after sorting is not
		// the one the user wrote.
		for _, p := range own.problems {
			p.Field = fmt.Sprintf("endpoints[%s].%s", e.Address, p.Field)
			chk.problems = append(chk.problems, p)
		}
	}
}

// checkEndpoint returns the endpoint with its deadline in the one form the
// state keeps.
func (d *draft) checkEndpoint(chk *checker, svc Service, e Endpoint) Endpoint {
	addr := e.Address.Addr()
	if chk.address("address", addr) {
		checkFamily(chk, svc, addr)
		if d.vips.has(addr) {
			chk.bad("address", addr, "is a VIP of this cluster: give the address of the server itself")
		}
	}
	checkEndpointPort(chk, svc, e.Address.Port())
	if e.Weight > MaxWeight {
		chk.bad("weight", e.Weight, "must be 0 to %d", MaxWeight)
	}
	oneOf(chk, "admin", e.Admin, AdminUp, AdminDrain, AdminDown)
	e.DrainUntil = chk.instant("drain_until", e.DrainUntil)
	if e.Admin != AdminDrain && !e.DrainUntil.IsZero() {
		chk.bad("drain_until", stamp(e.DrainUntil), "goes with admin %s only: leave it out", AdminDrain)
	}
	return e
}

// checkFamily holds that only a mode that rewrites both addresses leads from
// one IP family to the other.
func checkFamily(chk *checker, svc Service, addr netip.Addr) {
	if svc.VIP.IsValid() && svc.Mode != ModeFullNAT && svc.VIP.Is4() != addr.Is4() {
		chk.bad("address", addr, "is %s and the VIP is %s: only mode %s translates from one to the other",
			family(addr), family(svc.VIP), ModeFullNAT)
	}
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

func checkEndpointPort(chk *checker, svc Service, port uint16) {
	chk.port("port", port)
	more := int(svc.LastPort()) - int(svc.Port) // ports of the range after the first
	switch {
	case port == 0:
	case svc.Mode == ModeDSR && port != svc.Port:
		chk.bad("port", port, "must be %d, the port of the service: mode %s rewrites no packet", svc.Port, ModeDSR)
	case int(port)+more > 65535:
		chk.bad("port", port, "leaves no room for the service's %d ports: give one of at most %d", more+1, 65535-more)
	}
}
