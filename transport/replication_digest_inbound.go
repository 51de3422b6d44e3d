package transport

import (
	"context"
	"encoding/binary"
	"fmt"
)

// applyDigests takes the frames that protocols 2 and 3 add.
func (in *replInbound) applyDigests(ctx context.Context, frame replFrame, payload []byte) error {
	if in.terms.protocol < frame.typ.protocol() {
		return fmt.Errorf("frame type %d in protocol %d: %w", frame.typ, in.terms.protocol, ErrReplicationMalformed)
	}
	switch frame.typ {
	case replFrameDigest:
		replReplace(in.digests, parseReplDigest(payload, false))
		return nil
	case replFrameOrphanDigest:
		replReplace(in.orphanDigests, parseReplDigest(payload, true))
		return nil
	case replFrameOrphansEnd:
		return in.applyOrphansEnd(payload)
	case replFrameRepairBegin:
		return in.applyRepairBegin(payload)
	default:
		return in.applyRepairEnd(ctx, payload)
	}
}

func (in *replInbound) applyRepairBegin(payload []byte) error {
	number := binary.BigEndian.Uint64(payload)
	if in.snapshot || in.generation == 0 || number == 0 {
		return fmt.Errorf("repair %d outside of a stream of changes: %w", number, ErrReplicationMalformed)
	}
	buckets, err := parseReplBuckets(payload[8:])
	if err != nil {
		return err
	}
	in.repair, in.named = number, 0
	in.r.cfg.Digests.RepairBegin(in.peer, buckets)
	return nil
}

func (in *replInbound) applyRepairEnd(ctx context.Context, payload []byte) error {
	number, records := binary.BigEndian.Uint64(payload), binary.BigEndian.Uint64(payload[8:])
	if in.repair == 0 || number != in.repair || records != in.named {
		return fmt.Errorf("end of repair %d with %d records, in repair %d with %d: %w",
			number, records, in.repair, in.named, ErrReplicationMalformed)
	}
	in.repair = 0
	if err := in.r.cfg.Digests.RepairEnd(ctx, in.peer); err != nil {
		return fmt.Errorf("end repair: %w", err)
	}
	in.r.mu.Lock()
	in.view.repairs++
	in.r.mu.Unlock()
	return nil
}

// compare answers digests. It runs beside the reader, which a look at a million
// records must not hold up; a digest that comes meanwhile waits, and of two the
// newer counts.
func (in *replInbound) compare(ctx context.Context) error {
	cfg := &in.r.cfg
	for {
		var theirs replDigest
		select {
		case <-ctx.Done():
			return ctx.Err()
		case theirs = <-in.digests:
		case theirs = <-in.orphanDigests:
		}
		answer := replDigestAnswer{number: theirs.number, status: replDigestOther}
		if theirs.version == cfg.DigestVersion {
			held, view, err := in.held(ctx, &theirs)
			switch {
			case err == nil && view != theirs.view:
				answer.status = replDigestNotNow
			case err == nil:
				answer = compareReplDigest(theirs, cfg.DigestVersion, held)
			case ctx.Err() == nil:
				cfg.Logger.Warn("replication from peer: no comparison", "peer", in.peer, "err", err)
				answer.status = replDigestFailed
			}
		}
		payload := appendReplDigestAnswer(nil, answer)
		frame := appendReplFrame(nil, replFrame{length: uint32(len(payload)), typ: replFrameDigestAnswer})
		select {
		case <-ctx.Done():
			return ctx.Err()
		case in.answers <- append(frame, payload...):
		}
	}
}

// held is what a digest from the peer is compared with, and under what view. Nothing
// is summed up under another view than the peer's.
func (in *replInbound) held(ctx context.Context, theirs *replDigest) (sums []uint64, view uint64, err error) {
	if !theirs.orphans {
		sums, err = in.r.cfg.Digests.DigestOf(ctx, in.peer)
		return sums, 0, err
	}
	if view := in.r.cfg.Orphans.OrphanView(); view != theirs.view {
		return nil, view, nil
	}
	d, err := in.r.orphanDigest(ctx)
	return d.Sums, d.View, err
}
