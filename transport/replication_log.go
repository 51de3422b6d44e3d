package transport

import (
	"fmt"
	"slices"
	"sync"
)

// replLog is the queue of published records, one for all peers. Records lie
// densely in segments; every peer reads them through a cursor of its own. What
// all cursors have passed is reused. So a record is copied in once however many
// peers there are, nothing is allocated for a record or a batch, and the memory
// is bounded by the record count even if every batch holds a single record.
type replLog struct {
	recordSize     int
	segmentRecords int
	batch          uint64
	bound          uint64

	mu       sync.Mutex
	segments []*replSegment // consecutive, the first begins at base
	base     uint64         // position of the first record of segments[0]
	head     uint64         // position of the next record to be published
	flushed  uint64         // cursors may read up to here
	free     []*replSegment
	cursors  []*replCursor
}

type replSegment struct {
	data []byte
	at   []int64 // when each record was published
}

type replCursorState int

const (
	replCursorIdle   replCursorState = iota // no stream: nothing is kept for it
	replCursorActive                        // everything from pos on is kept
	replCursorBehind                        // needs a snapshot; nothing is kept
)

// replCursor is one peer's place in the log. Its fields but wake belong to the
// log's lock.
type replCursor struct {
	wake    chan struct{} // there is something to read, or the cursor fell behind
	state   replCursorState
	pos     uint64
	dropped uint64
	lost    uint64 // of dropped, when it fell behind last
	behind  replBehind
}

// replBehind is why a cursor is behind.
type replBehind struct {
	cause ReplicationCause
	text  string
}

const (
	replNoLimit      = ^uint64(0)
	replFreeSegments = 64 // 8 MiB at the defaults: what a load beyond the peers' speed cycles through
)

func newReplLog(recordSize, batch, bound int) *replLog {
	return &replLog{
		recordSize:     recordSize,
		segmentRecords: batch * 4,
		batch:          uint64(batch),
		bound:          uint64(bound),
	}
}

func (l *replLog) addCursor() *replCursor {
	c := &replCursor{wake: make(chan struct{}, 1)}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cursors = append(l.cursors, c)
	return c
}

func (l *replLog) removeCursor(c *replCursor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if i := slices.Index(l.cursors, c); i >= 0 {
		l.cursors = slices.Delete(l.cursors, i, i+1)
	}
	c.state = replCursorIdle
	l.trim()
}

// append stores records. arm says that a batch was begun that a timer must
// flush; overflowed that some cursor fell behind.
func (l *replLog) append(records []byte, now int64) (arm, overflowed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	waiting := l.head != l.flushed
	for len(records) > 0 {
		if !l.active() {
			l.drop(uint64(len(records) / l.recordSize))
			break
		}
		before := l.head
		records = l.store(records, now)
		l.drop(l.head - before)
		overflowed = l.checkBound() || overflowed
	}
	l.trim()
	if l.head-l.flushed >= l.batch {
		l.flushLocked()
	}
	return !waiting && l.head != l.flushed, overflowed
}

// store copies what fits into the last segment and returns the rest.
func (l *replLog) store(records []byte, now int64) []byte {
	if l.head == l.base+uint64(len(l.segments)*l.segmentRecords) {
		l.segments = append(l.segments, l.newSegment())
	}
	segment := l.segments[len(l.segments)-1]
	offset := int(l.head-l.base) - (len(l.segments)-1)*l.segmentRecords
	n := min(len(records)/l.recordSize, l.segmentRecords-offset)
	copy(segment.data[offset*l.recordSize:], records[:n*l.recordSize])
	for i := offset; i < offset+n; i++ {
		segment.at[i] = now
	}
	l.head += uint64(n)
	return records[n*l.recordSize:]
}

func (l *replLog) newSegment() *replSegment {
	if n := len(l.free); n > 0 {
		s := l.free[n-1]
		l.free = l.free[:n-1]
		return s
	}
	return &replSegment{
		data: make([]byte, l.segmentRecords*l.recordSize),
		at:   make([]int64, l.segmentRecords),
	}
}

func (l *replLog) active() bool {
	return slices.ContainsFunc(l.cursors, func(c *replCursor) bool { return c.state == replCursorActive })
}

