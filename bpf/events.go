package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"time"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sync/errgroup"
)

// Events delivers what happened to connections since the ring was last read, also while no
// process was there: batches of whole records (RecordSize bytes each), cut by 256 records or
// 2 ms. The channel is never closed. When the consumer is slower than the packets, batches are
// thrown away and Lost is signalled: the reader of the ring must not wait.
func (d *Dataplane) Events() <-chan []byte { return d.events }

// Lost signals, coalesced, that records did not make it into Events. Only a snapshot brings a
// consumer up to date again.
func (d *Dataplane) Lost() <-chan struct{} { return d.lost }

// readEvents moves records from the ring to the channel until ctx ends.
func (d *Dataplane) readEvents(ctx context.Context) error {
	reader, err := ringbuf.NewReader(d.maps.Events)
	if err != nil {
		return fmt.Errorf("open event ring: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		<-ctx.Done()
		return reader.Close()
	})
	group.Go(func() error {
		if err := d.batchEvents(reader); !errors.Is(err, ringbuf.ErrClosed) {
			return fmt.Errorf("read event ring: %w", err)
		}
		return context.Canceled
	})
	return group.Wait()
}

// batchEvents returns only with an error; ringbuf.ErrClosed ends it in good order.
func (d *Dataplane) batchEvents(reader *ringbuf.Reader) error {
	var record ringbuf.Record
	var batch []byte
	watch := lossWatch{d: d, reader: reader}
	reader.SetDeadline(time.Now().Add(lossEvery))
	for {
		err := reader.ReadInto(&record)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			d.send(d.dated(batch))
			return err
		case len(record.RawSample) != RecordSize:
			return fmt.Errorf("%w: %d bytes in the ring", ErrRecord, len(record.RawSample))
		default:
			if len(batch) == 0 {
				batch = make([]byte, 0, recordBatch*RecordSize)
				reader.SetDeadline(time.Now().Add(recordBatchAge))
			}
			batch = append(batch, record.RawSample...)
			watch.owed -= ringHeader + RecordSize
			if len(batch) < cap(batch) {
				continue
			}
		}
		d.send(d.dated(batch))
		batch = nil
		watch.look(time.Now())
		reader.SetDeadline(time.Now().Add(lossEvery))
	}
}

// dated turns the stamps of records out of the ring, when the packet came, into ages: nobody may
// have read the ring for a while, and old news must not pass for new.
func (d *Dataplane) dated(batch []byte) []byte {
	if len(batch) == 0 {
		return nil
	}
	now, err := d.clock.now()
	if err != nil {
		d.log.Warn("clock not read", "err", err)
	}
	for at := 0; at < len(batch); at += RecordSize {
		idle, age := batch[at+recordIdle:at+recordIdle+4], batch[at+recordAge:at+recordAge+4]
		since := uint32(0)
		if err == nil {
			since = milliseconds(now.idle(binary.LittleEndian.Uint32(idle)))
		}
		binary.LittleEndian.PutUint32(idle, since)
		binary.LittleEndian.PutUint32(age, uint32(min(uint64(binary.LittleEndian.Uint32(age))+uint64(since), math.MaxUint32)))
	}
	return batch
}

// ringHeader is what the ring buffer puts before each record.
const ringHeader = 8

// lossEvery is how often the counter of refused records is looked at.
const lossEvery = 100 * time.Millisecond

// lossWatch signals Lost when the ring has refused records, but not before everything that was in
// it by then has been sent: after the snapshot that heals the loss, older records would undo it.
type lossWatch struct {
	d       *Dataplane
	reader  *ringbuf.Reader
	looked  time.Time
	lost    uint64 // that are known of
	pending bool   // a loss was seen and is not signalled yet
	owed    int    // bytes to read before it is
}

func (w *lossWatch) look(now time.Time) {
	if !w.pending && now.Sub(w.looked) >= lossEvery {
		w.looked = now
		lost, err := counter(w.d.maps.Counters, pontoonCounterCOUNTER_RING_LOST)
		if err != nil {
			w.d.log.Warn("ring counter not read", "err", err)
			return
		}
		if lost > w.lost {
			w.d.log.Warn("flow records lost in the ring", "lost", lost-w.lost)
			w.lost, w.pending, w.owed = lost, true, w.reader.AvailableBytes()
		}
	}
	if w.pending && w.owed <= 0 {
		w.pending = false
		w.d.signalLost()
	}
}

// emit reports records that user space made.
func (d *Dataplane) emit(records []byte) {
	for len(records) > 0 {
		n := min(len(records), recordBatch*RecordSize)
		d.send(records[:n:n])
		records = records[n:]
	}
}

// send never blocks.
func (d *Dataplane) send(batch []byte) {
	if len(batch) == 0 {
		return
	}
	select {
	case d.events <- batch:
	default:
		d.totals.lostRecords.Add(uint64(len(batch) / RecordSize))
		d.signalLost()
	}
}

func (d *Dataplane) signalLost() {
	select {
	case d.lost <- struct{}{}:
	default:
	}
}
