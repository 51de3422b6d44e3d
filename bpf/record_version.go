//go:build !pontoon_record_next

package bpf

// RecordVersion is the layout of the records that Events and Records give and Import takes.
const RecordVersion = 2

// RecordVersions are those that ConvertRecords knows, newest first.
func RecordVersions() []uint16 { return []uint16{2, 1} }

// toWire and fromWire turn the layout of struct flow_record into that of the wire, and back: they
// are the same.
func toWire([]byte) {}

func (*pontoonFlowRecord) fromWire() {}

// convertNext knows no other layouts.
func convertNext(uint16, uint16, []byte) bool { return false }
