package transport

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// refusedEvery is how often at most a line about the same refused peer is
	// written. A removed node that does not know of it dials all its former peers
	// several times a second, for as long as it runs.
	refusedEvery = 30 * time.Second
	// refusedMax bounds what strangers can make this node remember.
	refusedMax = 256
)

// refusals counts connections that were not admitted, by who came: a node's
// name if its certificate proved one, else the address it came from.
type refusals struct {
	mu   sync.Mutex
	rows map[string]refusal
}

type refusal struct {
	logged  time.Time
	skipped int // since then
}

// note records a refusal at now. It says whether to write a line about it, and
// how many before it had none.
func (r *refusals) note(who string, now time.Time) (write bool, skipped int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	row, known := r.rows[who]
	if known && now.Sub(row.logged) < refusedEvery {
		row.skipped++
		r.rows[who] = row
		return false, 0
	}
	if !known && len(r.rows) >= refusedMax {
		r.forget(now)
	}
	if r.rows == nil {
		r.rows = map[string]refusal{}
	}
	r.rows[who] = refusal{logged: now}
	return true, row.skipped
}

// forget makes room: whose last line is old may have a new one anyway. If there
// are none of those, all are forgotten, at the price of a line for each.
func (r *refusals) forget(now time.Time) {
	for who, row := range r.rows {
		if now.Sub(row.logged) >= refusedEvery {
			delete(r.rows, who)
		}
	}
	if len(r.rows) >= refusedMax {
		clear(r.rows)
	}
}

// logRefused writes a line about a connection that was not admitted: the first
// of a peer at once, then one in refusedEvery with the number of those between.
// peer is empty when the other side proved no name. A probe that connects and
// says nothing (HostAlive, a port scan) is no news.
func (m *Mux) logRefused(from net.Addr, peer string, err error) {
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || isReset(err) {
		m.cfg.Logger.Debug("connection ended before its handshake", "from", from, "err", err)
		return
	}
	who := "node " + peer
	if peer == "" {
		who = from.String()
		if host, _, err := net.SplitHostPort(who); err == nil {
			who = host
		}
	}
	if write, skipped := m.refused.note(who, time.Now()); write {
		m.cfg.Logger.Warn("refused a connection", "from", from, "err", err, "unreported", skipped)
		return
	}
	m.cfg.Logger.Debug("refused a connection again", "from", from, "err", err)
}
