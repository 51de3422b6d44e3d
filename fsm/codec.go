package fsm

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// commandVersion is the newest version of the envelope and of the commands in
// it. It is raised when an older version could misread a command; the older one
// then stops with ErrUnsupported rather than let its replica drift. Version 1
// knew fewer settings of a service; what it wrote reads as it is. Version 3
// knows what of a service is replicated, version 4 the timelines of failovers
// and recoveries, and what becomes of a VIP without a quorum, version 5 BGP and
// the settings of an instance, version 6 the health of endpoints, pools of
// addresses and the placement of new instances.
//
// A command is written in the oldest version since baseVersion that can say it,
// and so is a snapshot. While the nodes of a cluster are upgraded one after the
// other, those that are not yet go on reading, until somebody uses what they do
// not know.
const (
	commandVersion = 6
	baseVersion    = 2

	replicateVersion  = 3 // Service.Replicate, Service.ReplicateMinAge
	failoverVersion   = 4 // RecordFailover, RecoverCluster
	quorumLossVersion = 4 // VIP.OnQuorumLoss
	poolVersion       = 6 // Pool, VIP.Pool, PutService.Auto, PutInstance.Spread
	bgpVersion        = 5 // BGP, BGPPeer, AnnounceBGP, VIP.OnNoEndpoint, the settings of Instance
	healthVersion     = 6 // SetHealth, Service.Probe, OnDown, AllDown and SlowStart
)

// CommandVersion is the newest version of commands this program reads. Nodes
// tell each other theirs, so that nobody writes by itself what another cannot
// read; what an operator asks for is written in any case.
const CommandVersion = commandVersion

// VersionOf is the version a command is written in.
func VersionOf(c Command) int {
	switch c := c.(type) {
	case PutService:
		_, version := oldest(c.Service)
		if c.Auto != nil {
			version = max(version, poolVersion)
		}
		return version
	case PutVIP:
		_, version := oldestVIP(c.VIP)
		return version
	case PutInstance:
		switch {
		case c.Spread:
			return poolVersion
		case c.hasSettings():
			return bgpVersion
		}
	case PutPool, DeletePool, ReserveAddress, UnreserveAddress:
		return poolVersion
	case RecordFailover, RecoverCluster:
		return failoverVersion
	case PutBGP, PutBGPPeer, DeleteBGPPeer:
		return bgpVersion
	case SetHealth:
		return healthVersion
	}
	return baseVersion
}

type envelope struct {
	Version int             `json:"v"`
	Type    string          `json:"type"`
	Data    json.RawMessage `json:"data"`
}

// Encode returns a command as it stands in the log:
// {"v":2,"type":"put_service","data":{…}}.
func Encode(c Command) ([]byte, error) {
	if c == nil {
		return nil, refuse(ErrInvalid, "encode command: there is none")
	}
	version := VersionOf(c)
	switch put := c.(type) {
	case PutService:
		put.Service, _ = oldest(put.Service)
		c = put
	case PutVIP:
		put.VIP, _ = oldestVIP(put.VIP)
		c = put
	}
	data, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", c.kind(), err)
	}
	b, err := json.Marshal(envelope{Version: version, Type: c.kind(), Data: data})
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", c.kind(), err)
	}
	return b, nil
}

// oldest returns a service in the oldest version that can say all of it, and
// which that is. What it leaves out is the default, which every reader fills in.
func oldest(svc Service) (Service, int) {
	if svc.Replicate == ReplicateEstablished {
		svc.Replicate = ""
	}
	if svc.Probe == (Probe{Type: ProbeNone}) {
		svc.Probe = Probe{}
	}
	if svc.OnDown == DownKeep {
		svc.OnDown = ""
	}
	if svc.AllDown == AllDownOpen {
		svc.AllDown = ""
	}
	switch {
	case svc.Probe != (Probe{}) || svc.OnDown != "" || svc.AllDown != "" || svc.SlowStart != 0:
		return svc, healthVersion
	case svc.Replicate != "" || svc.ReplicateMinAge != 0:
		return svc, replicateVersion
	}
	return svc, baseVersion
}

// oldestVIP is oldest for a VIP.
func oldestVIP(v VIP) (VIP, int) {
	if v.OnQuorumLoss == QuorumRelease {
		v.OnQuorumLoss = ""
	}
	switch {
	case v.Pool != "" || v.Share != "":
		return v, poolVersion
	case v.Announce == AnnounceBGP || v.OnNoEndpoint != "":
		return v, bgpVersion
	case v.OnQuorumLoss != "":
		return v, quorumLossVersion
	}
	return v, baseVersion
}

// Decode reads what Encode wrote. A newer version or an unknown type matches
// ErrUnsupported; anything else that cannot be read, unknown keys included,
// matches ErrInvalid.
func Decode(b []byte) (Command, error) { return decode(b, true) }

