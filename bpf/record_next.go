//go:build pontoon_record_next

package bpf

// This is the layout of a version that does not exist: with it the tests of upgrades have a
// neighbour whose records look different. Age and epoch have changed places.

// RecordVersion is the layout of the records that Events and Records give and Import takes.
const RecordVersion = 3

// RecordVersions are those that ConvertRecords knows, newest first.
func RecordVersions() []uint16 { return []uint16{3, 2, 1} }

func toWire(b []byte) {
	var age [4]byte
	copy(age[:], b[recordAge:])
	copy(b[recordAge:recordAge+4], b[recordEpoch:])
	copy(b[recordEpoch:recordEpoch+4], age[:])
}

func (r *pontoonFlowRecord) fromWire() { r.AgeMs, r.Epoch = r.Epoch, r.AgeMs }

// convertNext converts from and to version 3.
func convertNext(from, to uint16, records []byte) bool {
	if from != 3 && to != 3 {
		return false
	}
	if from == 3 {
		swapAll(records)
		from = 2
	}
	if to != 3 {
		return ConvertRecords(from, to, records) == nil
	}
	if ConvertRecords(from, 2, records) != nil {
		return false
	}
	swapAll(records)
	return true
}

func swapAll(records []byte) {
	for at := 0; at+RecordSize <= len(records); at += RecordSize {
		toWire(records[at : at+RecordSize])
	}
}
