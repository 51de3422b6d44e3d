package transport

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"time"
)

// replFlushBytes is how much is gathered before it is written. It is a few TLS
// records, and little enough not to add lag.
const replFlushBytes = 64 << 10

// replCalm is how long a stream must have run since the last snapshot, in units
// of the longest wait, before the next snapshot is begun with the shortest wait.
const replCalm = 10

// replStream writes one connection's frames: snapshot, changes, keepalives.
type replStream struct {
	p     *replPeer
	conn  net.Conn
	terms replTerms

	// turn holds one token; who has it puts frames in order and writes them. A
	// channel and not a mutex, because a write may take long.
	turn      chan struct{}
	out       []byte
	lastWrite time.Time
	broken    bool // a write failed: the peer cannot be told anything any more

	compared uint64                // digests sent, for compare alone
	repairs  chan replRepair       // from compare to write
	repaired chan struct{}         // the repair's end was acknowledged
	answers  chan replDigestAnswer // from readAcks to compare

	mourning replMourning // of compare alone
}

func newReplStream(p *replPeer, conn net.Conn, terms replTerms) *replStream {
	p.mu.Lock()
	p.terms = terms
	p.mu.Unlock()
	return &replStream{
		p: p, conn: conn, terms: terms, turn: make(chan struct{}, 1),
		repairs: make(chan replRepair, 1), repaired: make(chan struct{}, 1),
		answers: make(chan replDigestAnswer, 1),
	}
}

// write alternates between a snapshot and the stream of changes until the
// connection ends.
func (s *replStream) write(ctx context.Context) error {
	cfg := &s.p.r.cfg
	wait := newReplBackoff(cfg.ReconnectMin, cfg.ReconnectMax)
	why := replBehind{cause: ReplicationCauseReconnect}
	for generation := uint64(1); ; generation++ {
		complete, err := s.snapshot(ctx, generation, why)
		if err != nil {
			return err
		}
		began := time.Now()
		if complete {
			if err := s.stream(ctx); err != nil {
				return err
			}
		}
		why = s.p.behind()
		if complete && time.Since(began) > replCalm*cfg.ReconnectMax {
			wait.reset()
		}
		if !replSleep(ctx, wait.next()) {
			return ctx.Err()
		}
	}
}

// snapshot sends everything that lives here. Between two chunks it sends what
// was published meanwhile; REPLICATION.md says why that is right. It is not
// complete when the peer fell behind on the way: then everything was sent, but
// not the mark that says so.
func (s *replStream) snapshot(ctx context.Context, generation uint64, why replBehind) (complete bool, err error) {
	p := s.p
	p.beginSnapshot(why)
	p.r.log.open(p.cursor)
	if err := s.control(ctx, replFrameSnapshotBegin, binary.BigEndian.AppendUint64(nil, generation), replMarkNone); err != nil {
		return false, err
	}
	records, behind, err := s.chunks(ctx, p.r.cfg.Source.Snapshot(ctx), replFlagSnapshot, false)
	if behind || err != nil {
		return false, err
	}
	p.named(records)
	end := binary.BigEndian.AppendUint64(nil, generation)
	return true, s.control(ctx, replFrameSnapshotEnd, binary.BigEndian.AppendUint64(end, records), replMarkSnapshot)
}

// chunks sends an iteration over the source, in frames with the given flag, and between two pieces of it, and
// behind the last, what was published meanwhile. A peer that falls behind gets
// the rest of the iteration nevertheless, unless it is to be given up then.
func (s *replStream) chunks(ctx context.Context, source iter.Seq2[[]byte, error], flag uint8, giveUp bool) (records uint64, behind bool, err error) {
	log, size := s.p.r.log, s.p.r.cfg.RecordSize
	for chunk, err := range source {
		if err != nil {
			return records, false, fmt.Errorf("read snapshot: %w", err)
		}
		if len(chunk)%size != 0 {
			return records, false, fmt.Errorf("snapshot chunk of %d bytes is not whole records of %d", len(chunk), size)
		}
		if err := s.chunk(ctx, chunk, flag); err != nil {
			return records, false, err
		}
		records += uint64(len(chunk) / size)
		behind, err := s.changes(ctx, log.end())
		if err != nil || (behind && giveUp) {
			return records, behind, err
		}
	}
	if ctx.Err() != nil {
		return records, false, ctx.Err()
	}
	behind, err = s.changes(ctx, log.end())
	return records, behind, err
}

// stream sends changes as they come, and repairs as they are asked for, until the
// peer falls behind.
func (s *replStream) stream(ctx context.Context) error {
	for {
		behind, err := s.changes(ctx, replNoLimit)
		if behind || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-s.p.cursor.wake:
		case r := <-s.repairs:
			if err := s.repair(ctx, r); err != nil {
				return err
			}
		}
	}
}

// changes sends the queued records that lie before limit.
func (s *replStream) changes(ctx context.Context, limit uint64) (behind bool, err error) {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	p := s.p
	for {
		place := len(s.out)
		s.out = appendReplFrame(s.out, replFrame{})
		var n int
		var at int64
		var ok bool
		s.out, n, at, ok = p.r.log.next(p.cursor, limit, p.r.cfg.BatchRecords, s.out)
		if n == 0 {
			s.out = s.out[:place]
			return !ok, s.flush(ctx)
		}
		if err := s.seal(place, n, 0, replSent{records: uint64(n), at: at, change: true}); err != nil {
			return false, err
		}
		if len(s.out) >= replFlushBytes {
			if err := s.flush(ctx); err != nil {
				return false, err
			}
		}
	}
}

