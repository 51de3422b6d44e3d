package transport

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"slices"
	"time"
)

// replProtocolMark begins the numbers that are not record versions: in an offer's
// list of versions, mark+p says that protocol p is spoken as well. A node that
// knows only protocol 1 compares these with its versions, finds none that fits
// and passes them over, so the offer's form did not have to change.
const replProtocolMark = 0xff00

// replMaxVersions leaves room for the marks in a list of at most 255.
const replMaxVersions = 240

// replOffer is what the dialling side says first.
type replOffer struct {
	recordSize uint32
	node       string
	versions   []uint16 // that it can write, newest first
	protocols  []uint16 // spoken besides that of the greeting's head
}

// replReply is the answer: a chosen version, or a reason why not.
type replReply struct {
	accepted bool
	version  uint16
	node     string
	reason   string
}

const (
	replStatusAccept = 1
	replStatusRefuse = 2
)

func appendReplGreeting(b []byte, protocol uint16, body []byte) []byte {
	b = append(b, replMagic...)
	b = binary.BigEndian.AppendUint16(b, protocol)
	b = binary.BigEndian.AppendUint16(b, uint16(len(body)))
	return append(b, body...)
}

// readReplGreeting reads the part that is the same in every version of the
// protocol: magic, version, length, body.
func readReplGreeting(rd io.Reader) (protocol uint16, body []byte, err error) {
	var header [replGreetingHeader]byte
	if _, err := io.ReadFull(rd, header[:]); err != nil {
		return 0, nil, fmt.Errorf("read replication greeting: %w", err)
	}
	if string(header[:4]) != replMagic {
		return 0, nil, fmt.Errorf("greeting begins with %q: %w", header[:4], ErrReplicationMalformed)
	}
	length := binary.BigEndian.Uint16(header[6:])
	if length > replMaxGreeting {
		return 0, nil, fmt.Errorf("greeting of %d bytes: %w", length, ErrReplicationMalformed)
	}
	body = make([]byte, length)
	if _, err := io.ReadFull(rd, body); err != nil {
		return 0, nil, fmt.Errorf("read replication greeting: %w", err)
	}
	return binary.BigEndian.Uint16(header[4:]), body, nil
}

func (o replOffer) encode() []byte {
	b := binary.BigEndian.AppendUint32(nil, o.recordSize)
	b = append(append(b, byte(len(o.node))), o.node...)
	b = append(b, byte(len(o.versions)+len(o.protocols)))
	for _, v := range o.versions {
		b = binary.BigEndian.AppendUint16(b, v)
	}
	for _, p := range o.protocols {
		b = binary.BigEndian.AppendUint16(b, replProtocolMark+p)
	}
	return b
}

func parseReplOffer(b []byte) (replOffer, error) {
	bad := fmt.Errorf("replication offer of %d bytes: %w", len(b), ErrReplicationMalformed)
	if len(b) < 6 {
		return replOffer{}, bad
	}
	o := replOffer{recordSize: binary.BigEndian.Uint32(b)}
	name := int(b[4])
	b = b[5:]
	if len(b) < name+1 {
		return replOffer{}, bad
	}
	o.node = string(b[:name])
	n := int(b[name])
	b = b[name+1:]
	if len(b) != 2*n {
		return replOffer{}, bad
	}
	for ; len(b) > 0; b = b[2:] {
		if v := binary.BigEndian.Uint16(b); v < replProtocolMark {
			o.versions = append(o.versions, v)
		} else {
			o.protocols = append(o.protocols, v-replProtocolMark)
		}
	}
	return o, nil
}

func (a replReply) encode() []byte {
	status := byte(replStatusRefuse)
	if a.accepted {
		status = replStatusAccept
	}
	reason := replReason(a.reason)
	b := binary.BigEndian.AppendUint16([]byte{status}, a.version)
	b = append(append(b, byte(len(a.node))), a.node...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(reason)))
	return append(b, reason...)
}

func parseReplReply(b []byte) (replReply, error) {
	bad := fmt.Errorf("replication reply of %d bytes: %w", len(b), ErrReplicationMalformed)
	if len(b) < 4 || (b[0] != replStatusAccept && b[0] != replStatusRefuse) {
		return replReply{}, bad
	}
	a := replReply{accepted: b[0] == replStatusAccept, version: binary.BigEndian.Uint16(b[1:])}
	name := int(b[3])
	b = b[4:]
	if len(b) < name+2 {
		return replReply{}, bad
	}
	a.node = string(b[:name])
	b = b[name:]
	if len(b) != 2+int(binary.BigEndian.Uint16(b)) {
		return replReply{}, bad
	}
	a.reason = string(b[2:])
	return a, nil
}

// replReason cuts a text to what a frame may carry.
func replReason(s string) string { return s[:min(len(s), replMaxReason)] }

