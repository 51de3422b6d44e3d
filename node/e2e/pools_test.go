package e2e

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"pontoon/internal/lab"
)

// given is what a node answers who asks for a service on an address of a pool.
type given struct {
	Index uint64
	VIP   struct{ Address netip.Addr }
}

// createAuto asks a node for a service on an address of a pool.
func createAuto(ctx context.Context, n *lab.Node, name, pool string) (given, error) {
	var got given
	err := n.Call(ctx, http.MethodPut, "/v1/services/"+name+"?create=true", map[string]any{
		"vip": "auto:" + pool, "port": 80, "endpoints": []map[string]any{{"address": "192.168.80.21:8080", "weight": 1}},
	}, &got)
	return got, err
}

// poolOf is what a node says of a pool.
type poolOf struct {
	Size, Used, Reserved, Free int
	Allocations                []struct {
		Address  netip.Addr
		Services []string
	}
}

// owners are the services on each address, as a node has it.
func (p poolOf) owners() map[netip.Addr]string {
	out := map[netip.Addr]string{}
	for _, a := range p.Allocations {
		out[a.Address] = strings.Join(a.Services, " ")
	}
	return out
}

func readPool(t testing.TB, n *lab.Node, name string) poolOf {
	t.Helper()
	var p poolOf
	if err := get(within(t, 5*time.Second), n, "/v1/pools/"+name, &p); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestThreeNodesHandOutEveryAddressOnce(t *testing.T) {
	l := newCluster(t, lab.Config{Topology: lab.OneLeg, Nodes: 3})
	first := l.Nodes()[0]
	cli(t, first, "pool", "create", "sixty", "--range", "192.168.80.130-192.168.80.189")
	cli(t, first, "pool", "create", "small", "--range", "192.168.80.110-192.168.80.121")
	elsewhere := vipOn{"lo", netip.MustParseAddr("10.98.0.9")}
	elsewhere.add(t, l.Nodes()[1])
	refused(t, first, "10.98.0.9 is an address of lo on "+l.Nodes()[1].Name(), "pool", "create", "over", "--range", "10.98.0.1-10.98.0.20")
	t.Run("60 services at once", func(t *testing.T) { sixtyAtOnce(t, l) })
	t.Run("coming and going", func(t *testing.T) { comingAndGoing(t, l) })
	cli(t, first, "pool", "create", "wide", "--range", "10.99.0.1-10.99.0.80", "--announce", "none")
	t.Run("through a leader's death", func(t *testing.T) { throughALeadersDeath(t, l) })
}

func sixtyAtOnce(t *testing.T, l *lab.Lab) {
	const each = 20
	ctx := within(t, 60*time.Second)
	var g errgroup.Group
	var mu sync.Mutex
	owner := map[netip.Addr]string{}
	for _, n := range l.Nodes() {
		for k := range each {
			g.Go(func() error {
				name := fmt.Sprintf("%s-%d", n.Name(), k)
				got, err := createAuto(ctx, n, name, "sixty")
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				mu.Lock()
				defer mu.Unlock()
				if other, taken := owner[got.VIP.Address]; taken {
					t.Errorf("%s and %s both have %s", name, other, got.VIP.Address)
				}
				owner[got.VIP.Address] = name
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	waitApplied(t, l)
	for _, n := range l.Nodes() {
		p := readPool(t, n, "sixty")
		if p.Used != 3*each || p.Free != 0 {
			t.Errorf("%s: %d used, %d free", n.Name(), p.Used, p.Free)
		}
		for at, name := range p.owners() {
			if owner[at] != name {
				t.Errorf("%s has %s for %s, and %s was told so", n.Name(), at, name, owner[at])
			}
		}
	}
	var refused *lab.APIError
	if _, err := createAuto(ctx, l.Nodes()[1], "one-more", "sixty"); !errors.As(err, &refused) || refused.Status != http.StatusConflict ||
		!strings.Contains(refused.Body, "pool sixty hands out 60") {
		t.Errorf("one more than there are: %v", err)
	}
	cli(t, l.Nodes()[2], "service", "delete", "lb1-0")
	again, err := createAuto(ctx, l.Nodes()[1], "one-more", "sixty")
	if err != nil || owner[again.VIP.Address] != "lb1-0" {
		t.Errorf("given back was %s's address, given was %s (%v)", "lb1-0", again.VIP.Address, err)
	}
}

// poolStep is one step of a worker: what it asked for, when, and what it was told.
type poolStep struct {
	service string
	create  bool
	began   time.Time
	ended   time.Time
	index   uint64     // 0: refused for want of an address
	address netip.Addr // of a creation
}

// comingAndGoing has workers on all nodes create and delete services of a pool that
// is too small for all of them, and holds what they were told against a pool that
// does one thing after the other, in the order of the log.
func comingAndGoing(t *testing.T, l *lab.Lab) {
	const workers, steps, room = 9, 14, 12
	ctx := within(t, 90*time.Second)
	var g errgroup.Group
	logs := make([][]poolStep, workers)
	for w := range workers {
		g.Go(func() (err error) {
			logs[w], err = worker(ctx, l.Nodes()[w%len(l.Nodes())], w, steps)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	all := slices.Concat(logs...)
	last, full := replay(t, all, netip.MustParseAddr("192.168.80.110"), room)
	refused := 0
	for _, s := range all {
		if s.index == 0 {
			refused++
			checkWasFull(t, s, all, full)
		}
	}
	t.Logf("%d steps, %d refused for want of an address", len(all), refused)
	waitApplied(t, l)
	for _, n := range l.Nodes() {
		now := readPool(t, n, "small").owners()
		for at, name := range last {
			if now[at] != name {
				t.Errorf("%s has %q on %s, want %q", n.Name(), now[at], at, name)
			}
		}
		if len(now) != len(last) {
			t.Errorf("%s has %d addresses handed out, want %d", n.Name(), len(now), len(last))
		}
	}
}

// worker creates services and deletes them, three at a time at most.
func worker(ctx context.Context, n *lab.Node, w, steps int) ([]poolStep, error) {
	dice := rand.New(rand.NewPCG(1, uint64(w)))
	var out []poolStep
	var mine []string
	for i := range steps {
		s := poolStep{service: fmt.Sprintf("w%d-%d", w, i), create: len(mine) == 0 || len(mine) < 3 && dice.IntN(3) > 0, began: time.Now()}
		var err error
		if s.create {
			var got given
			got, err = createAuto(ctx, n, s.service, "small")
			s.index, s.address = got.Index, got.VIP.Address
			if refused := new(lab.APIError); errors.As(err, &refused) && strings.Contains(refused.Body, "finds no free address") {
				err, s.index = nil, 0
			} else if err == nil {
				mine = append(mine, s.service)
			}
		} else {
			at := dice.IntN(len(mine))
			s.service, mine = mine[at], slices.Delete(slices.Clone(mine), at, at+1)
			var got given
			err = n.Call(ctx, http.MethodDelete, "/v1/services/"+s.service, nil, &got)
			s.index = got.Index
		}
		if s.ended = time.Now(); err != nil {
			return nil, fmt.Errorf("%s: %s: %w", n.Name(), s.service, err)
		}
		out = append(out, s)
	}
	return out, nil
}

// replay carries the steps out in the order of their indexes: each creation must
// have been given the lowest address that was free then, and the order must be one
// that the workers could have seen. It returns who has which address at the end, and
// the indexes from which on, and up to which, nothing was free.
func replay(t *testing.T, all []poolStep, first netip.Addr, room int) (last map[netip.Addr]string, full [][2]uint64) {
	t.Helper()
	done := slices.DeleteFunc(slices.Clone(all), func(s poolStep) bool { return s.index == 0 })
	slices.SortFunc(done, func(a, b poolStep) int { return int(int64(a.index) - int64(b.index)) })
	last, has := map[netip.Addr]string{}, map[string]netip.Addr{}
	for i, s := range done {
		for _, before := range done[:i] {
			if s.ended.Before(before.began) {
				t.Fatalf("%+v was answered before %+v was asked, and comes after it in the log", s, before)
			}
		}
		if !s.create {
			delete(last, has[s.service])
		} else {
			want := first
			for range room {
				if _, taken := last[want]; !taken {
					break
				}
				want = want.Next()
			}
			if s.address != want {
				t.Errorf("%s was given %s at %d, the lowest that was free is %s", s.service, s.address, s.index, want)
			}
			last[s.address], has[s.service] = s.service, s.address
		}
		if len(last) == room {
			until := uint64(math.MaxUint64)
			if i+1 < len(done) {
				until = done[i+1].index
			}
			full = append(full, [2]uint64{s.index, until})
		}
	}
	return last, full
}

// checkWasFull holds that a creation that was refused can have met a pool without a
// free address.
func checkWasFull(t *testing.T, s poolStep, all []poolStep, full [][2]uint64) {
	t.Helper()
	earliest, latest := uint64(0), uint64(math.MaxUint64)
	for _, o := range all {
		switch {
		case o.index == 0:
		case o.ended.Before(s.began):
			earliest = max(earliest, o.index)
		case o.began.After(s.ended):
			latest = min(latest, o.index)
		}
	}
	if !slices.ContainsFunc(full, func(f [2]uint64) bool { return f[0] < latest && earliest < f[1] }) {
		t.Errorf("%s was refused between %d and %d, and there was always a free address", s.service, earliest, latest)
	}
}
