package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"pontoon/fsm"
	"pontoon/web"
)

// usesTimeout is how long another node may take to say what it uses addresses for: an operator waits.
const usesTimeout = 2 * time.Second

// Uses implements web.Backend: this node and the others are asked at once.
func (d *daemon) Uses(ctx context.Context) ([]web.NodeUses, error) {
	m, err := d.current()
	if err != nil {
		return nil, err
	}
	own, err := m.ownUses()
	if err != nil {
		return nil, fmt.Errorf("list what addresses are used for: %w", err)
	}
	return gatherUses(ctx, m.store.State().Nodes(), fsm.NodeID(m.cfg.Name), own, func(ctx context.Context, n fsm.NodeID) ([]web.AddressUse, error) {
		var uses []web.AddressUse
		err := m.peers.callFor(ctx, string(n), "/internal/uses", struct{}{}, &uses)
		return uses, err
	}), nil
}

// gatherUses asks the load balancers but self, which has said own. One that is dead by the last verdict is not waited for.
func gatherUses(ctx context.Context, nodes []fsm.Node, self fsm.NodeID, own []web.AddressUse, ask func(context.Context, fsm.NodeID) ([]web.AddressUse, error)) []web.NodeUses {
	ctx, cancel := context.WithTimeout(ctx, usesTimeout)
	defer cancel()
	out := make([]web.NodeUses, 0, len(nodes))
	for _, n := range nodes {
		if n.Role == fsm.RoleLB {
			out = append(out, web.NodeUses{Node: n.Name})
			if n.Name != self && !n.Alive {
				out[len(out)-1].Error = "it is down"
			}
		}
	}
	var asked sync.WaitGroup
	for i := range out {
		n := &out[i]
		switch {
		case n.Node == self:
			n.Uses = own
		case n.Error == "":
			asked.Go(func() {
				uses, err := ask(ctx, n.Node)
				if err != nil {
					n.Error = unasked(err)
				}
				n.Uses = uses
			})
		}
	}
	asked.Wait()
	return out
}

// unasked says why a node gave no answer, in words for who asked for a pool; those of err are about commands.
func unasked(err error) string {
	dial := (*dialError)(nil)
	switch {
	case errors.As(err, &dial), errors.Is(err, context.DeadlineExceeded):
		return "it does not answer"
	case errors.Is(err, errUnknownOutcome):
		return "its answer cannot be read; it may be of an earlier version"
	}
	return err.Error()
}

// ownUses is what this node uses addresses for.
func (m *member) ownUses() ([]web.AddressUse, error) {
	if m.host == nil {
		return nil, nil // a witness has no links that matter
	}
	uses, err := m.host.Uses()
	if err != nil {
		return nil, err
	}
	out := make([]web.AddressUse, len(uses))
	for i, u := range uses {
		out[i] = web.AddressUse{Prefix: u.Prefix, What: u.What}
	}
	return out, nil
}

// serveUses answers another node's Uses.
func (m *member) serveUses(w http.ResponseWriter, _ *http.Request) {
	uses, err := m.ownUses()
	answer(w, 0, uses, err)
}
