package fsm

import (
	"cmp"
	"net/netip"
	"slices"
)

// PutPool creates or replaces a pool; with KeepReservations it keeps the
// reservations it has, and those of Pool are not looked at. VIPs that were handed
// out stay as they are, and so do those that somebody made by hand in its range: they
// are in use, and the pool steps over them. Refused with ErrInvalid, and with ErrInUse
// if an address that is new to the pool belongs to another pool, a node, an endpoint or
// a BGP peer, or if an address would leave it that is handed out or reserved.
type PutPool struct {
	Pool             Pool `json:"pool"`
	KeepReservations bool `json:"keep_reservations,omitempty"`
}

// DeletePool removes a pool with its reservations. Refused with ErrNotFound, and
// with ErrInUse while there are VIPs it handed out.
type DeletePool struct {
	Name string `json:"name"`
}

// ReserveAddress keeps an address of a pool back: for a service, or for nobody
// without one. It replaces what was said of the address before. Refused with
// ErrNotFound if no pool hands the address out, and with ErrInUse if it is
// somebody's, except that of the service it is to be reserved for.
type ReserveAddress struct {
	Address netip.Addr `json:"address"`
	Service string     `json:"service,omitempty"`
}

// UnreserveAddress lets an address be handed out again. Refused with ErrNotFound.
type UnreserveAddress struct {
	Address netip.Addr `json:"address"`
}

func (PutPool) kind() string          { return "put_pool" }
func (DeletePool) kind() string       { return "delete_pool" }
func (ReserveAddress) kind() string   { return "reserve_address" }
func (UnreserveAddress) kind() string { return "unreserve_address" }

