package bpf

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Lease says what the network may hear from this host about one VIP of the cluster. It decides about
// answers to ARP requests and neighbour solicitations only: packets to the VIP are forwarded either way.
type Lease struct {
	// Epoch is that of the mastership the VIP is held under. The programs do not read it; it is there
	// for whoever looks at the map.
	Epoch uint64
	// Held: this node holds the VIP. The host may answer for no other.
	Held bool
	// Bound: it may answer only until the time last given to RenewLease.
	Bound bool
}

// firstLease is how long a data plane that an earlier version made, which knew no leases, may go on
// claiming what it holds until somebody renews it: as long as a daemon that is stopped in order leaves.
const firstLease = 5 * time.Second

// leaseBook is what stands in the maps of leases.
type leaseBook struct {
	mu     sync.Mutex
	leases *ebpf.Map
	terms  *ebpf.Map
	have   map[pontoonAddr]pontoonLease
}

// openLeases reads what is there. Where an earlier version served VIPs without leases, each gets one that
// ends soon: the host answers as it did, but no longer without end.
func (d *Dataplane) openLeases() error {
	b := &d.leases
	b.leases, b.terms = d.maps.Leases, d.maps.Terms
	var err error
	if b.have, err = readMap[pontoonAddr, pontoonLease](b.leases); err != nil {
		return fmt.Errorf("read leases: %w", err)
	}
	if !d.adopted || len(b.have) > 0 {
		return nil
	}
	vips, err := readMap[pontoonAddr, uint32](d.maps.Vips)
	if err != nil || len(vips) == 0 {
		return err
	}
	now, err := Boottime()
	if err == nil {
		err = d.RenewLease(now + firstLease)
	}
	if err != nil {
		return err
	}
	want := make(map[pontoonAddr]pontoonLease, len(vips))
	for vip := range vips {
		want[vip] = Lease{Held: true, Bound: true}.entry()
	}
	return b.sync(want)
}

// Boottime reads CLOCK_BOOTTIME: the time since the machine was booted, also that in which it slept.
func Boottime() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, fmt.Errorf("read the boot clock: %w", err)
	}
	return time.Duration(t.Nano()), nil
}

// SyncLeases makes want the leases of all VIPs there are in the cluster. For a VIP that is not among
// them the host answers as if there were no data plane. What is not held any more is written before
// what is. Nothing is written when nothing has changed. On an error what could be done is done, and
// the next call goes on from there.
//
// To give a VIP up call it before its address is taken from the host; to take one up the order does not
// matter, but announce the VIP after both.
func (d *Dataplane) SyncLeases(want map[netip.Addr]Lease) error {
	entries := make(map[pontoonAddr]pontoonLease, len(want))
	for vip, l := range want {
		entries[vipKey(vip)] = l.entry()
	}
	return d.leases.sync(entries)
}

// RenewLease lets the host answer for VIPs that are held and bound until Boottime is until, and not longer;
// a time in the past ends it now. It is one write, whatever the number of VIPs.
func (d *Dataplane) RenewLease(until time.Duration) error {
	if err := d.leases.terms.Put(uint32(0), pontoonLeaseTerm{Until: uint64(max(until, 0))}); err != nil {
		return fmt.Errorf("renew lease: %w", err)
	}
	return nil
}

// LeaseUntil is the Boottime up to which the host may answer for what is bound, as the programs read it.
func (d *Dataplane) LeaseUntil() (time.Duration, error) {
	var term pontoonLeaseTerm
	if err := d.leases.terms.Lookup(uint32(0), &term); err != nil {
		return 0, fmt.Errorf("read lease: %w", err)
	}
	return time.Duration(term.Until), nil
}

func (l Lease) entry() pontoonLease {
	e := pontoonLease{Epoch: l.Epoch}
	if l.Held {
		e.Flags |= uint32(pontoonLeaseFlagLEASE_F_HELD)
	}
	if l.Bound {
		e.Flags |= uint32(pontoonLeaseFlagLEASE_F_BOUND)
	}
	return e
}

func heldEntry(e pontoonLease) int {
	return int(e.Flags & uint32(pontoonLeaseFlagLEASE_F_HELD))
}

// sync writes the difference between what is there and want.
func (b *leaseBook) sync(want map[pontoonAddr]pontoonLease) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	var keys []pontoonAddr
	for vip, lease := range want {
		if have, ok := b.have[vip]; !ok || have != lease {
			keys = append(keys, vip)
		}
	}
	slices.SortFunc(keys, func(x, y pontoonAddr) int { return cmp.Compare(heldEntry(want[x]), heldEntry(want[y])) })
	lost := len(keys)
	if first := slices.IndexFunc(keys, func(k pontoonAddr) bool { return heldEntry(want[k]) != 0 }); first >= 0 {
		lost = first
	}
	return errors.Join(b.put(keys[:lost], want), b.remove(want), b.put(keys[lost:], want))
}

// put writes the entries of keys by one call, and notes what was written.
func (b *leaseBook) put(keys []pontoonAddr, want map[pontoonAddr]pontoonLease) error {
	if len(keys) == 0 {
		return nil
	}
	values := make([]pontoonLease, len(keys))
	for i, k := range keys {
		values[i] = want[k]
	}
	n, err := b.leases.BatchUpdate(keys, values, nil)
	for i := range min(n, len(keys)) {
		b.have[keys[i]] = values[i]
	}
	if err != nil {
		return fmt.Errorf("write leases: %w", roomFor("lease", b.leases, err))
	}
	return nil
}

// remove takes out the VIPs that are none any more.
func (b *leaseBook) remove(want map[pontoonAddr]pontoonLease) error {
	var errs []error
	for vip := range b.have {
		if _, ok := want[vip]; ok {
			continue
		}
		if err := b.leases.Delete(vip); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove lease: %w", err))
			continue
		}
		delete(b.have, vip)
	}
	return errors.Join(errs...)
}
