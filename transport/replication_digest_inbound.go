package transport

import (
	"context"
	"encoding/binary"
	"fmt"
)

// applyDigests takes the frames that protocol 2 adds.
func (in *replInbound) applyDigests(ctx context.Context, frame replFrame, payload []byte) error {
	if in.terms.protocol < replProtocolDigests {
		return fmt.Errorf("frame type %d in protocol %d: %w", frame.typ, in.terms.protocol, ErrReplicationMalformed)
	}
	switch frame.typ {
	case replFrameDigest:
		replReplace(in.digests, parseReplDigest(payload))
		return nil
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
		}
		answer := replDigestAnswer{number: theirs.number, status: replDigestOther}
		if theirs.version == cfg.DigestVersion {
			held, err := cfg.Digests.DigestOf(ctx, in.peer)
			if err == nil {
				answer = compareReplDigest(theirs, cfg.DigestVersion, held)
			} else if ctx.Err() == nil {
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
