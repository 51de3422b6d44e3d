package bpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cilium/ebpf"
)

// affinityEvery is how often remembered clients are looked through for those whose time is over.
// The programs look at the time themselves, so nothing depends on it but room.
const affinityEvery = 10 * time.Second

// affinityOf returns how long clients of a service are remembered. While nobody has said anything
// about services yet, any time may be right.
func (d *Dataplane) affinityOf(service uint16) time.Duration {
	r, _, told := d.idle.rules(uint32(service))
	if !told {
		return maxIdleTimeout
	}
	return r.affinity
}

// remember takes note that a client was with an endpoint so long ago. What is remembered here and
// is younger stays.
func (d *Dataplane) remember(client pontoonAddr, service, endpoint uint16, ago time.Duration, now instant) error {
	if endpoint == 0 || ago > d.affinityOf(service) || d.affinityOf(service) == 0 {
		return nil
	}
	key := pontoonAffinityKey{Client: client, Service: service}
	value := pontoonAffinity{Endpoint: endpoint, Used: now.created(ago)}
	var held pontoonAffinity
	err := d.maps.Affinities.Lookup(&key, &held)
	switch {
	case errors.Is(err, ebpf.ErrKeyNotExist):
	case err != nil:
		return fmt.Errorf("look up affinity: %w", err)
	case int32(held.Used-value.Used) >= 0:
		return nil
	}
	if err := d.maps.Affinities.Update(&key, &value, ebpf.UpdateAny); err != nil {
		return fmt.Errorf("write affinity: %w", err)
	}
	return nil
}

// affinityRecord says that a client was with an endpoint.
func affinityRecord(to []byte, key *pontoonAffinityKey, value *pontoonAffinity, slot uint8, now instant) []byte {
	r := pontoonFlowRecord{
		Client: key.Client, Service: key.Service, EndpointId: value.Endpoint,
		Op: opAffinity, Reason: reasonSnapshot, OwnerSlot: slot, IdleMs: milliseconds(now.age(value.Used)),
	}
	return r.append(to)
}

// affinityChunk is one look at the remembered clients.
type affinityChunk struct {
	keys   []pontoonAffinityKey
	values []pontoonAffinity
}

// dumpAffinities yields them in chunks, like dump.
func dumpAffinities(ctx context.Context, m *ebpf.Map) iter.Seq2[affinityChunk, error] {
	return func(yield func(affinityChunk, error) bool) {
		var cursor ebpf.MapBatchCursor
		keys, values := make([]pontoonAffinityKey, dumpChunk), make([]pontoonAffinity, dumpChunk)
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			done := errors.Is(err, ebpf.ErrKeyNotExist)
			if err = errors.Join(ctx.Err(), unless(done, err)); err != nil {
				yield(affinityChunk{}, fmt.Errorf("dump affinities: %w", err))
				return
			}
			if n > 0 && !yield(affinityChunk{keys[:n], values[:n]}, nil) {
				return
			}
			if done {
				return
			}
		}
	}
}

func unless(expected bool, err error) error {
	if expected {
		return nil
	}
	return err
}

// affinityRecords yields the clients that are remembered, as records.
func (d *Dataplane) affinityRecords(ctx context.Context) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for part, err := range dumpAffinities(ctx, d.maps.Affinities) {
			if err != nil {
				yield(nil, err)
				return
			}
			now, err := d.clock.now()
			if err != nil {
				yield(nil, err)
				return
			}
			var records []byte
			for i := range part.keys {
				if now.age(part.values[i].Used) <= d.affinityOf(part.keys[i].Service) {
					records = affinityRecord(records, &part.keys[i], &part.values[i], d.opts.Slot, now)
				}
			}
			if len(records) > 0 && !yield(records, nil) {
				return
			}
		}
	}
}

// sweepAffinities forgets clients whose time is over, and those of services that are gone.
func (d *Dataplane) sweepAffinities(ctx context.Context) error {
	now, err := d.clock.now()
	if err != nil {
		return fmt.Errorf("sweep affinities: %w", err)
	}
	var stale []pontoonAffinityKey
	for part, err := range dumpAffinities(ctx, d.maps.Affinities) {
		if err != nil {
			return err
		}
		for i := range part.keys {
			keep := d.affinityOf(part.keys[i].Service)
			if keep == 0 || now.age(part.values[i].Used) > keep+now.duration(1<<createdShift) {
				stale = append(stale, part.keys[i])
			}
		}
	}
	for i := range stale {
		if err := d.maps.Affinities.Delete(&stale[i]); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("forget affinity: %w", err)
		}
	}
	return nil
}
