package transport

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"testing"
	"time"
)

const replTestRecord = 128

// replTable is a flow table as the tests need it: what this node owns, and what
// it holds for its peers. A record is key, version and an operation.
type replTable struct {
	mu       sync.Mutex
	own      map[uint64]uint64
	replicas map[string]map[uint64]uint64
	named    map[string]map[uint64]bool
	begun    map[string]int
	ended    map[string]int
	repairs  map[string]map[uint32]bool // buckets under repair
	calls    map[string]int             // sink calls under way, must never pass 1

	chunk int                                          // records a snapshot chunk holds
	step  func(read int)                               // called before each chunk is read
	after func()                                       // called between reading a chunk and giving it away
	gate  func(ctx context.Context, peer string) error // called by Apply
	end   func(ctx context.Context, peer string) error // called by SnapshotEnd
	fail  func(format string, args ...any)             // a broken promise of the replicator
	heirs *replHeirs                                   // what is known of owners that died, if wanted
	log   []string                                     // sink calls, if wanted
	trace bool
}

func newReplTable(t testing.TB) *replTable {
	return &replTable{
		own: map[uint64]uint64{}, replicas: map[string]map[uint64]uint64{}, named: map[string]map[uint64]bool{},
		repairs: map[string]map[uint32]bool{},
		begun:   map[string]int{}, ended: map[string]int{}, calls: map[string]int{}, chunk: 64, fail: t.Errorf,
	}
}

func replRecord(key, version uint64, del bool) []byte {
	b := make([]byte, replTestRecord)
	binary.BigEndian.PutUint64(b, key)
	binary.BigEndian.PutUint64(b[8:], version)
	if del {
		b[16] = 1
	}
	return b
}

// put changes a record and returns what is to be published.
func (m *replTable) put(key, version uint64) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.own[key] = version
	return replRecord(key, version, false)
}

func (m *replTable) del(key uint64) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.own, key)
	return replRecord(key, 0, true)
}

func (m *replTable) Snapshot(ctx context.Context) iter.Seq2[[]byte, error] {
	return m.snapshot(ctx, func(uint64) bool { return true })
}

func (m *replTable) snapshot(ctx context.Context, wanted func(key uint64) bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		m.mu.Lock()
		keys := slices.Sorted(maps.Keys(m.own))
		m.mu.Unlock()
		keys = slices.DeleteFunc(keys, func(k uint64) bool { return !wanted(k) })
		for i, part := range slices.Collect(slices.Chunk(keys, m.chunk)) {
			if m.step != nil {
				m.step(i)
			}
			if ctx.Err() != nil {
				return
			}
			var b bytes.Buffer
			m.mu.Lock()
			for _, k := range part {
				if v, ok := m.own[k]; ok {
					b.Write(replRecord(k, v, false))
				}
			}
			m.mu.Unlock()
			if m.after != nil {
				m.after()
			}
			if !yield(b.Bytes(), nil) {
				return
			}
		}
	}
}

func (m *replTable) enter(peer, what string) func() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.calls[peer]++; m.calls[peer] > 1 {
		m.fail("sink calls for %s overlap", peer)
	}
	if m.trace {
		m.log = append(m.log, what)
	}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.calls[peer]--
	}
}

func (m *replTable) SnapshotBegin(peer string) {
	defer m.enter(peer, "begin")()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begun[peer]++
	m.named[peer] = map[uint64]bool{}
	delete(m.repairs, peer)
}

func (m *replTable) Apply(ctx context.Context, peer string, records []byte) error {
	defer m.enter(peer, "apply")()
	if len(records) == 0 || len(records)%replTestRecord != 0 {
		m.fail("apply got %d bytes", len(records))
	}
	if m.gate != nil {
		if err := m.gate(ctx, peer); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	table := m.replicas[peer]
	if table == nil {
		table = map[uint64]uint64{}
		m.replicas[peer] = table
	}
	for ; len(records) > 0; records = records[replTestRecord:] {
		if m.heirs != nil && m.heirs.apply(m, peer, records[:replTestRecord]) {
			continue
		}
		key, version := binary.BigEndian.Uint64(records), binary.BigEndian.Uint64(records[8:])
		if records[16] == 1 {
			delete(table, key)
			continue
		}
		table[key] = version
		if named := m.named[peer]; named != nil {
			named[key] = true
		}
	}
	return nil
}

func (m *replTable) SnapshotEnd(ctx context.Context, peer string) error {
	defer m.enter(peer, "end")()
	if m.end != nil {
		if err := m.end(ctx, peer); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.named[peer] == nil || m.repairs[peer] != nil {
		m.fail("a snapshot of %s ends that was not begun", peer)
	}
	m.ended[peer]++
	maps.DeleteFunc(m.replicas[peer], func(k, _ uint64) bool { return !m.named[peer][k] })
	m.named[peer] = nil
	return nil
}

func (m *replTable) owned() map[uint64]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.own)
}

