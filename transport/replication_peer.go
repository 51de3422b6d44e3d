package transport

import (
	"fmt"
	"time"
)

// behind takes note that the peer no longer gets every change, and returns why.
func (p *replPeer) behind() replBehind {
	p.mu.Lock()
	p.window.marker = 0 // its acknowledgement must not make the stream look complete
	changed := p.enter(ReplicationSnapshot)
	p.mu.Unlock()
	p.moved(ReplicationSnapshot, changed)
	view := p.r.log.view(p.cursor)
	p.r.cfg.Logger.Warn("replication to peer: behind, a snapshot follows",
		"peer", p.peer.Node, "cause", view.why.cause, "reason", view.why.text)
	p.r.tell(ReplicationEvent{
		Peer: p.peer.Node, Kind: ReplicationEventBehind, Records: view.lost,
		Text: fmt.Sprintf("%s misses changes and gets everything anew: %s", p.peer.Node, view.why.text),
	})
	return view.why
}

// beginSnapshot counts a snapshot and makes it the peer's state.
func (p *replPeer) beginSnapshot(why replBehind) {
	p.mu.Lock()
	p.window.marker = 0
	p.began, p.size = time.Now(), 0
	if p.snapshots++; p.snapshots > 1 {
		if why.cause == ReplicationCauseReconnect {
			why.text = p.lastError
		}
		p.resyncs[why.cause]++
		p.last = ReplicationResync{Cause: why.cause, Text: why.text, At: p.began}
	}
	changed := p.enter(ReplicationSnapshot)
	p.mu.Unlock()
	p.moved(ReplicationSnapshot, changed)
}

// named takes note of how many records the running snapshot has.
func (p *replPeer) named(records uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = records
}

// sending puts a frame into the window.
func (p *replPeer) sending(f replSent, mark replMark) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent += f.records
	return p.window.add(f, mark)
}

// acknowledge takes in that the peer has applied everything up to a frame.
// repaired says that a repair's end was among it.
func (p *replPeer) acknowledge(sequence uint64) (repaired bool, err error) {
	p.mu.Lock()
	now := p.r.now()
	a, err := p.window.ack(sequence, now, &p.lags)
	p.acked += a.records
	if a.records > 0 {
		p.lastLag = now - a.at
	}
	var event ReplicationEvent
	changed := false
	if a.snapshot {
		p.snapshotTook, p.snapshotSize = time.Since(p.began), p.size
		event = p.completed()
		changed = p.enter(ReplicationStreaming)
	}
	stuck := p.window.stuck(p.r.cfg.progressTimeout())
	p.mu.Unlock()
	if err != nil {
		return false, err
	}
	if a.snapshot {
		p.moved(ReplicationStreaming, changed)
		p.r.tell(event)
	}
	if stuck {
		return false, p.stuck()
	}
	return a.repair, nil
}

// completed is the event of a snapshot whose end was acknowledged. It is called
// with p.mu held.
func (p *replPeer) completed() ReplicationEvent {
	e := ReplicationEvent{
		Peer: p.peer.Node, Kind: ReplicationEventStreaming, Records: p.snapshotSize, Took: p.snapshotTook,
		Text: fmt.Sprintf("%s has a full copy of %d records after %v", p.peer.Node, p.snapshotSize, p.snapshotTook.Round(time.Millisecond)),
	}
	if p.snapshots > 1 {
		e.Kind = ReplicationEventResync
		e.Text += fmt.Sprintf("; cause of the resync: %s", p.last.Cause)
		if p.last.Text != "" {
			e.Text += ": " + p.last.Text
		}
	}
	return e
}

// streaming says whether the peer has a full copy, and how many snapshots it got.
func (p *replPeer) streaming() (snapshots uint64, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshots, p.state == ReplicationStreaming
}
