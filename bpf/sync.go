package bpf

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"
)

// Sync makes the maps say what want says: the difference between the two is written, nothing
// else, so calling it again changes nothing. The flows of endpoints that are gone, down or drained
// are ended soon after by what their service's OnRemove says, those of dead ones by its OnDead; no other flow is touched. On error what could be done is done, and the next
// call goes on from there.
func (d *Dataplane) Sync(ctx context.Context, want Desired) error {
	if err := want.Validate(); err != nil {
		return fmt.Errorf("sync data plane: %w", err)
	}
	d.syncMu.Lock()
	defer d.syncMu.Unlock()
	now := time.Now()
	var errs []error
	keys := make(map[pontoonServiceKey]bool, len(want.Services))
	var endpoints idSet
	for i := range want.Services {
		s := &want.Services[i]
		keys[serviceKey(*s)] = true
		for _, e := range s.Endpoints {
			endpoints.add(e.ID)
		}
	}
	errs = append(errs, d.setVIPs(want))
	changed, err := d.install(want.Services, ctx.Err, now)
	errs = append(errs, err)
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("sync data plane to generation %d: %w", want.Gen, errors.Join(errs...))
	}
	for key := range d.tables.services {
		if !keys[key] {
			changed++
			d.choices.forget(key)
			errs = append(errs, d.tables.remove(key, now))
		}
	}
	errs = append(errs, d.tables.syncRanges(want.Services), d.tables.syncOrigins(want.Services), d.tables.removeEndpoints(&endpoints, now), d.removeVIPs(want))
	d.idle.replace(want.Services)
	d.epochs.set(want.Services)
	d.shares.Store(slices.ContainsFunc(want.Services, func(s Service) bool { return s.Shared }))
	if want.Retired {
		d.endings.forget()
	} else if d.endings.replace(want.Services) {
		d.wakeSweep()
	}
	if changed > 0 {
		d.log.Info("data plane synced", "gen", want.Gen, "services", len(want.Services), "changed", changed)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sync data plane to generation %d: %w", want.Gen, err)
	}
	return nil
}

// wakeSweep has the next sweep begin now.
func (d *Dataplane) wakeSweep() {
	select {
	case d.sweepNow <- struct{}{}:
	default:
	}
}

func serviceKey(s Service) pontoonServiceKey {
	return pontoonServiceKey{Vip: vipKey(s.VIP.Addr()), Port: swap16(s.VIP.Port()), Proto: s.Protocol}
}

// serviceValue is the entry of s, but for the place of its table.
func (d *Dataplane) serviceValue(s *Service) pontoonService {
	value := pontoonService{
		Id: uint16(s.ID), Seed: s.Seed, Mode: s.mode(), Algorithm: uint8(s.Algorithm),
		Rate: s.NewFlowRate, FirstPort: s.VIP.Port(), Affinity: d.clock.units(s.Affinity),
	}
	if s.OnFull == PolicyReset {
		value.Flags |= uint8(pontoonServiceFlagSERVICE_F_FULL_RESET)
	}
	if s.Closed {
		value.Flags |= uint8(pontoonServiceFlagSERVICE_F_CLOSED)
	}
	return value
}

// setVIPs adds the VIPs that are missing and notes which have services of several ports, which are
// everybody's, and to which what belongs to another node may come.
func (d *Dataplane) setVIPs(want Desired) error {
	flags := vipFlags(want.Services)
	keys, values := make([]pontoonAddr, len(want.VIPs)), make([]uint32, len(want.VIPs))
	for i, vip := range want.VIPs {
		keys[i], values[i] = vipKey(vip), flags[vip.Unmap()]
		d.tables.vips[keys[i]] = values[i]
	}
	var errs []error
	putAll(d.maps.Vips, keys, values, func(at int, err error) {
		errs = append(errs, fmt.Errorf("add vip %s: %w", want.VIPs[at], roomFor("vip", d.maps.Vips, err)))
	})
	return errors.Join(errs...)
}

func (d *Dataplane) removeVIPs(want Desired) error {
	keep := make(map[pontoonAddr]bool, len(want.VIPs))
	for _, vip := range want.VIPs {
		keep[vipKey(vip)] = true
	}
	var errs []error
	for key := range d.tables.vips {
		if keep[key] {
			continue
		}
		if err := d.maps.Vips.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("remove vip: %w", err))
			continue
		}
		delete(d.tables.vips, key)
	}
	return errors.Join(errs...)
}
