package bpf

import (
	"errors"
	"fmt"
	"math"
	"time"
	"unsafe"
)

// RecordSize is the length of a flow record: in the ring, and on the wire between nodes.
const RecordSize = 128

const (
	opUpdate       = uint8(pontoonRecordOpRECORD_UPDATE)
	reasonNew      = uint8(pontoonRecordReasonRECORD_NEW)
	opAffinity     = uint8(pontoonRecordOpRECORD_AFFINITY)
	opDelete       = uint8(pontoonRecordOpRECORD_DELETE)
	reasonState    = uint8(pontoonRecordReasonRECORD_STATE)
	reasonAdopt    = uint8(pontoonRecordReasonRECORD_ADOPT)
	reasonClose    = uint8(pontoonRecordReasonRECORD_CLOSE)
	reasonExpire   = uint8(pontoonRecordReasonRECORD_EXPIRE)
	reasonSnapshot = uint8(pontoonRecordReasonRECORD_SNAPSHOT)
	reasonHearsay  = uint8(pontoonRecordReasonRECORD_HEARSAY)
	reasonOrphan   = uint8(pontoonRecordReasonRECORD_ORPHAN)
	reasonCounters = uint8(pontoonRecordReasonRECORD_COUNTERS)
)

// ErrRecord says that bytes are not flow records.
var ErrRecord = errors.New("malformed flow record")

// appendRecord writes the connection as a record: integers little endian, ports and addresses in
// network order, the layout of struct flow_record.
func (c *connection) appendRecord(to []byte, now instant, op, reason uint8) []byte {
	f := &c.forward
	r := pontoonFlowRecord{
		Client: c.key.Saddr, Vip: c.key.Daddr, Snat: f.NewSaddr, Endpoint: f.NewDaddr,
		ClientPort: c.key.Sport, VipPort: c.key.Dport, SnatPort: f.NewSport, EndpointPort: f.NewDport,
		Service: f.Service, EndpointId: f.Endpoint, Proto: c.key.Proto, Mode: f.Mode, State: f.State, Op: op,
		OwnerSlot: f.OwnerSlot, Reason: reason, Flags: f.Flags & (flagOwn | flagPeer),
		IdleMs: milliseconds(c.idle(now)), AgeMs: milliseconds(now.age(f.Created)),
		ForwardPackets: f.packets(), ForwardBytes: f.bytes(),
		ReplyPackets: c.reply.packets(), ReplyBytes: c.reply.bytes(),
	}
	return r.append(to)
}

func (r *pontoonFlowRecord) append(to []byte) []byte {
	return append(to, unsafe.Slice((*byte)(unsafe.Pointer(r)), RecordSize)...)
}

func milliseconds(d time.Duration) uint32 {
	return uint32(min(d.Milliseconds(), math.MaxUint32))
}

// parseRecord reads one record and rejects what no data plane would have written.
func parseRecord(b []byte) (pontoonFlowRecord, error) {
	var r pontoonFlowRecord
	if len(b) != RecordSize {
		return r, fmt.Errorf("%w: %d bytes", ErrRecord, len(b))
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&r)), RecordSize), b)
	r.fromWire()
	if r.Op == opAffinity {
		return r, r.validateAffinity()
	}
	switch {
	case r.Op != opUpdate && r.Op != opDelete:
		return r, fmt.Errorf("%w: operation %d", ErrRecord, r.Op)
	case r.Proto != protoTCP && r.Proto != protoUDP && r.Proto != protoSCTP:
		return r, fmt.Errorf("%w: protocol %d", ErrRecord, r.Proto)
	case r.halfOpen() && (r.State == 0 || FlowState(r.State) > StateSynAck || r.Op != opUpdate || !earlyReason(r.Reason)),
		FlowState(r.State) > StateClosed:
		return r, fmt.Errorf("%w: state %d", ErrRecord, r.State)
	case Mode(r.Mode) < ModeFullNAT || r.Mode > uint8(pontoonNatModeMODE_DSR_TUNNEL):
		return r, fmt.Errorf("%w: mode %d", ErrRecord, r.Mode)
	case r.OwnerSlot > nobody:
		return r, fmt.Errorf("%w: owner slot %d", ErrRecord, r.OwnerSlot)
	case r.Flags&^(flagOwn|flagPeer) != 0:
		return r, fmt.Errorf("%w: flags %#x", ErrRecord, r.Flags)
	}
	for _, a := range []pontoonAddr{r.Client, r.Vip, r.Snat, r.Endpoint} {
		if !fromAddr(a).IsValid() {
			return r, fmt.Errorf("%w: address %s", ErrRecord, fromAddr(a))
		}
	}
	return r, nil
}

// validateAffinity rejects what says nothing about a client.
func (r *pontoonFlowRecord) validateAffinity() error {
	if r.Service == 0 || r.EndpointId == 0 || !fromAddr(r.Client).IsValid() {
		return fmt.Errorf("%w: affinity of %s to endpoint %d of service %d", ErrRecord, fromAddr(r.Client), r.EndpointId, r.Service)
	}
	return nil
}

// recordConnection turns a record into both halves, as replicas of the record's owner.
func recordConnection(r *pontoonFlowRecord, now instant) connection {
	half := pontoonFlow{
		Service: r.Service, Endpoint: r.EndpointId, State: r.State, OwnerSlot: r.OwnerSlot, Mode: r.Mode,
		LastSeen: now.stamp(time.Duration(r.IdleMs) * time.Millisecond),
		Created:  now.created(time.Duration(r.AgeMs) * time.Millisecond),
	}
	c := connection{
		key:     pontoonFlowKey{Saddr: r.Client, Daddr: r.Vip, Sport: r.ClientPort, Dport: r.VipPort, Proto: r.Proto},
		forward: half, reply: half,
	}
	f, b := &c.forward, &c.reply
	f.NewSaddr, f.NewSport, f.NewDaddr, f.NewDport = r.Snat, r.SnatPort, r.Endpoint, r.EndpointPort
	b.NewSaddr, b.NewSport, b.NewDaddr, b.NewDport = r.Vip, r.VipPort, r.Client, r.ClientPort
	f.Flags = flagReplica | r.Flags
	b.Flags = flagReplica | flagReply | (r.Flags&flagOwn)<<1 | (r.Flags&flagPeer)>>1
	f.setCounters(r.ForwardPackets, r.ForwardBytes)
	b.setCounters(r.ReplyPackets, r.ReplyBytes)
	return c
}

// Offsets that batches are looked at by without decoding them.
const (
	recordClient  = 0
	recordVIP     = 16
	recordPorts   = 64 // of client and VIP
	recordService = 72
	recordProto   = 76
	recordOp      = 79
	recordOwner   = 80
	recordReason  = 81
	recordIdle    = 84 // in the ring: the stamp of the packet
	recordAge     = 88 // in the ring: at that packet
	recordEpoch   = 92
)
