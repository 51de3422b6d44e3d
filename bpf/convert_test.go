package bpf

import (
	"bytes"
	"errors"
	"strings"
	"testing"
)

func TestRecordsConvertToTheVersionBefore(t *testing.T) {
	r := pontoonFlowRecord{Service: 7, IdleMs: 1, AgeMs: 2, Epoch: 3, ForwardPackets: 4}
	all := r.append(r.append(nil))
	for at := 0; at < len(all); at += RecordSize {
		toWire(all[at : at+RecordSize])
	}
	same := bytes.Clone(all)
	if err := ConvertRecords(RecordVersion, RecordVersion, same); err != nil || !bytes.Equal(same, all) {
		t.Errorf("to itself: %v", err)
	}
	old := bytes.Clone(all)
	if err := ConvertRecords(RecordVersion, 1, old); err != nil {
		t.Fatal(err)
	}
	r.Epoch = 0
	if want := r.append(r.append(nil)); !bytes.Equal(old, want) {
		t.Errorf("version 1: %x, want %x", old, want)
	}
	if err := ConvertRecords(1, RecordVersion, old); err != nil {
		t.Fatal(err)
	}
	back, err := parseRecordLoosely(old[:RecordSize])
	if err != nil || back != r {
		t.Errorf("back: %+v, %v", back, err)
	}
	if v := RecordVersions(); v[0] != RecordVersion || v[len(v)-1] != 1 {
		t.Errorf("versions %v", v)
	}
	err = ConvertRecords(RecordVersion, 77, all)
	if !errors.Is(err, ErrRecordVersion) || !strings.Contains(err.Error(), "77") {
		t.Errorf("unknown version: %v", err)
	}
	if err := ConvertRecords(RecordVersion, 1, all[:100]); !errors.Is(err, ErrRecord) {
		t.Errorf("part of a record: %v", err)
	}
}

// parseRecordLoosely reads the layout without judging what it says.
func parseRecordLoosely(b []byte) (pontoonFlowRecord, error) {
	r, err := parseRecord(b)
	if errors.Is(err, ErrRecord) {
		err = nil
	}
	return r, err
}
