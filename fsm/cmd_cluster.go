package fsm

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"slices"
	"time"
)

// MaxTokenTTL is the longest life of a join token.
const MaxTokenTTL = 366 * 24 * time.Hour

// TokenMemory is how long an expired token is remembered, so that its use is
// answered with "expired" and not with "unknown".
const TokenMemory = 24 * time.Hour

// recoveredVoters is how many voters end the state of emergency that
// RecoverCluster leaves: the fewest that go on without one of them.
const recoveredVoters = 3

// gossipKeyLen selects AES-256.
const gossipKeyLen = 32

func (c InitCluster) apply(d *draft) error {
	if d.cluster.ID != "" {
		return refuse(ErrAlreadyInitialised,
			"node is in cluster %s already: run \"pontoon leave\" first to make a new one", d.cluster.ID)
	}
	chk := &checker{object: "cluster"}
	chk.name("id", c.Cluster.ID)
	if len(c.Cluster.CA) == 0 {
		chk.bad("ca", nil, "is missing: give the DER certificate of the cluster's authority")
	}
	if len(c.Cluster.GossipKey) == 0 {
		chk.bad("gossip_key", nil, "is missing: give at least one key of %d random bytes", gossipKeyLen)
	}
	for _, key := range c.Cluster.GossipKey {
		chk.gossipKey(key)
	}
	n := d.newNode(chk, c.Node)
	if err := chk.err(); err != nil {
		return err
	}
	n.Voter, n.Alive = true, true
	d.cluster = cloneCluster(c.Cluster)
	d.putNode(n)
	return nil
}

func (chk *checker) gossipKey(key []byte) {
	if len(key) != gossipKeyLen {
		chk.bad("gossip_key", nil, "has a key of %d bytes: every key must have %d", len(key), gossipKeyLen)
	}
}

// cloneCluster keeps the state apart from what the caller may write to.
func cloneCluster(c Cluster) Cluster {
	c.CA = bytes.Clone(c.CA)
	keys := make([][]byte, len(c.GossipKey))
	for i, key := range c.GossipKey {
		keys[i] = bytes.Clone(key)
	}
	c.GossipKey = keys
	c.Recoveries, c.Without = 0, nil
	return c
}

func (c CreateToken) apply(d *draft) error {
	t := c.Token
	// Microseconds are plenty, and a time without a location and a monotonic
	// part has one form only.
	t.Expires = t.Expires.UTC().Truncate(time.Microsecond)
	t.Hash = bytes.Clone(t.Hash)
	chk := &checker{object: "token " + shown(t.ID)}
	chk.name("id", t.ID)
	if d.tokens.has(t.ID) {
		chk.clash(ErrExists, "id", t.ID, "exists already: make the token with another id")
	}
	if len(t.Hash) != sha256.Size {
		chk.bad("hash", nil, "has %d bytes: it must be the SHA-256 of the secret, %d bytes", len(t.Hash), sha256.Size)
	}
	oneOf(chk, "role", t.Role, RoleLB, RoleWitness)
	if !t.Expires.After(c.Now) {
		chk.bad("expires", stamp(t.Expires), "is not in the future: give a longer --ttl")
	}
	if t.Expires.Sub(c.Now) > MaxTokenTTL || t.Expires.Year() > 9999 {
		chk.bad("expires", stamp(t.Expires), "is more than %s away: give a shorter --ttl", MaxTokenTTL)
	}
	if err := chk.err(); err != nil {
		return err
	}
	for _, old := range d.tokens.values() {
		if c.Now.Sub(old.Expires) > TokenMemory {
			d.tokens.drop(old.ID)
		}
	}
	d.tokens.put(t.ID, t)
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func (c RevokeToken) apply(d *draft) error {
	if !d.tokens.has(c.ID) {
		return refuse(ErrNotFound, "token %s is unknown, used or revoked already: see \"pontoon token list\"", shown(c.ID))
	}
	d.tokens.drop(c.ID)
	return nil
}

func (c JoinNode) apply(d *draft) error {
	if err := d.checkToken(c); err != nil {
		return err
	}
	chk := &checker{object: "node " + shown(c.Node.Name)}
	n := d.newNode(chk, c.Node)
	if err := chk.err(); err != nil {
		return err
	}
	d.tokens.drop(c.TokenID)
	d.putNode(n)
	return nil
}

func (d *draft) checkToken(c JoinNode) error {
	const mend = "make a new one with \"pontoon token create\""
	t := d.tokens.get(c.TokenID)
	switch {
	case t == nil:
		return refuse(ErrTokenInvalid, "token %s is unknown, used or revoked: %s", shown(c.TokenID), mend)
	case subtle.ConstantTimeCompare(t.Hash, c.SecretHash) != 1:
		return refuse(ErrTokenInvalid, "token %s comes with the wrong secret: copy the whole token, or %s", t.ID, mend)
	case !c.Now.Before(t.Expires):
		return refuse(ErrTokenInvalid, "token %s expired at %s: %s", t.ID, stamp(t.Expires), mend)
	case t.Role != c.Node.Role:
		return refuse(ErrTokenInvalid, "token %s is for role %s, and the node has role %s: %s --role %s",
			t.ID, t.Role, shown(c.Node.Role), "make one with \"pontoon token create\"", shown(c.Node.Role))
	}
	return nil
}

func (c SetVoter) apply(d *draft) error {
	n, err := d.member(c.Node)
	if err != nil {
		return err
	}
	n.Voter = true
	d.putNode(n)
	if d.voters() >= recoveredVoters {
		d.cluster.Without = nil
	}
	return nil
}

func (d *draft) voters() int {
	voters := 0
	for _, n := range d.nodes.values() {
		if n.Voter {
			voters++
		}
	}
	return voters
}

func (c RemoveNode) apply(d *draft) error {
	n, err := d.member(c.Node)
	if err != nil {
		return err
	}
	others := slices.ContainsFunc(d.nodes.values(), func(o Node) bool { return o.Voter && o.Name != n.Name })
	if n.Voter && !others && !c.Force {
		return refuse(ErrInUse, "node %s is the last voter, without it the cluster is gone: use --force if that is meant", n.Name)
	}
	d.dropNode(n.Name)
	return nil
}

// dropNode takes a member out, and out of all priorities and of BGP.
func (d *draft) dropNode(name NodeID) {
	d.nodes.drop(name)
	for _, inst := range d.instances.values() {
		if _, ok := inst.Priorities[name]; ok {
			inst.Priorities = priorities(inst.Priorities, name)
			d.instances.put(inst.Name, inst)
		}
	}
	d.dropNodeOfBGP(name)
	d.elect = true
}

func (c RecoverCluster) apply(d *draft) error {
	me, err := d.member(c.Survivor)
	if err != nil {
		return err
	}
	chk := &checker{object: "cluster"}
	if !me.Voter {
		chk.bad("survivor", me.Name, "has no vote, so it may lack much of what was decided: recover on a voter")
	}
	chk.gossipKey(c.GossipKey)
	if err := chk.err(); err != nil {
		return err
	}
	var without []NodeID // in order, as the nodes are
	for _, n := range d.nodes.values() {
		if n.Name != me.Name {
			d.dropNode(n.Name)
			without = append(without, n.Name)
		}
	}
	me.Alive = true
	d.putNode(me)
	d.cluster.Recoveries++
	d.cluster.Without = without
	d.cluster.GossipKey = [][]byte{bytes.Clone(c.GossipKey)}
	return nil
}