// chooseReplVersion picks the newest version that both sides speak.
func chooseReplVersion(offered, spoken []uint16) (uint16, error) {
	for _, v := range offered {
		if slices.Contains(spoken, v) {
			return v, nil
		}
	}
	return 0, fmt.Errorf("record versions %v are offered and %v are spoken here: %w", offered, spoken, ErrReplicationRefused)
}

// chooseReplProtocol picks the highest protocol that both sides speak.
func chooseReplProtocol(offered, spoken []uint16) (uint16, bool) {
	best, found := uint16(0), false
	for _, p := range offered {
		if slices.Contains(spoken, p) {
			best, found = max(best, p), true
		}
	}
	return best, found
}

// replTerms is what the two ends of a stream agreed on.
type replTerms struct {
	protocol uint16
	version  uint16 // of the records on the wire
}

// judge decides about a peer's offer.
func (r *Replicator) judge(head uint16, body []byte, peer string) (replTerms, error) {
	spoken := r.cfg.protocols()
	// The offer's form is only known for the protocols that are.
	if head < replProtocolPlain || head > replProtocolOrphans {
		return replTerms{}, fmt.Errorf("%s speaks replication protocol %d, %s speaks %v: %w",
			peer, head, r.cfg.Node, spoken, ErrReplicationRefused)
	}
	offer, err := parseReplOffer(body)
	if err != nil {
		return replTerms{}, err
	}
	offered := append([]uint16{head}, offer.protocols...)
	protocol, ok := chooseReplProtocol(offered, spoken)
	if !ok {
		return replTerms{}, fmt.Errorf("%s speaks replication protocols %v, %s speaks %v: %w",
			peer, offered, r.cfg.Node, spoken, ErrReplicationRefused)
	}
	if offer.node != peer {
		return replTerms{}, fmt.Errorf("%s calls itself %q: %w", peer, offer.node, ErrReplicationRefused)
	}
	if offer.recordSize != uint32(r.cfg.RecordSize) {
		return replTerms{}, fmt.Errorf("records of %s have %d bytes, those of %s %d: %w",
			peer, offer.recordSize, r.cfg.Node, r.cfg.RecordSize, ErrReplicationRefused)
	}
	version, err := chooseReplVersion(offer.versions, r.cfg.RecordVersions)
	return replTerms{protocol: protocol, version: version}, err
}

// answer reads the peer's offer and accepts or refuses it. A refusal stands under
// the oldest protocol, so that whoever asked can read it.
func (r *Replicator) answer(ctx context.Context, conn net.Conn, peer string) (replTerms, error) {
	_ = conn.SetDeadline(time.Now().Add(r.cfg.StallTimeout))
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	head, body, err := readReplGreeting(conn)
	if err != nil {
		return replTerms{}, err
	}
	terms, refusal := r.judge(head, body, peer)
	reply := replReply{accepted: refusal == nil, version: terms.version, node: r.cfg.Node}
	protocol := terms.protocol
	if refusal != nil {
		reply.reason, protocol = refusal.Error(), replProtocolPlain
	}
	if _, err := conn.Write(appendReplGreeting(nil, protocol, reply.encode())); err != nil && refusal == nil {
		return replTerms{}, fmt.Errorf("answer greeting: %w", err)
	}
	return terms, refusal
}

// greet offers what this node speaks and returns what the peer chose.
func (p *replPeer) greet(ctx context.Context, conn net.Conn) (replTerms, error) {
	unhook := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer unhook()
	cfg := &p.r.cfg
	spoken := cfg.protocols()
	offer := replOffer{recordSize: uint32(cfg.RecordSize), node: cfg.Node, versions: cfg.RecordVersions, protocols: spoken[1:]}
	if _, err := conn.Write(appendReplGreeting(nil, spoken[0], offer.encode())); err != nil {
		return replTerms{}, fmt.Errorf("greet: %w", err)
	}
	protocol, body, err := readReplGreeting(conn)
	if err != nil {
		return replTerms{}, err
	}
	reply, err := parseReplReply(body)
	if err != nil {
		return replTerms{}, err
	}
	if !reply.accepted {
		return replTerms{}, fmt.Errorf("%s says: %s: %w", p.peer.Node, reply.reason, ErrReplicationRefused)
	}
	if !slices.Contains(spoken, protocol) {
		return replTerms{}, fmt.Errorf("peer answers in protocol %d, %v are spoken here: %w", protocol, spoken, ErrReplicationRefused)
	}
	if reply.node != p.peer.Node {
		return replTerms{}, fmt.Errorf("reached node %q instead of %q: %w", reply.node, p.peer.Node, ErrReplicationRefused)
	}
	if _, err := chooseReplVersion([]uint16{reply.version}, cfg.RecordVersions); err != nil {
		return replTerms{}, err
	}
	return replTerms{protocol: protocol, version: reply.version}, nil
}
