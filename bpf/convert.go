package bpf

import (
	"errors"
	"fmt"
	"slices"
)

// ErrRecordVersion says that a layout of records is not known.
var ErrRecordVersion = errors.New("unknown flow record version")

// ConvertRecords turns whole records of one version into another, in place. Version 1 has no
// epoch: it reads as 0, "not the master". What an older version has no word for it takes for an
// update or rejects by itself.
func ConvertRecords(from, to uint16, records []byte) error {
	known := RecordVersions()
	if !slices.Contains(known, from) || !slices.Contains(known, to) {
		return fmt.Errorf("convert flow records from version %d to %d: %w", from, to, ErrRecordVersion)
	}
	if len(records)%RecordSize != 0 {
		return fmt.Errorf("convert flow records from version %d to %d: %w: %d bytes", from, to, ErrRecord, len(records))
	}
	if from == to || convertNext(from, to, records) {
		return nil
	}
	for at := 0; at < len(records); at += RecordSize {
		clear(records[at+recordEpoch : at+recordEpoch+4])
	}
	return nil
}