// drop counts n records that a peer with a stream does not get.
func (l *replLog) drop(n uint64) {
	for _, c := range l.cursors {
		if c.state == replCursorBehind {
			c.dropped += n
		}
	}
}

func (l *replLog) checkBound() (overflowed bool) {
	for _, c := range l.cursors {
		if c.state == replCursorActive && l.head-c.pos > l.bound {
			l.fallBehind(c, replBehind{ReplicationCauseOverflow, fmt.Sprintf("more than %d records waited", l.bound)})
			overflowed = true
		}
	}
	return overflowed
}

func (l *replLog) fallBehind(c *replCursor, why replBehind) {
	if c.state != replCursorActive {
		return
	}
	c.lost = l.head - c.pos
	c.dropped += c.lost
	c.state, c.behind = replCursorBehind, why
	replPoke(c.wake)
}

// overrun throws away everything that was not read yet.
func (l *replLog) overrun(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.cursors {
		l.fallBehind(c, replBehind{ReplicationCauseOverrun, reason})
	}
	l.trim()
}

// trim frees the segments that every active cursor has passed.
func (l *replLog) trim() {
	low := l.head
	for _, c := range l.cursors {
		if c.state == replCursorActive {
			low = min(low, c.pos)
		}
	}
	n := 0
	for n < len(l.segments) && l.base+uint64(l.segmentRecords) <= low {
		if len(l.free) < replFreeSegments {
			l.free = append(l.free, l.segments[n])
		}
		l.base += uint64(l.segmentRecords)
		n++
	}
	l.segments = slices.Delete(l.segments, 0, n)
	if len(l.segments) == 0 {
		l.base = l.head
	}
}

func (l *replLog) flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flushed != l.head {
		l.flushLocked()
	}
}

func (l *replLog) flushLocked() {
	l.flushed = l.head
	for _, c := range l.cursors {
		if c.state == replCursorActive && c.pos < l.flushed {
			replPoke(c.wake)
		}
	}
}

// open makes a cursor active at the head: what was published before is not
// read, what is published from now on is.
func (l *replLog) open(c *replCursor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.state, c.pos, c.behind = replCursorActive, l.head, replBehind{}
}

// close makes a cursor idle.
func (l *replLog) close(c *replCursor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c.state = replCursorIdle
	l.trim()
}

// end is the position up to which records may be read now.
func (l *replLog) end() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.flushed
}

// next appends at most max records that lie before limit to dst. n is 0 when
// there are none; ok is false when the cursor is behind. at is when the first of
// them was published.
func (l *replLog) next(c *replCursor, limit uint64, limitRecords int, dst []byte) (out []byte, n int, at int64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.state != replCursorActive {
		return dst, 0, 0, false
	}
	end := min(l.flushed, limit)
	if c.pos >= end {
		return dst, 0, 0, true
	}
	index := int(c.pos-l.base) / l.segmentRecords
	offset := int(c.pos-l.base) % l.segmentRecords
	segment := l.segments[index]
	n = min(limitRecords, int(end-c.pos), l.segmentRecords-offset)
	dst = append(dst, segment.data[offset*l.recordSize:(offset+n)*l.recordSize]...)
	at = segment.at[offset]
	c.pos += uint64(n)
	if offset+n == l.segmentRecords {
		l.trim()
	}
	return dst, n, at, true
}

// replCursorView is what Status says about a cursor.
type replCursorView struct {
	behind  bool
	why     replBehind
	lost    uint64 // dropped when it fell behind
	queued  uint64
	oldest  int64 // when the oldest queued record was published
	dropped uint64
}

func (l *replLog) view(c *replCursor) replCursorView {
	l.mu.Lock()
	defer l.mu.Unlock()
	v := replCursorView{behind: c.state == replCursorBehind, why: c.behind, lost: c.lost, dropped: c.dropped}
	if c.state == replCursorActive && c.pos < l.head {
		v.queued = l.head - c.pos
		place := int(c.pos - l.base)
		v.oldest = l.segments[place/l.segmentRecords].at[place%l.segmentRecords]
	}
	return v
}