// chunk sends a piece of the snapshot in frames of a batch each. It is not
// interleaved with changes: they wait for the whole piece.
func (s *replStream) chunk(ctx context.Context, records []byte, flag uint8) error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	size := s.p.r.cfg.RecordSize
	now := s.p.r.now()
	for len(records) > 0 {
		n := min(len(records)/size, s.p.r.cfg.BatchRecords)
		place := len(s.out)
		s.out = appendReplFrame(s.out, replFrame{})
		s.out = append(s.out, records[:n*size]...)
		records = records[n*size:]
		if err := s.seal(place, n, flag, replSent{records: uint64(n), at: now}); err != nil {
			return err
		}
		if len(s.out) >= replFlushBytes {
			if err := s.flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// seal converts the n records behind the header at place to the version the
// peer reads, and writes the header.
func (s *replStream) seal(place, n int, flag uint8, sent replSent) error {
	cfg := &s.p.r.cfg
	payload := s.out[place+replFrameHeader:]
	if s.terms.version != cfg.RecordVersions[0] {
		if err := cfg.Convert(cfg.RecordVersions[0], s.terms.version, payload); err != nil {
			return fmt.Errorf("convert records to version %d: %w", s.terms.version, err)
		}
	}
	appendReplFrame(s.out[:place], replFrame{
		length: uint32(len(payload)), typ: replFrameRecords, flags: flag,
		sequence: s.p.sending(sent, replMarkNone), count: uint32(n),
	})
	return nil
}

// control sends a frame without records at once.
func (s *replStream) control(ctx context.Context, typ replFrameType, payload []byte, mark replMark) error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	return s.controlLocked(ctx, typ, payload, mark)
}

func (s *replStream) controlLocked(ctx context.Context, typ replFrameType, payload []byte, mark replMark) error {
	sequence := s.p.sending(replSent{}, mark)
	s.out = appendReplFrame(s.out, replFrame{length: uint32(len(payload)), typ: typ, sequence: sequence})
	s.out = append(s.out, payload...)
	return s.flush(ctx)
}

// flush writes what was gathered. It waits as long as the peer shows signs of
// life: readAcks ends the stream when it does not.
func (s *replStream) flush(ctx context.Context) error {
	if len(s.out) == 0 {
		return ctx.Err()
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(s.p.r.cfg.progressTimeout()))
	// Looked at after the deadline is set, so that the shorter one set at the
	// end of ctx is never overwritten.
	if ctx.Err() != nil {
		return ctx.Err()
	}
	_, err := s.conn.Write(s.out)
	s.out = s.out[:0]
	s.lastWrite = time.Now()
	if err == nil {
		return nil
	}
	s.broken = true
	if ctx.Err() == nil && errors.Is(err, os.ErrDeadlineExceeded) {
		return s.p.stuck()
	}
	return fmt.Errorf("write to peer: %w", err)
}

// stuck is the error about a peer that shows signs of life and takes nothing.
func (p *replPeer) stuck() error {
	return fmt.Errorf("peer is alive but has applied nothing for %v", p.r.cfg.progressTimeout())
}

// keepalive speaks up when nothing was written for a while. It runs beside the
// writer because a snapshot's source may take its time.
func (s *replStream) keepalive(ctx context.Context) error {
	ticker := time.NewTicker(s.p.r.cfg.KeepaliveInterval / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-ticker.C:
		}
		select {
		case s.turn <- struct{}{}:
		default:
			continue // the writer is at it: no need to speak up
		}
		var err error
		if time.Since(s.lastWrite) >= s.p.r.cfg.KeepaliveInterval/2 {
			err = s.controlLocked(ctx, replFrameKeepalive, nil, replMarkNone)
		}
		<-s.turn
		if err != nil {
			return err
		}
	}
}

// readAcks takes the peer's acknowledgements. An acknowledgement that says
// nothing new is the peer's sign of life.
func (s *replStream) readAcks(ctx context.Context) error {
	cfg := &s.p.r.cfg
	rd := bufio.NewReaderSize(s.conn, 4096)
	var buf []byte
	for {
		_ = s.conn.SetReadDeadline(time.Now().Add(cfg.StallTimeout))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		frame, payload, err := readReplFrame(rd, cfg.RecordSize, buf)
		if err != nil {
			return replStall(ctx, err, cfg.StallTimeout)
		}
		buf = payload
		switch frame.typ {
		case replFrameAck:
			repaired, err := s.p.acknowledge(frame.sequence)
			if err != nil {
				return err
			}
			if repaired {
				replPoke(s.repaired)
			}
		case replFrameDigestAnswer:
			if err := s.answered(payload); err != nil {
				return err
			}
		case replFrameBye:
			return fmt.Errorf("%w: %s", errReplEnded, payload)
		default:
			return fmt.Errorf("frame type %d instead of an acknowledgement: %w", frame.typ, ErrReplicationMalformed)
		}
	}
}

// bye tells the peer why the stream ends, if it listens.
func (s *replStream) bye(reason string) {
	if s.broken {
		return
	}
	s.broken = replSayBye(s.conn, reason) != nil
}

// replSayBye sends a bye frame. It has no place in the sequence.
func replSayBye(conn net.Conn, reason string) error {
	reason = replReason(reason)
	b := appendReplFrame(nil, replFrame{length: uint32(len(reason)), typ: replFrameBye})
	_ = conn.SetWriteDeadline(time.Now().Add(replGoodbye))
	_, err := conn.Write(append(b, reason...))
	return err
}

// replStall turns the end of a read deadline into words.
func replStall(ctx context.Context, err error, limit time.Duration) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("peer was silent for %v: %w", limit, err)
	}
	return err
}
