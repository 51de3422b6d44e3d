package node

import (
	"context"
	"time"

	"pontoon/fsm"
)

// askReaders is for how long Reads waits for the first report of a member.
const askReaders = 2 * time.Second

// Reads implements web.Backend.
func (d *daemon) Reads(ctx context.Context, version int) bool {
	m, err := d.current()
	if err != nil {
		return true // nobody is there to be left behind
	}
	ctx, cancel := context.WithTimeout(ctx, askReaders)
	defer cancel()
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	for {
		reads, known := m.reports.readers(m.store.State().Nodes(), m.cfg.Name, version)
		if known {
			return reads
		}
		select {
		case <-ctx.Done():
			return false
		case <-again.C:
		}
	}
}

// readers says whether all members read commands of this version, and whether that
// is known. A dead one that this process has never heard is not waited for: if its
// program is older it stops when it comes back, and says that it has to be upgraded.
func (t *reportTable) readers(nodes []fsm.Node, self string, version int) (reads, known bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known = true
	for _, n := range nodes {
		r, heard := t.rows[string(n.Name)]
		switch {
		case string(n.Name) == self:
		case heard && r.Reads < version:
			return false, true
		case !heard && n.Alive:
			known = false
		}
	}
	return known, known
}
