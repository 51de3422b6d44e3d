package bpf

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf/btf"
)

// The structs that C and Go share, byte for byte. The numbers stand here once more by hand: they
// are the format of pinned maps and of the wire, and must not change by accident.
func TestSharedStructsHaveTheirLayout(t *testing.T) {
	var key pontoonFlowKey
	var flow pontoonFlow
	var svc pontoonServiceKey
	var service pontoonService
	var endpoint pontoonEndpoint
	var hop pontoonNextHop
	var r pontoonFlowRecord
	var ending pontoonEnding
	for name, pair := range map[string][2]uintptr{
		"flow_key":               {unsafe.Sizeof(key), 40},
		"flow_key.daddr":         {unsafe.Offsetof(key.Daddr), 16},
		"flow_key.sport":         {unsafe.Offsetof(key.Sport), 32},
		"flow_key.dport":         {unsafe.Offsetof(key.Dport), 34},
		"flow_key.proto":         {unsafe.Offsetof(key.Proto), 36},
		"flow":                   {unsafe.Sizeof(flow), 64},
		"flow.new_daddr":         {unsafe.Offsetof(flow.NewDaddr), 16},
		"flow.new_sport":         {unsafe.Offsetof(flow.NewSport), 32},
		"flow.service":           {unsafe.Offsetof(flow.Service), 36},
		"flow.endpoint":          {unsafe.Offsetof(flow.Endpoint), 38},
		"flow.last_seen":         {unsafe.Offsetof(flow.LastSeen), 40},
		"flow.created":           {unsafe.Offsetof(flow.Created), 44},
		"flow.state":             {unsafe.Offsetof(flow.State), 48},
		"flow.flags":             {unsafe.Offsetof(flow.Flags), 49},
		"flow.owner_slot":        {unsafe.Offsetof(flow.OwnerSlot), 50},
		"flow.mode":              {unsafe.Offsetof(flow.Mode), 51},
		"flow.bytes_lo":          {unsafe.Offsetof(flow.BytesLo), 52},
		"flow.packets_hi":        {unsafe.Offsetof(flow.PacketsHi), 62},
		"service_key":            {unsafe.Sizeof(svc), 24},
		"service":                {unsafe.Sizeof(service), 28},
		"endpoint":               {unsafe.Sizeof(endpoint), 32},
		"next_hop":               {unsafe.Sizeof(hop), 28},
		"peer_link":              {unsafe.Sizeof(pontoonPeerLink{}), 64},
		"peer_link.mac":          {unsafe.Offsetof(pontoonPeerLink{}.Mac), 14},
		"ending.learn":           {unsafe.Offsetof(ending.Learn), 66},
		"ending":                 {unsafe.Sizeof(ending), 72},
		"ending.key":             {unsafe.Offsetof(ending.Key), 16},
		"ending.created":         {unsafe.Offsetof(ending.Created), 56},
		"flow_record":            {unsafe.Sizeof(r), RecordSize},
		"flow_record.port":       {unsafe.Offsetof(r.ClientPort), 64},
		"flow_record.service":    {unsafe.Offsetof(r.Service), 72},
		"flow_record.endpoint":   {unsafe.Offsetof(r.EndpointId), 74},
		"flow_record.op":         {unsafe.Offsetof(r.Op), recordOp},
		"flow_record.owner_slot": {unsafe.Offsetof(r.OwnerSlot), 80},
		"flow_record.reason":     {unsafe.Offsetof(r.Reason), recordReason},
		"flow_record.idle_ms":    {unsafe.Offsetof(r.IdleMs), recordIdle},
		"flow_record.age_ms":     {unsafe.Offsetof(r.AgeMs), recordAge},
		"flow_record.counters":   {unsafe.Offsetof(r.ForwardPackets), 96},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: %d, want %d", name, pair[0], pair[1])
		}
	}
}

// The object that is embedded must come from the types that Go was generated from.
func TestObjectAgreesWithGeneratedTypes(t *testing.T) {
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]uintptr{
		"flow_key": unsafe.Sizeof(pontoonFlowKey{}), "flow": unsafe.Sizeof(pontoonFlow{}),
		"flow_record": unsafe.Sizeof(pontoonFlowRecord{}), "service": unsafe.Sizeof(pontoonService{}),
	} {
		var s *btf.Struct
		if err := spec.Types.TypeByName(name, &s); err != nil {
			t.Errorf("%s: %v", name, err)
		} else if uintptr(s.Size) != size {
			t.Errorf("%s: %d bytes in the object, %d in Go", name, s.Size, size)
		}
	}
	sizes := map[string][2]uint32{
		pontoonMapFlows: {40, 64}, pontoonMapHalfOpen: {4, 896}, pontoonMapServices: {24, 28},
		pontoonMapEndpoints: {4, 32}, pontoonMapVips: {16, 4}, pontoonMapNextHops: {16, 28},
	}
	for name, want := range sizes {
		if m := spec.Maps[name]; m.KeySize != want[0] || m.ValueSize != want[1] {
			t.Errorf("%s: key %d, value %d", name, m.KeySize, m.ValueSize)
		}
	}
}

// Numbers of C that bpf2go does not carry over, because they are no types.
func TestConstantsOfBothSidesAgree(t *testing.T) {
	text := ""
	for _, file := range []string{"c/defs.h", "c/maps.h"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text += string(b)
	}
	for name, want := range map[string]string{"CREATED_SHIFT": "6", "SNAT_PORTS_PER_SLOT": "8064", "SNAT_PORT_MIN": "1024", "HALF_WAYS": strconv.Itoa(halfWays), "PEER_SLOTS": strconv.Itoa(Slots)} {
		found := regexp.MustCompile(`#define ` + name + ` (\d+)`).FindStringSubmatch(text)
		if found == nil || found[1] != want {
			t.Errorf("%s: %v, want %s", name, found, want)
		}
	}
	if createdShift != 6 || Slots*8064+1024 != 65536 {
		t.Error("Go has other numbers")
	}
}

func TestEveryCounterHasAName(t *testing.T) {
	b, err := os.ReadFile("c/counters.h")
	if err != nil {
		t.Fatal(err)
	}
	names := regexp.MustCompile(`(?m)^\t(DROP|COUNTER)_[A-Z_]+ = \d+`).FindAllString(string(b), -1)
	if len(names)-1 != len(counterNames) { // COUNTER_MAX has none
		t.Errorf("%d counters in C, %d names in Go", len(names)-1, len(counterNames))
	}
	for index, name := range counterNames {
		if isDrop := index < pontoonCounterCOUNTER_REFUSED; isDrop != strings.HasPrefix(name, "drop/") {
			t.Errorf("%d is called %s", index, name)
		}
	}
}
