package bpf

import (
	"context"
	"errors"
	"fmt"
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
	for {
		err := reader.ReadInto(&record)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			d.send(batch)
			return err
		case len(record.RawSample) != RecordSize:
			return fmt.Errorf("%w: %d bytes in the ring", ErrRecord, len(record.RawSample))
		default:
			if len(batch) == 0 {
				batch = make([]byte, 0, recordBatch*RecordSize)
				reader.SetDeadline(time.Now().Add(recordBatchAge))
			}
			batch = append(batch, record.RawSample...)
			d.totals.observe(record.RawSample)
			if len(batch) < cap(batch) {
				continue
			}
		}
		d.send(batch)
		batch = nil
		reader.SetDeadline(time.Time{})
	}
}

// emit reports records that user space made.
func (d *Dataplane) emit(records []byte) {
	for len(records) > 0 {
		n := min(len(records), recordBatch*RecordSize)
		for at := 0; at < n; at += RecordSize {
			d.totals.observe(records[at : at+RecordSize])
		}
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
