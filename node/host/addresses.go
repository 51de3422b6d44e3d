package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
)

// Address is one address on one link, by name.
type Address struct {
	Addr netip.Addr
	Link string
}

// ErrForeignAddress is wrapped by the errors of SyncAddresses about a VIP that
// the operator has set on a link with a subnet of its own.
var ErrForeignAddress = errors.New("set by the operator, not by pontoon")

// SyncAddresses makes the namespace hold exactly want among the addresses that
// are Pontoon's, and reports what it changed.
//
// Pontoon's are: every address in managed or want that stands alone (/32, /128),
// and every address that carries Pontoon's mark, which is IFA_PROTO where the kernel
// knows it (5.18) and the IPv4 label "LINK:pt" where the name leaves room. So a
// restarted daemon recognises what an earlier one left, even for a VIP that was
// deleted meanwhile. (Before 5.18, an IPv6 VIP, or one on a link with a name
// longer than 12 characters, is recognised through managed only.)
//
// Addresses are set as /32 or /128, global, without a prefix route; IPv6 without
// duplicate address detection, so that it serves at once, and deprecated, so that
// the machine begins no connections of its own at it. A wanted address that is there already is left
// alone, whoever set it. A managed or wanted address that someone has set with
// another prefix length is the machine's own: it is neither removed nor added
// beside, and reported as ErrForeignAddress.
//
// Removals go before additions. Errors are joined; each concerns one address,
// and everything else has been done. An error about the listing itself means
// nothing was done.
func (h *Host) SyncAddresses(want []Address, managed []netip.Addr) (added, removed []Address, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	names, err := h.linkNames()
	if err != nil {
		return nil, nil, err
	}
	have, err := h.dumpAddresses(names)
	if err != nil {
		return nil, nil, err
	}
	h.managed = addressSet(want, managed)
	remove, add, err := planAddresses(have, names, want, h.managed)
	removed, rerr := h.change(remove, h.removal, removalError)
	added, aerr := h.change(add, h.addition, additionError)
	return added, removed, errors.Join(err, rerr, aerr)
}

// change has the kernel do the same with all the addresses, and returns those with
// which it was done.
func (h *Host) change(all []ifaddr, request func(ifaddr) *nl.NetlinkRequest, why func(ifaddr, error) error) (done []Address, err error) {
	reqs := make([]*nl.NetlinkRequest, len(all))
	for i, a := range all {
		reqs[i] = request(a)
	}
	var errs []error
	for i, err := range h.execute(reqs) {
		if err := why(all[i], err); err != nil {
			errs = append(errs, err)
			continue
		}
		done = append(done, all[i].address())
	}
	return done, errors.Join(errs...)
}

func addressSet(want []Address, managed []netip.Addr) map[netip.Addr]bool {
	set := make(map[netip.Addr]bool, len(want)+len(managed))
	for _, a := range managed {
		set[a.Unmap()] = true
	}
	for _, w := range want {
		set[w.Addr.Unmap()] = true
	}
	return set
}

// planAddresses compares what is there with what is wanted. It is pure: the same
// input gives the same removals and additions in the same order. The error joins
// what can neither be added nor removed.
func planAddresses(have []ifaddr, names map[int]string, want []Address, managed map[netip.Addr]bool) (remove, add []ifaddr, err error) {
	indexes := make(map[string]int, len(names))
	for index, name := range names {
		indexes[name] = index
	}
	wanted, errs := checkWanted(want, indexes)
	foreign := make(map[netip.Addr]bool)
	held := make(map[Address]bool)
	for _, a := range have {
		link, keep := wanted[a.addr]
		switch {
		case managed[a.addr] && !a.full():
			foreign[a.addr] = true
			errs = append(errs, fmt.Errorf("address %s on %s: %w: remove it there, or choose another VIP", a.prefix(), a.link, ErrForeignAddress))
		case !managed[a.addr] && !a.marked():
			// someone else's
		case keep && link == a.link && !a.unusable():
			held[a.address()] = true
		default:
			remove = append(remove, a)
		}
	}
	for addr, link := range wanted {
		if !foreign[addr] && !held[Address{Addr: addr, Link: link}] {
			add = append(add, ifaddr{addr: addr, bits: addr.BitLen(), index: indexes[link], link: link})
		}
	}
	slices.SortFunc(add, func(a, b ifaddr) int { return a.addr.Compare(b.addr) })
	slices.SortStableFunc(remove, func(a, b ifaddr) int {
		return cmp.Or(a.addr.Compare(b.addr), cmp.Compare(a.index, b.index))
	})
	return remove, add, errors.Join(errs...)
}

// checkWanted turns want into a map, leaving out what cannot be done.
func checkWanted(want []Address, indexes map[string]int) (map[netip.Addr]string, []error) {
	var errs []error
	wanted := make(map[netip.Addr]string, len(want))
	for _, w := range want {
		addr := w.Addr.Unmap()
		other, twice := wanted[addr]
		_, exists := indexes[w.Link]
		switch {
		case !addr.IsValid():
			errs = append(errs, fmt.Errorf("hold an address on %s: the address is empty", w.Link))
		case !exists:
			errs = append(errs, fmt.Errorf("hold address %s: %w", addr, missingLink(w.Link, indexes)))
		case twice && other != w.Link:
			errs = append(errs, fmt.Errorf("hold address %s: wanted on %s and on %s", addr, other, w.Link))
		default:
			wanted[addr] = w.Link
		}
	}
	return wanted, errs
}
