package bpf

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
)

// Flow is one connection, as shown to people.
type Flow struct {
	Protocol  uint8
	Client    netip.AddrPort
	VIP       netip.AddrPort
	SNAT      netip.AddrPort // what the endpoint sees as its client
	Endpoint  netip.AddrPort
	Service   uint32
	State     FlowState
	Owner     bool  // this node forwarded its last packet
	OwnerSlot uint8 // of the node that did; Slots: that node has died
	Age, Idle time.Duration
	Packets   uint64 // both directions
	Bytes     uint64 // both directions, IP packets
	HalfOpen  bool
	Ended     bool // by user space; whoever still sends is told so
}

// dump yields the content of a flow map; see flowTable.
func dump(ctx context.Context, m *ebpf.Map) iter.Seq2[chunk, error] {
	return func(yield func(chunk, error) bool) {
		var cursor ebpf.MapBatchCursor
		size := dumpChunk
		keys, values := make([]pontoonFlowKey, size), make([]pontoonFlow, size)
		for {
			if err := ctx.Err(); err != nil {
				yield(chunk{}, err)
				return
			}
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			done := errors.Is(err, ebpf.ErrKeyNotExist)
			if err != nil && !done {
				yield(chunk{}, fmt.Errorf("dump %s: %w", m, err))
				return
			}
			if n > 0 && !yield(chunk{keys[:n], values[:n]}, nil) {
				return
			}
			if done {
				return
			}
		}
	}
}

type chunk struct {
	keys   []pontoonFlowKey
	values []pontoonFlow
}

// connections yields every connection of a flow map: its forward half, and the reply half as far
// as it is there.
func connections(ctx context.Context, m flowTable) iter.Seq2[connection, error] {
	return func(yield func(connection, error) bool) {
		for part, err := range m.dump(ctx) {
			if err != nil {
				yield(connection{}, err)
				return
			}
			for c, err := range part.connections(m) {
				if !yield(c, err) || err != nil {
					return
				}
			}
		}
	}
}

// connections yields those whose forward half is in the chunk. It ends after an error.
func (part chunk) connections(m flowTable) iter.Seq2[connection, error] {
	return func(yield func(connection, error) bool) {
		for i := range part.keys {
			c := connection{key: part.keys[i], forward: part.values[i]}
			if c.forward.reply() {
				continue
			}
			found, err := partner(m, &c.key, &c.forward, &c.reply)
			if err != nil {
				yield(c, err)
				return
			}
			if !found {
				c.reply = pontoonFlow{LastSeen: c.forward.LastSeen}
			}
			if !yield(c, nil) {
				return
			}
		}
	}
}

// connection is both halves of one.
type connection struct {
	key            pontoonFlowKey // of the forward half
	forward, reply pontoonFlow
}

// idle is the age of the last packet in either direction. It is not above the age of the
// connection, of which only the unit is known in which it is counted.
func (c *connection) idle(now instant) time.Duration {
	age := now.age(c.forward.Created) + now.duration(1<<createdShift)
	return min(now.idle(c.forward.LastSeen), now.idle(c.reply.LastSeen), age)
}

func (c *connection) flow(now instant) Flow {
	f := &c.forward
	return Flow{
		Protocol:  c.key.Proto,
		Client:    addrPort(c.key.Saddr, c.key.Sport),
		VIP:       addrPort(c.key.Daddr, c.key.Dport),
		SNAT:      addrPort(f.NewSaddr, f.NewSport),
		Endpoint:  addrPort(f.NewDaddr, f.NewDport),
		Service:   uint32(f.Service),
		State:     FlowState(f.State),
		Owner:     !f.replica(),
		OwnerSlot: f.OwnerSlot,
		Age:       now.age(f.Created),
		Idle:      c.idle(now),
		Packets:   f.packets() + c.reply.packets(),
		Bytes:     f.bytes() + c.reply.bytes(),
		HalfOpen:  FlowState(f.State) < StateEstablished,
		Ended:     f.doomed(),
	}
}

// Flows yields one Flow per connection, established ones first, then half-open ones. It reads the
// tables while they change: see dump. It ends after yielding an error.
func (d *Dataplane) Flows(ctx context.Context) iter.Seq2[Flow, error] {
	return func(yield func(Flow, error) bool) {
		for _, m := range d.flowTables() {
			now, err := d.clock.now()
			if err != nil {
				yield(Flow{}, fmt.Errorf("list flows: %w", err))
				return
			}
			for c, err := range connections(ctx, m) {
				if err != nil {
					yield(Flow{}, fmt.Errorf("list flows: %w", err))
					return
				}
				if !yield(c.flow(now), nil) {
					return
				}
			}
		}
	}
}

// Flush removes every flow of a service, complete or not, and returns how many connections that
// were. Their clients find out with the next packet.
func (d *Dataplane) Flush(ctx context.Context, service uint32) (int, error) {
	d.flowMu.Lock()
	defer d.flowMu.Unlock()
	removed := 0
	for _, m := range d.flowTables() {
		now, err := d.clock.now()
		if err != nil {
			return removed, fmt.Errorf("flush service %d: %w", service, err)
		}
		var gone removal
		var records []byte
		for c, err := range connections(ctx, m) {
			if err != nil {
				return removed, fmt.Errorf("flush service %d: %w", service, err)
			}
			if uint32(c.forward.Service) != service {
				continue
			}
			removed++
			gone.add(c.key, &c.forward)
			if m == d.flowTable() {
				d.tombs.note(&c.key, now.stamp(0), now)
			}
			if m == d.flowTable() && !c.forward.quiet() {
				records = c.appendRecord(records, now, opDelete, reasonClose)
			}
		}
		if err := d.remove(m, gone); err != nil {
			return removed, fmt.Errorf("flush service %d: %w", service, err)
		}
		d.emit(records)
	}
	return removed, nil
}
