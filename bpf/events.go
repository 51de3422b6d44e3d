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
		if err := d.batchEvents(ctx, reader); !errors.Is(err, ringbuf.ErrClosed) {
			return fmt.Errorf("read event ring: %w", err)
		}
		return context.Canceled
	})
	return group.Wait()
}

// batchEvents returns only with an error; ringbuf.ErrClosed ends it in good order.
//
// A reader that waits in the kernel is woken for each record, since it is always quicker than the
// packets; that costs more than all else about a new connection. So the kernel wakes it for the first record
// only: while more come it rests for the age of a batch and then takes what there is.
func (d *Dataplane) batchEvents(ctx context.Context, reader *ringbuf.Reader) error {
	e := eventReader{d: d, reader: reader, watch: lossWatch{d: d, reader: reader}, adoptions: new(adoptions)}
	rest := time.NewTimer(0)
	defer rest.Stop()
	for {
		came, err := e.read(time.Now().Add(lossEvery), 1)
		for err == nil && came > 0 {
			rest.Reset(recordBatchAge)
			select {
			case <-rest.C:
			case <-ctx.Done(): // the ring is about to be closed
			}
			came, err = e.read(time.Now(), math.MaxInt)
			e.flush()
		}
		e.flush()
		if err != nil {
			return err
		}
	}
}

// eventReader cuts what comes out of the ring into batches.
type eventReader struct {
	d      *Dataplane
	reader *ringbuf.Reader
	record ringbuf.Record
	batch  []byte
	watch  lossWatch

	adoptions *adoptions
}

// read takes up to most records and returns how many came; it waits for each until the deadline.
func (e *eventReader) read(deadline time.Time, most int) (int, error) {
	e.reader.SetDeadline(deadline)
	for n := range most {
		err := e.reader.ReadInto(&e.record)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return n, nil
		case err != nil:
			return n, err
		case len(e.record.RawSample) != RecordSize:
			return n, fmt.Errorf("%w: %d bytes in the ring", ErrRecord, len(e.record.RawSample))
		}
		if e.batch == nil {
			e.batch = make([]byte, 0, recordBatch*RecordSize)
		}
		e.watch.owed -= ringHeader + RecordSize
		if sample := e.record.RawSample; sample[recordReason] == reasonAdopt && !e.adoptions.tell(forwardKey(sample), time.Now()) {
			continue
		}
		e.batch = append(e.batch, e.record.RawSample...)
		if len(e.batch) == cap(e.batch) {
			e.flush()
		}
	}
	return most, nil
}

// flush sends the batch, and looks for losses.
func (e *eventReader) flush() {
	e.d.send(e.d.dated(e.batch))
	e.batch = nil
	now := time.Now()
	if err := e.d.tellOwed(e.adoptions.due(now)); err != nil {
		e.d.log.Warn("other nodes not told of adopted flows", "err", err)
	}
	e.watch.look(now)
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
	d.finish(batch)
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
	d.finish(records)
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
