package bpf

import (
	"encoding/binary"
	"sync/atomic"
)

// epochs knows under which mastership services are forwarded: here, and by what others say of
// themselves. The kernel's entries have no room for it, and nobody needs it after a restart:
// who owns what is settled anew by the next word of its owner.
type epochs struct {
	own     atomic.Pointer[[ids]uint32] // by service id; nil: nobody has said
	learned map[uint32]uint32           // by owner's slot and service id; guarded by flowMu
}

func (e *epochs) set(services []Service) {
	next := &[ids]uint32{}
	for i := range services {
		next[uint16(services[i].ID)] = services[i].Epoch
	}
	if now := e.own.Load(); now == nil || *now != *next {
		e.own.Store(next)
	}
}

// here is the epoch under which this node forwards a service.
func (e *epochs) here(service uint16) uint32 {
	if own := e.own.Load(); own != nil {
		return own[service]
	}
	return 0
}

// learn takes note of what an owner says about itself. Call with flowMu held.
func (e *epochs) learn(owner uint8, service uint16, epoch uint32) {
	place := uint32(owner)<<16 | uint32(service)
	if epoch == 0 {
		delete(e.learned, place)
		return
	}
	if e.learned == nil {
		e.learned = map[uint32]uint32{}
	}
	e.learned[place] = epoch
}

// of is the epoch that an owner has named last. Call with flowMu held.
func (e *epochs) of(owner uint8, service uint16) uint32 {
	return e.learned[uint32(owner)<<16|uint32(service)]
}

// finish makes records out of the ring, or of this node's own making, what leaves this node: with
// the epoch in what this node says about its own flows, and in the layout of the wire.
func (d *Dataplane) finish(records []byte) {
	for at := 0; at+RecordSize <= len(records); at += RecordSize {
		b := records[at : at+RecordSize]
		reason := b[recordReason]
		if b[recordOwner] == d.opts.Slot && b[recordOp] != opAffinity && reason != reasonHearsay && reason != reasonOrphan {
			binary.LittleEndian.PutUint32(b[recordEpoch:], d.epochs.here(binary.LittleEndian.Uint16(b[recordService:])))
		}
		toWire(b)
	}
}