func decode(b []byte, batchAllowed bool) (Command, error) {
	var env envelope
	err := strict(b, &env)
	if err != nil {
		// The envelope of a newer version may have keys this one does not know.
		env.Version = peekVersion(b)
	}
	switch {
	case env.Version > commandVersion:
		return nil, refuse(ErrUnsupported, "decode command: it has version %d, and this program reads up to %d: upgrade this node", env.Version, commandVersion)
	case err != nil:
		return nil, refuse(ErrInvalid, "decode command: %v", err)
	case env.Version < 1:
		return nil, refuse(ErrInvalid, "decode command: version %d never was", env.Version)
	case env.Type == Batch{}.kind() && !batchAllowed:
		return nil, refuse(ErrInvalid, "decode command: a batch inside a batch")
	}
	return decodeData(env.Type, env.Data)
}

func decodeData(kind string, data []byte) (Command, error) {
	switch kind {
	case InitCluster{}.kind():
		return decodeAs[InitCluster](data)
	case CreateToken{}.kind():
		return decodeAs[CreateToken](data)
	case RevokeToken{}.kind():
		return decodeAs[RevokeToken](data)
	case JoinNode{}.kind():
		return decodeAs[JoinNode](data)
	case SetVoter{}.kind():
		return decodeAs[SetVoter](data)
	case RemoveNode{}.kind():
		return decodeAs[RemoveNode](data)
	case RecoverCluster{}.kind():
		return decodeAs[RecoverCluster](data)
	case NodeVerdict{}.kind():
		return decodeAs[NodeVerdict](data)
	case NodeReport{}.kind():
		return decodeAs[NodeReport](data)
	case DrainNode{}.kind():
		return decodeAs[DrainNode](data)
	case PutInstance{}.kind():
		return decodeAs[PutInstance](data)
	case DeleteInstance{}.kind():
		return decodeAs[DeleteInstance](data)
	case MoveInstance{}.kind():
		return decodeAs[MoveInstance](data)
	case PutVIP{}.kind():
		return decodeAs[PutVIP](data)
	case DeleteVIP{}.kind():
		return decodeAs[DeleteVIP](data)
	case PutService{}.kind():
		return decodeAs[PutService](data)
	case DeleteService{}.kind():
		return decodeAs[DeleteService](data)
	case SetEndpointAdmin{}.kind():
		return decodeAs[SetEndpointAdmin](data)
	case RecordFailover{}.kind():
		return decodeAs[RecordFailover](data)
	case SetHealth{}.kind():
		return decodeAs[SetHealth](data)
	case PutBGP{}.kind():
		return decodeAs[PutBGP](data)
	case PutBGPPeer{}.kind():
		return decodeAs[PutBGPPeer](data)
	case DeleteBGPPeer{}.kind():
		return decodeAs[DeleteBGPPeer](data)
	case PutPool{}.kind():
		return decodeAs[PutPool](data)
	case DeletePool{}.kind():
		return decodeAs[DeletePool](data)
	case ReserveAddress{}.kind():
		return decodeAs[ReserveAddress](data)
	case UnreserveAddress{}.kind():
		return decodeAs[UnreserveAddress](data)
	case Batch{}.kind():
		return decodeAs[Batch](data)
	}
	return nil, refuse(ErrUnsupported, "decode command: type %s is unknown: upgrade this node", shown(kind))
}

func decodeAs[C Command](data []byte) (Command, error) {
	var c C
	if err := strict(data, &c); err != nil {
		if errors.Is(err, ErrUnsupported) {
			return nil, fmt.Errorf("decode command %s: %w", c.kind(), err)
		}
		return nil, refuse(ErrInvalid, "decode command %s: %v", c.kind(), err)
	}
	return c, nil
}

// strict reads exactly one JSON value and no key it does not know.
func strict(b []byte, into any) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(into); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is something after the end")
	}
	return nil
}

// peekVersion returns the version of bytes that cannot be read otherwise; 0 if
// there is none.
func peekVersion(b []byte) int {
	var probe struct {
		Version int `json:"v"`
	}
	if json.Unmarshal(b, &probe) != nil {
		return 0
	}
	return probe.Version
}

// batchData is the form of a Batch in the log.
type batchData struct {
	Commands []json.RawMessage `json:"commands"`
}

// MarshalJSON writes each command in its envelope.
func (b Batch) MarshalJSON() ([]byte, error) {
	out := batchData{Commands: make([]json.RawMessage, len(b.Commands))}
	for i, c := range b.Commands {
		raw, err := Encode(c)
		if err != nil {
			return nil, fmt.Errorf("command %d: %w", i+1, err)
		}
		out.Commands[i] = raw
	}
	return json.Marshal(out)
}

// UnmarshalJSON reads what MarshalJSON wrote. A batch inside the batch is an
// error, so that hostile bytes cannot make it recurse.
func (b *Batch) UnmarshalJSON(data []byte) error {
	var in batchData
	if err := strict(data, &in); err != nil {
		return err
	}
	b.Commands = make([]Command, len(in.Commands))
	for i, raw := range in.Commands {
		c, err := decode(raw, false)
		if err != nil {
			return fmt.Errorf("command %d: %w", i+1, err)
		}
		b.Commands[i] = c
	}
	return nil
}

// UnmarshalJSON reads an endpoint; without the key "weight" it has weight 1.
// Unknown keys are an error.
func (e *Endpoint) UnmarshalJSON(b []byte) error {
	type plain Endpoint // without this method
	p := plain{Weight: 1}
	if err := strict(b, &p); err != nil {
		return err
	}
	*e = Endpoint(p)
	return nil
}
