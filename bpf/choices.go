package bpf

import "net/netip"

// choices remembers the selection table of each service and what it follows from: when one endpoint dies,
// only the tables that name it are computed anew. The zero value is ready; guarded by syncMu.
type choices map[pontoonServiceKey]selected

type selected struct {
	algorithm Algorithm
	seed      uint32
	members   []chosen
	table     []uint16 // endpoint ids; read only
}

// chosen is what of an endpoint a table depends on.
type chosen struct {
	id     uint32
	addr   netip.AddrPort
	weight uint16
}

// table returns the selection table of s, which must not be written to.
func (c *choices) table(key pontoonServiceKey, s *Service) []uint16 {
	if at, ok := (*c)[key]; ok && at.suits(s) {
		return at.table
	}
	positions := selectionTable(s.Algorithm, s.Seed, s.Endpoints)
	at := selected{algorithm: s.Algorithm, seed: s.Seed, table: make([]uint16, len(positions))}
	for i, p := range positions {
		at.table[i] = uint16(s.Endpoints[p].ID)
	}
	for i := range s.Endpoints {
		if e := &s.Endpoints[i]; e.takesNew() {
			at.members = append(at.members, chosen{e.ID, e.Addr, e.Weight})
		}
	}
	if *c == nil {
		*c = choices{}
	}
	(*c)[key] = at
	return at.table
}

// suits tells whether the table of s is the one of c. Endpoints that take no new flows are in no table.
func (c *selected) suits(s *Service) bool {
	if c.algorithm != s.Algorithm || c.seed != s.Seed {
		return false
	}
	n := 0
	for i := range s.Endpoints {
		e := &s.Endpoints[i]
		if !e.takesNew() {
			continue
		}
		if n == len(c.members) || c.members[n] != (chosen{e.ID, e.Addr, e.Weight}) {
			return false
		}
		n++
	}
	return n == len(c.members)
}

// forget drops the table of a service that is gone.
func (c *choices) forget(key pontoonServiceKey) { delete(*c, key) }
