package transport

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrReplicationNoComparison is wrapped when a peer's replicas cannot be compared
// now: there is no complete copy, or the two nodes do not make the same digests.
var ErrReplicationNoComparison = errors.New("no comparison is possible")

// ReplicationComparison is what one look at this node's records and at a peer's
// replicas of them found.
type ReplicationComparison struct {
	Buckets int           `json:"buckets"` // compared
	Differ  []uint32      `json:"differ"`  // in rising order; what is under way makes buckets differ too
	Took    time.Duration `json:"took"`
}

// replAsk asks a stream for a comparison.
type replAsk struct{ answer chan replComparison }

type replComparison struct {
	ReplicationComparison
	err error
}

// Compare compares a peer's replicas with this node's records once, at once, and
// repairs nothing. It waits for a round of comparison that is under way. It looks at
// all records on both nodes, so it is for operators and tests. ctx bounds the wait.
func (r *Replicator) Compare(ctx context.Context, peer string) (ReplicationComparison, error) {
	r.mu.Lock()
	p := r.peers[peer]
	r.mu.Unlock()
	if p == nil {
		return ReplicationComparison{}, fmt.Errorf("compare with %s: not a peer: %w", peer, ErrReplicationNoComparison)
	}
	ask := replAsk{make(chan replComparison, 1)}
	// A stream that ends before it takes the question is seen at the next look.
	tick := time.NewTicker(r.cfg.KeepaliveInterval)
	defer tick.Stop()
	for {
		if err := p.comparable(); err != nil {
			return ReplicationComparison{}, fmt.Errorf("compare with %s: %w", peer, err)
		}
		select {
		case <-ctx.Done():
			return ReplicationComparison{}, fmt.Errorf("compare with %s: %w", peer, ctx.Err())
		case <-tick.C:
			continue
		case p.asks <- ask:
		}
		break
	}
	select {
	case <-ctx.Done():
		return ReplicationComparison{}, fmt.Errorf("compare with %s: %w", peer, ctx.Err())
	case c := <-ask.answer:
		if c.err != nil {
			return ReplicationComparison{}, fmt.Errorf("compare with %s: %w", peer, c.err)
		}
		return c.ReplicationComparison, nil
	}
}

// comparable says why the peer's replicas cannot be compared.
func (p *replPeer) comparable() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state != ReplicationStreaming {
		return fmt.Errorf("the stream is %s: %w", p.state, ErrReplicationNoComparison)
	}
	if p.terms.protocol < replProtocolDigests {
		return fmt.Errorf("protocol %d has no digests: %w", p.terms.protocol, ErrReplicationNoComparison)
	}
	return nil
}

// answer does a comparison that was asked for.
func (s *replStream) answer(ctx context.Context, ask replAsk) error {
	began := time.Now()
	differ, size, err := s.compareOnce(ctx)
	c := replComparison{err: err}
	if err == nil && size == 0 {
		c.err = fmt.Errorf("see the log of both nodes: %w", ErrReplicationNoComparison)
	}
	c.Buckets, c.Took = size, time.Since(began)
	for _, d := range differ {
		c.Differ = append(c.Differ, d.bucket)
	}
	ask.answer <- c
	return err
}