func (m *replTable) replica(peer string) map[uint64]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := maps.Clone(m.replicas[peer])
	if out == nil {
		out = map[uint64]uint64{}
	}
	return out
}

// replNet connects replicators of one test.
type replNet struct {
	t     testing.TB
	pipe  bool
	ctx   context.Context
	stop  func() // ends all replicators and waits for them
	wg    sync.WaitGroup
	mu    sync.Mutex
	nodes map[string]*replNode
	conns map[string][]net.Conn // by "from>to", both ends
	cut   map[string]bool       // nodes that cannot be dialled
}

type replNode struct {
	*Replicator
	name  string
	table *replTable
}

func newReplNet(t testing.TB, pipe bool) *replNet {
	ctx, cancel := context.WithCancel(t.Context())
	n := &replNet{t: t, pipe: pipe, ctx: ctx, nodes: map[string]*replNode{}, conns: map[string][]net.Conn{}, cut: map[string]bool{}}
	n.stop = func() {
		cancel()
		n.wg.Wait()
	}
	t.Cleanup(n.stop)
	return n
}

// add starts a replicator; tune may change its configuration and table.
func (n *replNet) add(name string, tune func(*ReplicationConfig, *replTable)) *replNode {
	n.t.Helper()
	table := newReplTable(n.t)
	cfg := ReplicationConfig{
		Node: name, RecordVersions: []uint16{1}, Source: table, Sink: table, Dial: n.dialer(name),
		ReconnectMin: 2 * time.Millisecond, ReconnectMax: 50 * time.Millisecond,
		Logger: slog.New(slog.DiscardHandler),
	}
	if tune != nil {
		tune(&cfg, table)
	}
	r, err := NewReplicator(cfg)
	if err != nil {
		n.t.Fatal(err)
	}
	node := &replNode{Replicator: r, name: name, table: table}
	n.mu.Lock()
	n.nodes[name] = node
	n.mu.Unlock()
	n.wg.Go(func() {
		if err := r.Run(n.ctx); err != nil {
			n.t.Errorf("run %s: %v", name, err)
		}
	})
	return node
}

func (n *replNet) dialer(from string) func(context.Context, ReplicationPeer) (net.Conn, error) {
	return func(ctx context.Context, p ReplicationPeer) (net.Conn, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		to := n.nodes[p.Address]
		if to == nil || n.cut[from] || n.cut[p.Address] {
			return nil, errors.New("no route to host")
		}
		near, far, err := replConnPair(n.pipe)
		if err != nil {
			return nil, err
		}
		key := from + ">" + p.Address
		n.conns[key] = []net.Conn{near, far}
		n.wg.Go(func() { to.Serve(n.ctx, far, from) })
		return near, nil
	}
}

func replConnPair(pipe bool) (near, far net.Conn, err error) {
	if pipe {
		near, far = net.Pipe()
		return near, far, nil
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, nil, fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	if near, err = net.Dial("tcp", l.Addr().String()); err != nil {
		return nil, nil, fmt.Errorf("dial: %w", err)
	}
	if far, err = l.Accept(); err != nil {
		return nil, nil, fmt.Errorf("accept: %w", err)
	}
	return near, far, nil
}

// sever closes the stream between two nodes under their feet.
func (n *replNet) sever(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns[from+">"+to] {
		_ = c.Close()
	}
}

// mesh makes every node replicate to every other.
func (n *replNet) mesh() {
	n.mu.Lock()
	defer n.mu.Unlock()
	var peers []ReplicationPeer
	for name := range n.nodes {
		peers = append(peers, ReplicationPeer{Node: name, Address: name})
	}
	for _, node := range n.nodes {
		node.SetPeers(peers)
	}
}

// replEventually polls until cond holds.
func replEventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(20 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("not reached in time: %s", what)
		}
	}
}

// awaitEqual waits until to holds exactly what from owns, and both say so.
func (n *replNet) awaitEqual(from, to *replNode) {
	n.t.Helper()
	replEventually(n.t, fmt.Sprintf("%s holds what %s owns", to.name, from.name), func() bool {
		return from.status(to.name).State == ReplicationStreaming &&
			to.status(from.name).Inbound == ReplicationStreaming &&
			from.status(to.name).LagRecords == 0 &&
			maps.Equal(from.table.owned(), to.table.replica(from.name))
	})
}

func (n *replNode) status(peer string) ReplicationStatus {
	for _, s := range n.Status() {
		if s.Peer == peer {
			return s
		}
	}
	return ReplicationStatus{}
}

// churn changes records of the node until stop is closed.
func (n *replNode) churn(wg *sync.WaitGroup, keys uint64, stop <-chan struct{}) {
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for version := uint64(1); ; {
			for range 100 {
				key := version * 7919 % keys
				if version%5 == 0 {
					n.Publish(n.table.del(key))
				} else {
					n.Publish(n.table.put(key, version))
				}
				version++
			}
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	})
}
