package bpf

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// sweepLoop takes out idle flows. The pause after a sweep is twenty times the sweep, at least a
// second, so that a large table costs a twentieth of one CPU and not more.
func (d *Dataplane) sweepLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	lost := uint64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		start := time.Now()
		if err := d.sweep(ctx); err != nil && ctx.Err() == nil {
			d.log.Warn("flows not swept", "err", err)
		}
		lost = d.watchRing(lost)
		timer.Reset(max(minSweep, sweepCPUShareInverse*time.Since(start)))
	}
}

// watchRing signals Lost when the ring has refused records since the last look.
func (d *Dataplane) watchRing(before uint64) uint64 {
	lost, err := counter(d.maps.Counters, pontoonCounterCOUNTER_RING_LOST)
	if err != nil {
		d.log.Warn("ring counter not read", "err", err)
		return before
	}
	if lost > before {
		d.log.Warn("flow records lost in the ring", "lost", lost-before)
		d.signalLost()
	}
	return lost
}

// sweep looks at every entry once, counts, and removes connections of which both halves have been
// idle for too long.
func (d *Dataplane) sweep(ctx context.Context) error {
	figures := tally{places: map[place]EndpointStats{}}
	for _, m := range []*ebpf.Map{d.maps.Flows, d.maps.HalfOpen} {
		now, err := d.clock.now()
		if err != nil {
			return fmt.Errorf("sweep: %w", err)
		}
		for part, err := range dump(ctx, m) {
			if err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
			if err := d.sweepChunk(m, part, now, &figures); err != nil {
				return fmt.Errorf("sweep: %w", err)
			}
		}
	}
	d.totals.swept(figures, d.idle.knows)
	return nil
}

func (d *Dataplane) sweepChunk(m *ebpf.Map, part chunk, now instant, figures *tally) error {
	var expired []int
	for i := range part.keys {
		key, f := &part.keys[i], &part.values[i]
		if m == d.maps.Flows {
			figures.count(key, f)
		} else if !f.reply() {
			figures.halfOpen++
		}
		if d.expired(key.Proto, f, now) {
			expired = append(expired, i)
		}
	}
	if len(expired) == 0 {
		return nil
	}
	return d.expire(m, part, expired, now)
}

// expired judges one half by itself.
func (d *Dataplane) expired(proto uint8, f *pontoonFlow, now instant) bool {
	limit, known := d.idle.limit(proto, f)
	if !known {
		return false
	}
	idle, ages := d.owners.idle(f, d.opts.Slot, now)
	return ages && idle > limit
}

// expire removes the connections of the candidates whose other half is idle too. Everything is
// read again just before it is deleted: a packet may have come by since the dump.
func (d *Dataplane) expire(m *ebpf.Map, part chunk, candidates []int, now instant) error {
	d.flowMu.Lock()
	defer d.flowMu.Unlock()
	var keys []pontoonFlowKey
	var records []byte
	for _, i := range candidates {
		key, old := part.keys[i], part.values[i]
		pair, record, err := d.expirePair(m, key, &old, now)
		if err != nil {
			return err
		}
		keys = append(keys, pair...)
		records = append(records, record...)
	}
	if err := deleteKeys(m, keys); err != nil {
		return err
	}
	d.emit(records)
	return nil
}

// expirePair returns the keys to delete for one candidate, and the record that says so when the
// connection was ours. A reply half is left to its forward half; one without is deleted alone.
func (d *Dataplane) expirePair(m *ebpf.Map, key pontoonFlowKey, old *pontoonFlow, now instant) ([]pontoonFlowKey, []byte, error) {
	okey := otherKey(&key, old)
	var current, other pontoonFlow
	otherErr := m.Lookup(okey, &other)
	if otherErr != nil && !errors.Is(otherErr, ebpf.ErrKeyNotExist) {
		return nil, nil, fmt.Errorf("look up other half: %w", otherErr)
	}
	paired := otherErr == nil && otherKey(&okey, &other) == key
	if paired && (old.reply() || !d.expired(key.Proto, &other, now)) {
		return nil, nil, nil
	}
	if err := m.Lookup(key, &current); err != nil {
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil, nil, nil
		}
		return nil, nil, fmt.Errorf("look up flow: %w", err)
	}
	if current.LastSeen != old.LastSeen || current.State != old.State || otherKey(&key, &current) != okey {
		return nil, nil, nil
	}
	keys := []pontoonFlowKey{key}
	if paired {
		keys = append(keys, okey)
	}
	if m != d.maps.Flows || current.reply() || current.replica() {
		return keys, nil, nil
	}
	c := connection{key: key, forward: current, reply: other}
	if !paired {
		c.reply = pontoonFlow{LastSeen: current.LastSeen}
	}
	return keys, c.appendRecord(nil, now, opDelete, reasonExpire), nil
}
