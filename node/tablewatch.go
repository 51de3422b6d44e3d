package node

import (
	"context"
	"fmt"
	"time"

	"pontoon/bpf"
	"pontoon/web"
)

const (
	tableLookEvery = 2 * time.Second
	tableTellEvery = time.Minute // at most so often that new connections are refused
)

// nearlyFull tells whether nine tenths of the flow table are taken.
func nearlyFull(connections, most uint64) bool { return most > 0 && connections*10 >= most*9 }

// tableWatch decides when operators are to hear of a full flow table.
type tableWatch struct {
	looked  bool
	refused uint64    // at the last look that was told of, or the first
	told    time.Time // when that was
	nearly  bool      // told, and not become much emptier since
}

// look returns what there is to say; "" is nothing. What was refused before the
// first look is old news.
func (w *tableWatch) look(now time.Time, use bpf.TableUse) string {
	if !w.looked {
		w.looked, w.refused = true, use.Refused
	}
	if use.Refused > w.refused && (w.told.IsZero() || now.Sub(w.told) >= tableTellEvery) {
		w.refused, w.told, w.nearly = use.Refused, now, true
		return fmt.Sprintf("flow table full: %d of %d connections; new ones are refused", use.Connections, use.Max)
	}
	switch {
	case !w.nearly && nearlyFull(use.Connections, use.Max):
		w.nearly = true
		return fmt.Sprintf("flow table nearly full: %d of %d connections", use.Connections, use.Max)
	case use.Connections*10 < use.Max*8:
		w.nearly = false
	}
	return ""
}

// watchFlowTable raises an event when the flow table takes no more, or soon will.
func (m *member) watchFlowTable(ctx context.Context) error {
	tick := time.NewTicker(tableLookEvery)
	defer tick.Stop()
	var w tableWatch
	for {
		if use, err := m.dp.TableUse(); err != nil {
			m.logger.Warn("flow table not looked at", "err", err)
		} else if text := w.look(time.Now(), use); text != "" {
			m.events.add(Event{
				Kind: web.EventDataPlane, Text: text,
				Fields: map[string]string{"connections": fmt.Sprint(use.Connections), "max": fmt.Sprint(use.Max), "refused": fmt.Sprint(use.Refused)},
			})
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}
