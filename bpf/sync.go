package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// Sync makes the maps say what want says: the difference between the two is written, nothing
// else, so calling it again changes nothing. Flows are not touched: those of a service or an
// endpoint that is gone run out by themselves. On error what could be done is done, and the next
// call goes on from there.
func (d *Dataplane) Sync(ctx context.Context, want Desired) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("sync data plane: %w", err)
	}
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	now := time.Now()
	var errs []error
	changed := 0
	wanted := make(map[pontoonServiceKey]bool, len(want.Services))
	errs = append(errs, d.addVIPs(want))
	for i := range want.Services {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, fmt.Errorf("sync data plane: %w", err))...)
		}
		key := serviceKey(want.Services[i])
		wanted[key] = true
		did, err := d.syncService(key, want.Services[i], now)
		if did {
			changed++
		}
		errs = append(errs, err)
	}
	for key := range d.tables.services {
		if !wanted[key] {
			changed++
			errs = append(errs, d.tables.remove(key, now))
		}
	}
	errs = append(errs, d.removePositions(want), d.removeVIPs(want))
	d.tables.collect(now)
	d.idle.replace(want.Services)
	if changed > 0 {
		d.log.Info("data plane synced", "gen", want.Gen, "services", len(want.Services), "changed", changed)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sync data plane to generation %d: %w", want.Gen, err)
	}
	return nil
}

func serviceKey(s Service) pontoonServiceKey {
	return pontoonServiceKey{Vip: vipKey(s.VIP.Addr()), Port: swap16(s.VIP.Port()), Proto: s.Protocol}
}

// syncService reports whether it had to change anything.
func (d *Dataplane) syncService(key pontoonServiceKey, s Service, now time.Time) (bool, error) {
	indexes := make([]uint32, len(s.Endpoints))
	for i, e := range s.Endpoints {
		if !e.takesNew() {
			continue
		}
		ep := pontoonEndpoint{Addr: vipKey(e.Addr.Addr()), Port: swap16(e.Addr.Port())}
		if s.Mode != ModeDNAT {
			ep.Source = vipKey(e.source())
		}
		index, err := d.tables.endpoint(ep, now)
		if err != nil {
			return false, fmt.Errorf("service %d: endpoint %s: %w", s.ID, e.Addr, err)
		}
		indexes[i] = index
	}
	positions := selectionTable(s.Algorithm, s.Seed, s.Endpoints)
	table := make([]uint32, len(positions))
	for i, at := range positions {
		table[i] = indexes[at]
	}
	if err := d.maps.Rr.Update(s.ID, uint32(0), ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return false, fmt.Errorf("service %d: %w", s.ID, roomFor("service", d.maps.Rr, err))
	}
	value := pontoonService{Id: s.ID, Seed: s.Seed, Mode: uint8(s.Mode), Algorithm: uint8(s.Algorithm)}
	did, err := d.tables.install(key, value, table, now)
	if err != nil {
		return false, fmt.Errorf("service %d: %w", s.ID, err)
	}
	return did, nil
}

// removePositions forgets the round-robin positions of services that are gone.
func (d *Dataplane) removePositions(want Desired) error {
	keep := make(map[uint32]bool, len(want.Services))
	for _, s := range want.Services {
		keep[s.ID] = true
	}
	return removeKeys(d.maps.Rr, keep)
}

func (d *Dataplane) addVIPs(want Desired) error {
	var errs []error
	for _, vip := range want.VIPs {
		err := d.maps.Vips.Update(vipKey(vip), uint32(0), ebpf.UpdateNoExist)
		if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
			errs = append(errs, fmt.Errorf("add vip %s: %w", vip, roomFor("vip", d.maps.Vips, err)))
		}
	}
	return errors.Join(errs...)
}

func (d *Dataplane) removeVIPs(want Desired) error {
	keep := make(map[pontoonAddr]bool, len(want.VIPs))
	for _, vip := range want.VIPs {
		keep[vipKey(vip)] = true
	}
	return removeKeys(d.maps.Vips, keep)
}

// removeKeys deletes what is not in keep from a map with values of four bytes.
func removeKeys[K comparable](m *ebpf.Map, keep map[K]bool) error {
	var key K
	var value uint32
	var stale []K
	entries := m.Iterate()
	for entries.Next(&key, &value) {
		if !keep[key] {
			stale = append(stale, key)
		}
	}
	errs := []error{entries.Err()}
	for _, key := range stale {
		if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove stale entry: %w", err))
		}
	}
	return errors.Join(errs...)
}
