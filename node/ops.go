package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"pontoon/bpf"
	"pontoon/fsm"
	"pontoon/node/host"
	"pontoon/transport"
	"pontoon/web"
)

// firstTokenTTL is the life of the token that init prints.
const firstTokenTTL = time.Hour

// noCluster refuses what only a machine in no cluster may do.
func (d *daemon) noCluster(act string) error {
	ms, err := loadMembership(d.cfg.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	return &remoteError{
		text: fmt.Sprintf("cannot %s: this machine is already in cluster %s as %s; run `pontoon leave` first", act, ms.ClusterID, ms.Name),
		kind: fsm.ErrAlreadyInitialised,
	}
}

// Init implements web.ClusterOps.
func (d *daemon) Init(ctx context.Context) (web.InitResult, error) {
	d.op.Lock()
	defer d.op.Unlock()
	if err := d.noCluster("init"); err != nil {
		return web.InitResult{}, err
	}
	if d.cfg.Role != string(fsm.RoleLB) {
		return web.InitResult{}, errors.New("cannot init: a witness cannot be the first node; init on a node of role lb and join this one")
	}
	if err := checkPorts(ctx, d.cfg); err != nil {
		return web.InitResult{}, err
	}
	res, err := d.initCluster(ctx)
	if err != nil {
		return res, errors.Join(fmt.Errorf("init: %w", err), d.undo())
	}
	d.notify()
	return res, nil
}

// undo removes what a failed init or join left.
func (d *daemon) undo() error {
	err := d.stopMember()
	return errors.Join(err, d.releaseHost(nil), forget(d.cfg.DataDir))
}

func (d *daemon) initCluster(ctx context.Context) (web.InitResult, error) {
	var res web.InitResult
	if err := forget(d.cfg.DataDir); err != nil {
		return res, err
	}
	cluster, ca, err := newCluster()
	if err != nil {
		return res, err
	}
	id, err := firstIdentity(ca, d.cfg)
	if err != nil {
		return res, err
	}
	if err := errors.Join(ca.Save(d.cfg.DataDir), id.Save(d.cfg.DataDir)); err != nil {
		return res, err
	}
	ms := membership{ClusterID: cluster.ID, Name: d.cfg.Name, Role: d.cfg.Role, Address: d.cfg.Cluster.Address}
	m, err := d.startMember(id, ms, true)
	if err != nil {
		return res, err
	}
	key := id.Key()
	_, err = m.Propose(ctx, fsm.InitCluster{Cluster: cluster, Node: fsm.Node{
		Name: fsm.NodeID(d.cfg.Name), Role: fsm.RoleLB, Address: d.cfg.Cluster.Address, GossipPort: d.cfg.Cluster.GossipPort,
		Voter: true, Alive: true, Key: key[:],
	}})
	if err != nil {
		return res, err
	}
	token, err := m.createToken(ctx, fsm.RoleLB, firstTokenTTL)
	if err != nil {
		return res, err
	}
	if err := ms.save(d.cfg.DataDir); err != nil {
		return res, err
	}
	return web.InitResult{
		ClusterID: cluster.ID, Token: token,
		JoinCommand: fmt.Sprintf("pontoon join %s --token %s", d.cfg.Cluster.Address, token),
	}, nil
}

// newCluster draws everything random a cluster has.
func newCluster() (fsm.Cluster, *transport.CA, error) {
	var raw [8 + 4 + 32]byte
	if _, err := rand.Read(raw[:]); err != nil {
		return fsm.Cluster{}, nil, fmt.Errorf("draw random bytes: %w", err)
	}
	id := hex.EncodeToString(raw[:8])
	ca, err := transport.NewCA(id)
	if err != nil {
		return fsm.Cluster{}, nil, err
	}
	return fsm.Cluster{
		ID: id, CA: ca.Certificate(), GossipKey: [][]byte{raw[12:]}, Seed: binary.LittleEndian.Uint32(raw[8:12]),
	}, ca, nil
}

func firstIdentity(ca *transport.CA, cfg Config) (*transport.Identity, error) {
	addr, err := netip.ParseAddrPort(cfg.Cluster.Address)
	if err != nil {
		return nil, fmt.Errorf("cluster address: %w", err)
	}
	req, err := transport.NewRequest(cfg.Name)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Sign(req.CSR(), cfg.Name, []netip.Addr{addr.Addr()})
	if err != nil {
		return nil, err
	}
	return req.Finish(cert, ca.Certificate())
}

// Join implements web.ClusterOps.
func (d *daemon) Join(ctx context.Context, req web.JoinRequest) (web.JoinResult, error) {
	d.op.Lock()
	defer d.op.Unlock()
	var res web.JoinResult
	if err := d.noCluster("join"); err != nil {
		return res, err
	}
	token, err := transport.ParseToken(req.Token)
	if err != nil {
		return res, &remoteError{text: err.Error(), kind: fsm.ErrTokenInvalid}
	}
	if token.Role != d.cfg.Role {
		return res, &remoteError{kind: fsm.ErrTokenInvalid, text: fmt.Sprintf(
			"the token is for a node of role %s, this one has role %s: make a token with `pontoon token create --role %s`", token.Role, d.cfg.Role, d.cfg.Role)}
	}
	if err := checkPorts(ctx, d.cfg); err != nil {
		return res, err
	}
	if err := forget(d.cfg.DataDir); err != nil {
		return res, err
	}
	// Who asked may go away: a member that does not know that it is one is worse than either end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), joinTimeout)
	defer cancel()
	id, reply, err := requestJoin(ctx, d.cfg, req.Address, token)
	if errors.Is(err, errUnknownOutcome) {
		return res, fmt.Errorf("%w; if `pontoon status` on another node names %s, take it out there with `pontoon node remove %s` first", err, d.cfg.Name, d.cfg.Name)
	} else if err != nil {
		return res, err
	}
	if err := d.becomeMember(id, reply); err != nil {
		return res, errors.Join(fmt.Errorf("joined, but cannot start as a member (remove it with `pontoon node remove %s` on another node, then join again): %w", d.cfg.Name, err), d.undo())
	}
	d.notify()
	return web.JoinResult{ClusterID: reply.ClusterID, Name: fsm.NodeID(d.cfg.Name), Role: fsm.Role(d.cfg.Role)}, nil
}

func (d *daemon) becomeMember(id *transport.Identity, reply joinReply) error {
	if err := id.Save(d.cfg.DataDir); err != nil {
		return err
	}
	ms := membership{
		ClusterID: reply.ClusterID, Name: d.cfg.Name, Role: d.cfg.Role, Address: d.cfg.Cluster.Address,
		Slot: reply.Slot,
	}
	if _, err := d.startMember(id, ms, false); err != nil {
		return err
	}
	return ms.save(d.cfg.DataDir)
}

// CreateToken implements web.ClusterOps.
func (d *daemon) CreateToken(ctx context.Context, role fsm.Role, ttl time.Duration) (string, error) {
	m, err := d.current()
	if err != nil {
		return "", err
	}
	return m.createToken(ctx, role, ttl)
}

func (m *member) createToken(ctx context.Context, role fsm.Role, ttl time.Duration) (string, error) {
	t, err := transport.NewToken(string(role), m.id.CA())
	if err != nil {
		return "", err
	}
	now := time.Now().UTC()
	_, err = m.Propose(ctx, fsm.CreateToken{
		Token: fsm.Token{ID: t.ID, Hash: t.SecretHash(), Role: role, Expires: now.Add(ttl)}, Now: now,
	})
	if err != nil {
		return "", err
	}
	return t.String(), nil
}

// Leave implements web.ClusterOps. It hands over what this node owns, gives up
// leadership, and only then ceases to be a member.
func (d *daemon) Leave(ctx context.Context, force bool, progress func(string)) error {
	d.op.Lock()
	defer d.op.Unlock()
	m, err := d.current()
	if err != nil {
		return err
	}
	managed := m.managedVIPs()
	if last := m.isLastVoter(); m.removed() {
		progress("this node was removed from its cluster already")
	} else if last && !force {
		return &remoteError{kind: fsm.ErrInUse, text: fmt.Sprintf(
			"%s is the last voter: when it leaves, the cluster and its configuration end; use --force if that is what you want", d.cfg.Name)}
	} else if last {
		progress("this is the last voter: the cluster ends")
	} else if err := m.leave(ctx, force, progress); err != nil {
		return err
	}
	progress("stopping the data plane and forgetting the cluster")
	if m.routing != nil {
		m.routing.part()
	}
	err = errors.Join(d.stopMember(), d.releaseHost(managed), forget(d.cfg.DataDir))
	d.events.add(Event{Kind: web.EventLeave, Node: fsm.NodeID(d.cfg.Name), Text: d.cfg.Name + " left its cluster"})
	d.notify()
	return err
}

// releaseHost takes programs, pins, addresses and learned routes from this machine.
func (d *daemon) releaseHost(managed []netip.Addr) error {
	if d.cfg.Role != string(fsm.RoleLB) {
		return nil
	}
	h, err := host.New(d.logger)
	if err != nil {
		return err
	}
	_, _, err = h.SyncAddresses(nil, managed)
	_, _, rerr := h.SyncRoutes(nil, false)
	return errors.Join(err, rerr, h.Close(), bpf.Remove(d.cfg.DataPlane.PinDir, d.cfg.DataPlane.Interfaces))
}
