package announce

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeWire records frames and can break links.
type fakeWire struct {
	mu    sync.Mutex
	links map[string]linkState // what lookup finds
	fail  error                // what send answers, if set
	log   []sentFrame
	ports map[lane]*fakePort
	start time.Time
}

type sentFrame struct {
	after time.Duration
	link  string
	claim claim
	frame []byte
}

type fakePort struct {
	wire *fakeWire
	on   lane
	in   chan []byte
	done chan struct{}
	once sync.Once
}

func newFakeWire() *fakeWire {
	return &fakeWire{
		links: map[string]linkState{"eth0": {index: 2, hw: testMAC}, "eth1": {index: 3, hw: mac{2, 0, 0, 0, 0, 0xb}}},
		ports: make(map[lane]*fakePort), start: time.Now(),
	}
}

func (w *fakeWire) set(name string, s linkState) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if s == (linkState{}) {
		delete(w.links, name)
		return
	}
	w.links[name] = s
}

func (w *fakeWire) setFail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = err
}

func (w *fakeWire) lookup(name string) (linkState, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s, ok := w.links[name]
	if !ok {
		return s, fmt.Errorf("link %s: %w", name, errLinkDown)
	}
	return s, nil
}

func (w *fakeWire) open(on lane, _ linkState) (port, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p := &fakePort{wire: w, on: on, in: make(chan []byte, 16), done: make(chan struct{})}
	w.ports[on] = p
	return p, nil
}

func (w *fakeWire) port(link string, proto protocol) *fakePort {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ports[lane{link: link, proto: proto}]
}

// take returns what was sent since the last take, by link: links are spoken on at the same time.
func (w *fakeWire) take() []sentFrame {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.log
	w.log = nil
	slices.SortStableFunc(out, func(a, b sentFrame) int { return strings.Compare(a.link, b.link) })
	return out
}

func (p *fakePort) send(b []byte) error {
	p.wire.mu.Lock()
	defer p.wire.mu.Unlock()
	select {
	case <-p.done:
		return net.ErrClosed
	default:
	}
	if p.wire.fail != nil {
		return p.wire.fail
	}
	c, err := p.on.proto.parse(b)
	if err != nil {
		return err
	}
	p.wire.log = append(p.wire.log, sentFrame{
		after: time.Since(p.wire.start), link: p.on.link, claim: c, frame: bytes.Clone(b),
	})
	return nil
}

func (p *fakePort) receive(b []byte) (int, error) {
	select {
	case f := <-p.in:
		return copy(b, f), nil
	case <-p.done:
		return 0, net.ErrClosed
	}
}

func (p *fakePort) close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

// times lists when addr was announced, once for each pair of ARP frames.
func times(frames []sentFrame, addr string) []time.Duration {
	var out []time.Duration
	for _, f := range frames {
		reply := false
		if a, err := parseARP(f.frame); err == nil {
			reply = a.op == opReply
		}
		if f.claim.addr == netip.MustParseAddr(addr) && !reply {
			out = append(out, f.after)
		}
	}
	return out
}

// running starts a speaker on a fake wire inside a synctest bubble.
func running(t *testing.T, cfg L2Config) (*L2, *fakeWire) {
	t.Helper()
	w := newFakeWire()
	l, err := newL2(cfg, w)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, ErrClosed) {
			t.Errorf("run: %v", err)
		}
		if err := l.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return l, w
}

// after lets d pass in the bubble.
func after(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}
