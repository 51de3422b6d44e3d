package bpf

import (
	"context"
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

// sweepLoop takes out idle flows. The pause after a sweep is twenty times the sweep, at least a
// second, so that a large table costs a twentieth of one CPU and not more.
func (d *Dataplane) sweepLoop(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
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
		timer.Reset(max(minSweep, sweepCPUShareInverse*time.Since(start)))
	}
}

// sweep looks at every entry once, counts, and removes connections of which both halves have been
// idle for too long.
func (d *Dataplane) sweep(ctx context.Context) error {
	figures := tally{places: map[place]EndpointStats{}, census: make(census, len(d.accounts.counts))}
	before := d.accounts.read(nil)
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
	d.accounts.audit(before, figures.census)
	d.totals.swept(figures, d.idle.knows)
	return nil
}

// sweepChunk counts what stays. Of a connection that goes, neither half is counted, whichever of
// them the dump brings first: its figures go on in the record of its end.
func (d *Dataplane) sweepChunk(m *ebpf.Map, part chunk, now instant, figures *tally) error {
	count := func(i int) {
		if key, f := &part.keys[i], &part.values[i]; m == d.maps.Flows {
			figures.count(key, f)
		} else if !f.reply() {
			figures.halfOpen++
		}
	}
	var idle []int
	for i := range part.keys {
		if d.expired(part.keys[i].Proto, &part.values[i], now) {
			idle = append(idle, i)
			continue
		}
		count(i)
	}
	if len(idle) == 0 {
		return nil
	}
	return d.expire(m, part, idle, now, count)
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

// expire removes the connections of the candidates whose other half is idle too, and calls stays
// for the others. Everything is read again just before it is deleted: a packet may have come by
// since the dump.
func (d *Dataplane) expire(m *ebpf.Map, part chunk, candidates []int, now instant, stays func(int)) error {
	d.flowMu.Lock()
	defer d.flowMu.Unlock()
	var gone removal
	var records []byte
	for _, i := range candidates {
		c := candidate{key: part.keys[i], seen: part.values[i]}
		if err := d.judge(m, &c, now); err != nil {
			return err
		}
		if c.stays {
			stays(i)
		}
		gone.forwards = append(gone.forwards, c.gone.forwards...)
		gone.replies = append(gone.replies, c.gone.replies...)
		records = append(records, c.record...)
	}
	if err := d.remove(m, gone); err != nil {
		return err
	}
	d.emit(records)
	return nil
}

// candidate is one half that has been idle for too long, and what judge decides about it. A reply
// half whose forward half is idle too neither stays nor is removed: it goes with that half.
type candidate struct {
	key    pontoonFlowKey
	seen   pontoonFlow
	stays  bool
	gone   removal
	record []byte // that the connection is gone, if it was ours
}

func (d *Dataplane) judge(m *ebpf.Map, c *candidate, now instant) error {
	var current, other pontoonFlow
	paired, err := partner(m, &c.key, &c.seen, &other)
	if err != nil {
		return err
	}
	if paired && !d.expired(c.key.Proto, &other, now) {
		c.stays = true
		return nil
	}
	if paired && c.seen.reply() {
		return nil
	}
	found, err := lookup(m, c.key, &current)
	if err != nil || !found {
		return err
	}
	if current.LastSeen != c.seen.LastSeen || current.State != c.seen.State || otherKey(&c.key, &current) != otherKey(&c.key, &c.seen) {
		c.stays = true
		return nil
	}
	if current.reply() { // what is left of a connection whose forward half is gone
		c.gone.replies = []pontoonFlowKey{c.key}
		return nil
	}
	c.gone.forwards = []pontoonFlowKey{c.key}
	whole := connection{key: c.key, forward: current, reply: pontoonFlow{LastSeen: current.LastSeen}}
	if paired {
		c.gone.replies = []pontoonFlowKey{otherKey(&c.key, &current)}
		whole.reply = other
	}
	if m == d.maps.Flows && d.answersFor(&current) {
		c.record = whole.appendRecord(nil, now, opDelete, reasonExpire)
	}
	return nil
}