// normalPool fills in the defaults and sorts, in a copy.
func (d *draft) normalPool(p Pool) Pool {
	p.Instance = cmp.Or(p.Instance, DefaultInstance)
	if p.Announce == "" {
		p.Announce = AnnounceL2
		if inst := d.instances.get(p.Instance); inst != nil && inst.Kind == InstanceECMP {
			p.Announce = AnnounceBGP
		}
	}
	p.CIDRs = sortedCopy(p.CIDRs, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	p.Ranges = sortedCopy(p.Ranges, compareRanges)
	p.Reservations = slices.Clone(p.Reservations)
	for i, r := range p.Reservations {
		p.Reservations[i].Address = r.Address.Unmap()
	}
	p.Reservations = sortedCopy(p.Reservations, compareReservations)
	return p
}

func compareReservations(a, b Reservation) int { return a.Address.Compare(b.Address) }

// sortedCopy is nil for an empty list: the form the state keeps.
func sortedCopy[T any](list []T, compare func(a, b T) int) []T {
	if len(list) == 0 {
		return nil
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, compare)
	return list
}

func (c PutPool) apply(d *draft) error {
	p := d.normalPool(c.Pool)
	chk := &checker{object: "pool " + shown(p.Name)}
	var old Pool
	at := d.pools.get(p.Name)
	if at != nil {
		old = *at
	}
	if c.KeepReservations {
		p.Reservations = old.Reservations
	}
	chk.name("name", p.Name)
	d.checkPoolVIPs(chk, p)
	if checkParts(chk, p) {
		d.checkOverlaps(chk, p, old)
		d.checkLeftOut(chk, p)
		checkReservations(chk, p, c.KeepReservations)
	}
	if at == nil && d.pools.len() >= MaxPools {
		chk.clash(ErrInUse, "name", p.Name, "would be pool %d: there is room for %d", d.pools.len()+1, MaxPools)
	}
	if err := chk.err(); err != nil {
		return err
	}
	if p.Default {
		d.unmarkDefault(p.Name)
	}
	d.pools.put(p.Name, p)
	return nil
}

func (d *draft) unmarkDefault(except string) {
	for _, other := range d.pools.values() {
		if other.Default && other.Name != except {
			other.Default = false
			d.pools.put(other.Name, other)
		}
	}
}

// checkPoolVIPs holds the settings of a pool against what a VIP may have.
func (d *draft) checkPoolVIPs(chk *checker, p Pool) {
	inst := d.instances.get(p.Instance)
	if inst == nil {
		chk.bad("instance", p.Instance, "does not exist: create it with \"pontoon instance create\"")
	}
	oneOf(chk, "announce", p.Announce, AnnounceL2, AnnounceBGP, AnnounceNone)
	if inst != nil && inst.Kind == InstanceECMP && p.Announce == AnnounceL2 {
		chk.bad("announce", p.Announce, "would let every node of instance %s answer for an address, which is of kind %s: use %s or %s",
			inst.Name, InstanceECMP, AnnounceBGP, AnnounceNone)
	}
	if !validInterface(p.Interface) {
		chk.bad("interface", p.Interface, "is no name of an interface")
	}
}

// checkParts says whether the addresses of a pool are such that can be compared.
func checkParts(chk *checker, p Pool) bool {
	before := len(chk.problems)
	if n := len(p.CIDRs) + len(p.Ranges); n == 0 {
		chk.bad("cidrs", nil, "are missing, and so are ranges: give addresses like 192.0.2.0/24 or 192.0.2.10-192.0.2.20")
	} else if n > MaxPoolParts {
		chk.bad("cidrs", n, "and ranges are too many: at most %d together", MaxPoolParts)
		return false
	}
	for _, c := range p.CIDRs {
		switch {
		case !c.IsValid():
			chk.bad("cidrs", nil, "has one that is no prefix: give one like 192.0.2.0/24")
		case c.Addr().Is4In6():
			chk.bad("cidrs", c, "is an IPv4 prefix in IPv6 form: give it as one of IPv4")
		case c.Masked() != c:
			chk.bad("cidrs", c, "has bits beyond its length: give %s, or a range", c.Masked())
		default:
			checkUsable(chk, "cidrs", c, rangeOf(c))
		}
	}
	for _, r := range p.Ranges {
		// One that was made by hand may be anything.
		if again, err := ParseAddressRange(r.String()); err != nil || again != r {
			chk.bad("ranges", r, "is no range of addresses: give one like 192.0.2.10-192.0.2.20")
			continue
		}
		checkUsable(chk, "ranges", r, r)
	}
	if len(chk.problems) > before {
		return false
	}
	checkApart(chk, p.parts())
	return len(chk.problems) == before
}

// unusable are the addresses no service can have. No range may have any of them.
var unusable = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "addresses of \"this network\" (RFC 791)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast addresses"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
	{netip.MustParsePrefix("::/127"), "the unspecified or the loopback address"},
	{netip.MustParsePrefix("::ffff:0.0.0.0/96"), "IPv4 addresses in IPv6 form"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

func checkUsable(chk *checker, field string, value any, r AddressRange) {
	for _, u := range unusable {
		if r.overlaps(rangeOf(u.prefix)) {
			chk.bad(field, value, "has %s in it, which no service can have", u.what)
		}
	}
}

// checkApart holds that the parts of a pool are of one family and do not overlap.
func checkApart(chk *checker, parts []AddressRange) {
	slices.SortFunc(parts, compareRanges)
	for i := 1; i < len(parts); i++ {
		a, b := parts[i-1], parts[i]
		if a.First.Is4() != b.First.Is4() {
			chk.bad("cidrs", b, "is %s, and %s is %s: make a pool for each family", family(b.First), a, family(a.First))
		}
		if a.overlaps(b) {
			chk.bad("cidrs", b, "overlaps %s in the same pool: leave one out", a)
		}
	}
}

// checkOverlaps refuses addresses that are somebody else's. Those that were in the
// pool already are left in peace: what came to lie in it since is stepped over. So are
// VIPs, which are of the kind that pools hand out: most pools are made where services
// are already.
func (d *draft) checkOverlaps(chk *checker, p, old Pool) {
	parts, had := p.parts(), old.parts()
	for _, r := range d.pools.rows {
		if r.key == p.Name {
			continue
		}
		for _, theirs := range r.val.parts() {
			for _, ours := range parts {
				if ours.overlaps(theirs) {
					chk.clash(ErrInUse, "cidrs", ours, "overlaps %s of pool %s: no address can be in two pools", theirs, r.key)
				}
			}
		}
	}
	slices.SortFunc(parts, compareRanges)
	slices.SortFunc(had, compareRanges)
	const most = 8 // said of each, the rest is counted
	said := 0
	others := d.others(parts)
	slices.SortFunc(others, netip.Addr.Compare)
	for _, a := range slices.Compact(others) {
		if inRanges(had, a) {
			continue
		}
		if said++; said <= most {
			chk.clash(ErrInUse, "cidrs", a, "is %s: leave it out, with ranges around it", d.occupant(a))
		}
	}
	if said > most {
		chk.clash(ErrInUse, "cidrs", said-most, "more addresses are in use")
	}
}

// checkLeftOut refuses a pool without an address that it has handed out.
func (d *draft) checkLeftOut(chk *checker, p Pool) {
	ranges := p.handsOut()
	out := slices.DeleteFunc(d.handedOut(p.Name), func(a netip.Addr) bool { return inRanges(ranges, a) })
	if len(out) > 0 {
		chk.clash(ErrInUse, "cidrs", nil, "would leave out %d addresses that are handed out: %s; delete their services first", len(out), fewOf(out))
	}
}

// handedOut are the VIPs a pool owns, in order.
func (s *State) handedOut(pool string) []netip.Addr {
	var out []netip.Addr
	for _, r := range s.vips.rows {
		if pool != "" && r.val.Pool == pool {
			out = append(out, r.key)
		}
	}
	return out
}

// fewOf is few for addresses.
func fewOf(addrs []netip.Addr) string {
	words := make([]string, len(addrs))
	for i, a := range addrs {
		words[i] = a.String()
	}
	return few(words)
}

// checkReservations is about those of the command, or those that were there.
func checkReservations(chk *checker, p Pool, kept bool) {
	if len(p.Reservations) > MaxReservations {
		chk.bad("reservations", len(p.Reservations), "are too many: at most %d", MaxReservations)
		return
	}
	ranges := p.handsOut()
	for i, r := range p.Reservations {
		switch inside := inRanges(ranges, r.Address); {
		case !r.Address.IsValid():
			chk.bad("reservations", nil, "has one without an address")
			continue
		case !inside && kept:
			chk.clash(ErrInUse, "cidrs", nil, "would leave out %s, which is reserved: \"pontoon pool unreserve %s\" first", r.Address, r.Address)
		case !inside:
			chk.bad("reservations", r.Address, "is no address that the pool hands out")
		case i > 0 && p.Reservations[i-1].Address == r.Address:
			chk.bad("reservations", r.Address, "is there twice: leave one out")
		}
		if r.Service != "" {
			chk.name("reservations["+r.Address.String()+"].service", r.Service)
		}
	}
}

func (c DeletePool) apply(d *draft) error {
	if !d.pools.has(c.Name) {
		return refuse(ErrNotFound, "pool %s does not exist: see \"pontoon pool list\"", shown(c.Name))
	}
	if out := d.handedOut(c.Name); len(out) > 0 {
		return refuse(ErrInUse, "pool %s has handed out %d addresses: %s; delete their services first", c.Name, len(out), fewOf(out))
	}
	d.pools.drop(c.Name)
	return nil
}

func (c ReserveAddress) apply(d *draft) error {
	addr := c.Address.Unmap()
	chk := &checker{object: "reservation " + shown(addr)}
	if c.Service != "" {
		chk.name("service", c.Service)
	}
	p := d.poolAt(addr)
	if p == nil {
		return refuse(ErrNotFound, "address %s is none that a pool hands out: see \"pontoon pool list\"", shown(addr))
	}
	_, had := p.reservation(addr)
	if !had && len(p.Reservations) >= MaxReservations {
		chk.clash(ErrInUse, "address", addr, "would be reservation %d of pool %s: there is room for %d", len(p.Reservations)+1, p.Name, MaxReservations)
	}
	d.checkReservable(chk, addr, c.Service)
	if err := chk.err(); err != nil {
		return err
	}
	next := *p
	next.Reservations = sortedCopy(append(without(p.Reservations, addr), Reservation{Address: addr, Service: c.Service}), compareReservations)
	d.pools.put(next.Name, next)
	return nil
}

// checkReservable refuses an address that is somebody's, unless it is to be
// reserved for who has it.
func (d *draft) checkReservable(chk *checker, addr netip.Addr, service string) {
	if d.vips.has(addr) {
		if users := d.servicesOn(addr); service == "" || !slices.Contains(users, service) {
			chk.clash(ErrInUse, "address", addr, "is a VIP with the services %s: it can be reserved for one of them only", cmp.Or(few(users), "none"))
		}
		return
	}
	if what := d.occupant(addr); what != "" {
		chk.clash(ErrInUse, "address", addr, "is %s, so nobody is given it anyway", what)
	}
}

// without is a copy of the reservations but for that of one address; nil if it is
// empty.
func without(list []Reservation, addr netip.Addr) []Reservation {
	return sortedCopy(slices.DeleteFunc(slices.Clone(list), func(r Reservation) bool { return r.Address == addr }), compareReservations)
}

func (c UnreserveAddress) apply(d *draft) error {
	addr := c.Address.Unmap()
	for _, p := range d.pools.values() {
		if _, ok := p.reservation(addr); ok {
			p.Reservations = without(p.Reservations, addr)
			d.pools.put(p.Name, p)
			return nil
		}
	}
	return refuse(ErrNotFound, "address %s is not reserved: see \"pontoon pool show\"", shown(addr))
}
