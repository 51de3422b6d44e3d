package node

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"time"

	"pontoon/fsm"
	"pontoon/transport"
)

// The CA's key is needed wherever a leader may be, so each voter keeps a copy,
// and a new voter fetches it from another over a protocol of its own on the
// mutual-TLS port. It is never part of the state, the API or a log.

const (
	caKeyTimeout = 3 * time.Second
	maxCAKey     = 4096
)

// serveCAKey gives the key to a peer that the committed state calls a voter.
func (m *member) serveCAKey(ctx context.Context, conn net.Conn, peer string) {
	defer conn.Close()
	if err := m.sendCAKey(conn, peer); err != nil {
		m.logger.Warn("ca key not given", "peer", peer, "err", err)
		return
	}
	m.logger.Info("gave the ca key to a voter", "peer", peer)
}

func (m *member) sendCAKey(conn net.Conn, peer string) error {
	peerKey, _ := transport.PeerKey(conn)
	s := m.store.State()
	n, _ := s.Node(fsm.NodeID(peer))
	if checkMember(s, machine{peer, peerKey}) != nil || !n.Voter || m.contact.stale(time.Now()) {
		return fmt.Errorf("%s is not known here as a voter", peer)
	}
	ca, err := transport.LoadCA(m.cfg.DataDir)
	if err != nil {
		return err
	}
	key, err := ca.MarshalKey()
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(caKeyTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	_, err = conn.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(key))), key...))
	return err
}

// caKeyLoop fetches the key once this node votes and has none.
func (m *member) caKeyLoop(ctx context.Context) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		done, err := m.caKeyOnce(ctx)
		if done {
			return nil
		}
		if err != nil {
			m.logger.Debug("ca key not received yet", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.store.Changed():
		}
	}
}

func (m *member) caKeyOnce(ctx context.Context) (done bool, err error) {
	if _, err := transport.LoadCA(m.cfg.DataDir); err == nil {
		return true, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	s := m.store.State()
	if me, ok := s.Node(fsm.NodeID(m.cfg.Name)); !ok || !me.Voter {
		return false, nil
	}
	var errs []error
	for _, n := range s.Nodes() {
		if !n.Voter || !n.Alive || string(n.Name) == m.cfg.Name {
			continue
		}
		if err = m.fetchCAKey(ctx, n); err == nil {
			m.logger.Info("received the ca key", "peer", n.Name)
			return true, nil
		}
		errs = append(errs, fmt.Errorf("from %s: %w", n.Name, err))
	}
	return false, errors.Join(errs...)
}

func (m *member) fetchCAKey(ctx context.Context, n fsm.Node) error {
	ctx, cancel := context.WithTimeout(ctx, caKeyTimeout)
	defer cancel()
	conn, err := m.mux.Dial(ctx, n.Address, transport.ALPNCA, string(n.Name))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(caKeyTimeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	var size [4]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return fmt.Errorf("read ca key: %w", err)
	}
	l := binary.BigEndian.Uint32(size[:])
	if l > maxCAKey {
		return fmt.Errorf("read ca key: %d bytes is too long", l)
	}
	key := make([]byte, l)
	if _, err := io.ReadFull(conn, key); err != nil {
		return fmt.Errorf("read ca key: %w", err)
	}
	ca, err := transport.ParseCA(m.id.CA(), key)
	if err != nil {
		return err
	}
	return ca.Save(m.cfg.DataDir)
}
