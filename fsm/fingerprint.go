package fsm

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// Absent is the fingerprint of what is not there.
const Absent = "absent"

// Fingerprint identifies the content, as operators configure it, of what a command would replace, or Absent: two states
// have the same one if, and only if, the object is the same in both. Who sends back what it has read, with a change of its own, can
// have the command refused if somebody else has changed the object meanwhile. What the cluster decides (a master, an epoch) is
// no part of it, and neither is a password, which cannot be read. Of a batch it is that of the last command that has one.
// False: the command replaces nothing as a whole.
func (s *State) Fingerprint(c Command) (string, bool) {
	switch c := c.(type) {
	case PutService:
		v, ok := s.Service(c.Service.Name)
		return fingerprint("service", v, ok), true
	case PutVIP:
		v, ok := s.VIP(c.VIP.Address.Unmap())
		return fingerprint("vip", v, ok), true
	case PutInstance:
		v, ok := s.Instance(c.Name)
		v.Assignment = Assignment{}
		return fingerprint("instance", v, ok), true
	case PutPool:
		v, ok := s.Pool(c.Pool.Name)
		return fingerprint("pool", v, ok), true
	case PutBGP:
		return fingerprint("bgp", s.BGP(), true), true
	case PutBGPPeer:
		v, ok := s.BGPPeer(c.Peer.Address, c.Peer.Node)
		return fingerprint("bgp peer", v.Shown(), ok), true
	case Batch:
		for i := len(c.Commands) - 1; i >= 0; i-- {
			if tag, ok := s.Fingerprint(c.Commands[i]); ok {
				return tag, true
			}
		}
	}
	return "", false
}

// CheckFingerprint refuses a command with ErrChanged if what it would replace has another fingerprint than the one
// wanted, and with ErrInvalid if it has none.
func (s *State) CheckFingerprint(c Command, want string) error {
	got, ok := s.Fingerprint(c)
	switch {
	case !ok:
		return refuse(ErrInvalid, "%s replaces nothing that could have changed", c.kind())
	case got == want:
		return nil
	case got == Absent:
		return refuse(ErrChanged, "it has been deleted meanwhile: nothing was changed")
	case want == Absent:
		return refuse(ErrChanged, "it has been created meanwhile: nothing was changed; read it and try again")
	}
	return refuse(ErrChanged, "it has been changed meanwhile by somebody else: nothing was changed; read it and try again")
}

// fingerprint is the same on every node: JSON of a struct has its fields in order, and keys of maps are sorted.
func fingerprint(kind string, v any, there bool) string {
	if !there {
		return Absent
	}
	b, err := json.Marshal(v)
	if err != nil { // none of the types above can fail; should one, it is equal to nothing but itself
		b = fmt.Appendf(nil, "%#v", v)
	}
	sum := sha256.Sum256(append([]byte(kind+" "), b...))
	return hex.EncodeToString(sum[:16])
}
