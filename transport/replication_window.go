package transport

import (
	"fmt"
	"time"
)

// replMark says what a frame is the end of.
type replMark int

const (
	replMarkNone replMark = iota
	replMarkSnapshot
	replMarkRepair
)

// replWindow is what was sent on one stream and is not acknowledged yet. It is
// bounded by what the socket buffers of both ends hold.
type replWindow struct {
	entries  []replSent // from first on
	first    int
	open     uint64 // records in entries
	sequence uint64 // last sent
	applied  uint64 // last acknowledged
	progress time.Time
	marker   uint64    // sequence of the snapshot's end, 0 when it is not sent
	marked   time.Time // when a snapshot's end was last acknowledged on this stream
	repair   uint64    // sequence of the repair's end, 0 when none is open
}

type replSent struct {
	sequence uint64
	records  uint64
	at       int64 // when its oldest record was published
	change   bool  // and not a piece of a snapshot or a repair
}

// replAcked is what an acknowledgement covers.
type replAcked struct {
	records  uint64
	at       int64 // when the oldest record of the last frame with records was published
	snapshot bool  // the snapshot's end
	repair   bool  // the repair's end
}

// add puts a frame into the window and returns its sequence.
func (w *replWindow) add(f replSent, mark replMark) uint64 {
	if w.first == len(w.entries) {
		w.entries, w.first = w.entries[:0], 0
		w.progress = time.Now()
	} else if w.first > 64 && w.first > len(w.entries)/2 {
		w.entries = w.entries[:copy(w.entries, w.entries[w.first:])]
		w.first = 0
	}
	w.sequence++
	f.sequence = w.sequence
	w.open += f.records
	w.entries = append(w.entries, f)
	switch mark {
	case replMarkSnapshot:
		w.marker = w.sequence
	case replMarkRepair:
		w.repair = w.sequence
	}
	return w.sequence
}

// ack removes what the peer has applied and counts how long its changes took.
func (w *replWindow) ack(sequence uint64, now int64, lags *replLags) (a replAcked, err error) {
	if sequence > w.sequence || sequence < w.applied {
		return a, fmt.Errorf("frame %d acknowledged, %d to %d are open: %w",
			sequence, w.applied, w.sequence, ErrReplicationMalformed)
	}
	if sequence > w.applied {
		w.progress = time.Now()
	}
	w.applied = sequence
	for w.first < len(w.entries) && w.entries[w.first].sequence <= sequence {
		if e := w.entries[w.first]; e.records > 0 {
			a.records += e.records
			a.at = e.at
			if e.change {
				lags.add(now, now-e.at, e.records)
			}
		}
		w.first++
	}
	w.open -= a.records
	if a.snapshot = w.marker != 0 && sequence >= w.marker; a.snapshot {
		w.marker, w.marked = 0, time.Now()
	}
	if a.repair = w.repair != 0 && sequence >= w.repair; a.repair {
		w.repair = 0
	}
	return a, nil
}

// stuck says that something is open and nothing was acknowledged for so long.
func (w *replWindow) stuck(limit time.Duration) bool {
	return w.first < len(w.entries) && time.Since(w.progress) > limit
}

// oldest is when the oldest record that is not acknowledged was published.
func (w *replWindow) oldest() int64 {
	for _, e := range w.entries[w.first:] {
		if e.records > 0 {
			return e.at
		}
	}
	return 0
}

// reset makes the window ready for the next stream and returns how many records
// were not acknowledged on this one.
func (w *replWindow) reset() (abandoned uint64) {
	abandoned = w.open
	*w = replWindow{entries: w.entries[:0]}
	return abandoned
}
