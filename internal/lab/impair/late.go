package impair

import (
	"container/heap"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/cilium/ebpf/perf"
	"golang.org/x/sync/errgroup"
)

// lateFrame waits for its time.
type lateFrame struct {
	due time.Time
	dir direction
	gso uint32
	raw []byte
}

// lateQueue is a heap by due time.
type lateQueue []lateFrame

func (q lateQueue) Len() int           { return len(q) }
func (q lateQueue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q lateQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *lateQueue) Push(x any)        { *q = append(*q, x.(lateFrame)) }
func (q *lateQueue) Pop() any {
	old := *q
	last := old[len(old)-1]
	old[len(old)-1] = lateFrame{}
	*q = old[:len(old)-1]
	return last
}

// maxWaiting bounds the frames that wait; what comes beyond is lost, as on any
// line that is too long for its load.
const maxWaiting = 1 << 16

// Run carries late frames until ctx ends; those that still wait then are lost.
// Without it late frames are lost altogether. Call it once.
func (p *Port) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	in := make(chan lateFrame, 256)
	g.Go(func() error {
		defer close(in)
		return p.readLate(in)
	})
	g.Go(func() error {
		<-ctx.Done()
		return p.reader.Close()
	})
	p.sendLate(in)
	if err := g.Wait(); err != nil {
		return fmt.Errorf("carry late frames of %s: %w", p.name, err)
	}
	return nil
}

// readLate takes frames from the programs until the reader is closed.
func (p *Port) readLate(in chan<- lateFrame) error {
	for {
		rec, err := p.reader.Read()
		switch {
		case errors.Is(err, perf.ErrClosed) || errors.Is(err, os.ErrClosed):
			return nil
		case err != nil:
			return err
		case rec.LostSamples > 0:
			p.overrun.Add(rec.LostSamples)
			continue
		}
		if f, ok := parseLate(rec.RawSample, time.Now(), rand.Int64N); ok {
			in <- f
		}
	}
}

// parseLate reads what the program put out: meta, then the frame.
func parseLate(raw []byte, now time.Time, random func(int64) int64) (lateFrame, bool) {
	if len(raw) < metaSize {
		return lateFrame{}, false
	}
	m := meta{
		Delay: binary.NativeEndian.Uint64(raw), Jitter: binary.NativeEndian.Uint64(raw[8:]),
		Len: binary.NativeEndian.Uint32(raw[16:]), GSOSize: binary.NativeEndian.Uint32(raw[20:]),
		Direction: binary.NativeEndian.Uint32(raw[24:]),
	}
	body := raw[metaSize:]
	if int(m.Len) > len(body) {
		return lateFrame{}, false
	}
	wait := time.Duration(m.Delay)
	if m.Jitter > 0 {
		wait += time.Duration(random(int64(m.Jitter) + 1))
	}
	return lateFrame{due: now.Add(wait), dir: direction(m.Direction), gso: m.GSOSize, raw: body[:m.Len]}, true
}

// sendLate sends each frame at its time, until in is closed.
func (p *Port) sendLate(in <-chan lateFrame) {
	var q lateQueue
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		if len(q) > 0 {
			timer.Reset(time.Until(q[0].due))
		}
		select {
		case f, open := <-in:
			if !open {
				return
			}
			if len(q) < maxWaiting {
				heap.Push(&q, f)
			} else {
				p.overrun.Add(1)
			}
		case <-timer.C:
		}
		for now := time.Now(); len(q) > 0 && !q[0].due.After(now); {
			p.transmit(heap.Pop(&q).(lateFrame))
		}
	}
}
