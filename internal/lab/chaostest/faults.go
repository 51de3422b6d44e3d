package chaostest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"pontoon/internal/lab"
)

// done is what a fault has done, and how to undo it.
type done struct {
	undo func(context.Context) error
	what []Condition // of the node meanwhile
}

// errNotNow: the fault makes no sense as things stand; it is left out.
var errNotNow = errors.New("not now")

// stepTime bounds one step of hurting or healing.
const stepTime = 15 * time.Second

// leaveTime is longer than the daemon waits for each thing that it may have to wait for.
const leaveTime = 45 * time.Second

// play lets one fault happen at its time.
func (r *run) play(ctx context.Context, f Fault) error {
	if !pass(ctx, f.At-r.now()) {
		return nil
	}
	n, release := r.claim(f)
	if n == nil {
		r.note(f.String()+": no node is free for it", r.now(), r.now())
		return nil
	}
	defer release()
	text := fmt.Sprintf("%s: %s", f, n.Name())
	from := r.now()
	d, err := r.hurt(ctx, n, f)
	if err != nil {
		r.note(fmt.Sprintf("%s: left out: %v", text, err), from, r.now())
		return nil
	}
	since := r.now()
	pass(ctx, f.For)
	until := r.now()
	if d.undo != nil {
		err = d.undo(ctx)
	}
	if slices.Contains(d.what, Bare) {
		until = r.now() // nobody undoes it here: that was waiting for the daemon
	}
	r.span(n, d.what, since, until)
	r.note(text, from, r.now())
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("undo %s: %w", text, err)
	}
	return nil
}

// pass waits, and reports whether ctx is still live.
func pass(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(max(d, 0))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// claim picks the node a fault is for. One that is in the middle of another fault
// of its daemon is passed over for the next; cables may be bad in several ways.
func (r *run) claim(f Fault) (n *lab.Node, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, cable := badCables(f); cable || f.Kind == KindHog || f.Kind == KindMove || f.Kind == KindApart || f.Kind == KindAlone {
		return r.candidates(f.On)[0], func() {}
	}
	for _, n := range r.candidates(f.On) {
		if !r.busy[n.Name()] {
			r.busy[n.Name()] = true
			return n, func() {
				r.mu.Lock()
				defer r.mu.Unlock()
				delete(r.busy, n.Name())
			}
		}
	}
	return nil, nil
}

// candidates are all nodes, those that fit the target best first; r.mu is held.
func (r *run) candidates(t Target) []*lab.Node {
	score := func(n *lab.Node) int {
		master, leader := n.Name() == r.master, n.Name() == r.leader
		switch {
		case t == Master && master, t == Leader && leader, t == Backup && !master && !leader:
			return 0
		case t == Backup && master:
			return 2
		}
		return 1
	}
	all := slices.Clone(r.lab.Nodes())
	slices.SortStableFunc(all, func(a, b *lab.Node) int { return score(a) - score(b) })
	return all
}

// hurt does to a node what the fault says.
func (r *run) hurt(ctx context.Context, n *lab.Node, f Fault) (done, error) {
	limit := stepTime
	if f.Kind == KindRejoin {
		limit = leaveTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if rules, ok := badCables(f); ok {
		undo, err := r.cables.hurt(always(n, rules))
		return done{undo: plain(undo)}, err
	}
	switch f.Kind {
	case KindKill:
		return done{n.Start, []Condition{Stopped, Unattended}}, n.Kill(ctx)
	case KindPause:
		return done{plain(n.Resume), []Condition{Stopped, Unattended}}, n.Pause()
	case KindPower:
		return r.powerOff(ctx, n)
	case KindLinks:
		return done{plain(n.LinksUp), []Condition{Alone}}, n.LinksDown()
	case KindFront:
		return done{plain(func() error { return n.SetLink("eth1", true) }), nil}, n.SetLink("eth1", false)
	case KindBack:
		return done{plain(func() error { return n.SetLink("eth2", true) }), nil}, n.SetLink("eth2", false)
	case KindApart, KindAlone:
		return r.part(n, f)
	case KindHog:
		return r.hog(ctx)
	case KindMove:
		return done{}, r.move(ctx, n)
	case KindRejoin:
		return r.leave(ctx, n)
	case KindDetach:
		return done{func(ctx context.Context) error { return r.attached(ctx, n) }, []Condition{Bare}}, detach(n)
	}
	return r.hurtDisk(n, f)
}

func plain(f func() error) func(context.Context) error {
	return func(context.Context) error { return f() }
}

// powerOff takes a node's power, unless it is the last one that knows the flows.
func (r *run) powerOff(ctx context.Context, n *lab.Node) (done, error) {
	if !r.forget(n) {
		return done{}, fmt.Errorf("%w: no other node knows the flows", errNotNow)
	}
	back := func(ctx context.Context) error {
		if err := n.PowerOn(ctx); err != nil {
			return err
		}
		r.back(n, false)
		return r.cables.reopen(n)
	}
	return done{back, []Condition{Stopped}}, n.PowerOff(ctx)
}

// detach takes the programs off a node's interfaces, as a foreign hand may.
func detach(n *lab.Node) error {
	links, err := pinnedLinks(n)
	if err == nil && len(links) == 0 {
		return fmt.Errorf("%w: no program is attached", errNotNow)
	}
	for _, link := range links {
		err = errors.Join(err, os.Remove(link))
	}
	return err
}

func pinnedLinks(n *lab.Node) ([]string, error) {
	return filepath.Glob(filepath.Join(n.PinDir(), "links", "*"))
}

// attached waits until the daemon has mended that: no other fault of it may begin before, or nobody would.
func (r *run) attached(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	return lab.WaitFor(ctx, n.Name()+" to attach its programs again", func(context.Context) error {
		links, err := pinnedLinks(n)
		if err == nil && len(links) == 0 {
			return errors.New("none is")
		}
		return err
	})
}

// part cuts a node off from one other or from all others.
func (r *run) part(n *lab.Node, f Fault) (done, error) {
	var hs []harm
	others := 0
	for _, o := range r.lab.Nodes() {
		if o != n && (f.Kind == KindAlone || others == 0) {
			hs = append(hs, apart(n, o)...)
			others++
		}
	}
	undo, err := r.cables.hurt(hs...)
	if f.Kind == KindApart {
		return done{undo: plain(undo)}, err
	}
	return done{plain(undo), []Condition{Alone}}, err
}

// hog gives the processors two other things to do.
func (r *run) hog(context.Context) (done, error) {
	var all []*lab.Process
	undo := func(ctx context.Context) error {
		var errs []error
		for _, p := range all {
			errs = append(errs, p.Kill(ctx))
		}
		return errors.Join(errs...)
	}
	for range 2 {
		p, err := r.lab.Clients()[1].Start(exec.Command("sh", "-c", "while :; do :; done"))
		if err != nil {
			return done{}, err
		}
		all = append(all, p)
	}
	return done{undo: undo}, nil
}

// move asks for the instance to be moved to n, or from n to the next.
func (r *run) move(ctx context.Context, n *lab.Node) error {
	to := n
	if nodes := r.lab.Nodes(); n.Name() == r.masterNow() {
		to = nodes[(slices.Index(nodes, n)+1)%len(nodes)]
	}
	via := r.running(to)
	if via == nil {
		return errNotNow
	}
	_, err := via.CLI(ctx, "instance", "move", "default", "--to", to.Name())
	return err
}

// running is a node whose daemon is not the fault's victim, for orders.
func (r *run) running(not *lab.Node) *lab.Node {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.lab.Nodes() {
		if n != not && !r.busy[n.Name()] && n.Powered() {
			return n
		}
	}
	return nil
}

// leave takes a node out of the cluster, as an operator would; undone, it is a new
// member. A leave that is refused leaves a member.
func (r *run) leave(ctx context.Context, n *lab.Node) (done, error) {
	if !r.forget(n) {
		return done{}, fmt.Errorf("%w: no other node knows the flows", errNotNow)
	}
	_, err := n.CLI(ctx, "leave")
	if err != nil && (ctx.Err() != nil || strings.Contains(err.Error(), "may or may not have happened")) {
		return done{undo: func(ctx context.Context) error { return r.look(ctx, n) }}, nil
	}
	if err != nil && member(n) {
		r.back(n, false)
		return done{}, err
	}
	return done{undo: func(ctx context.Context) error { return r.join(ctx, n) }}, nil
}

// member says whether a node is a member by what is on its disk: a daemon that has just been started
// refuses to leave, and does not say yet what it is.
func member(n *lab.Node) bool {
	_, err := os.Stat(filepath.Join(n.DataDir(), "member.json"))
	return err == nil
}

// look finds out, as an operator has to, what came of a leave whose outcome was unknown. Of a node that is a member
// still a token can be made through it: that is committed after whatever was in doubt.
func (r *run) look(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 2*stepTime)
	defer cancel()
	gone := false
	err := lab.WaitFor(ctx, n.Name()+" to be a member for certain, or none", func(ctx context.Context) error {
		if !member(n) {
			gone = true
			return nil
		}
		_, err := n.CLI(ctx, "token", "create")
		if err == nil || !strings.Contains(err.Error(), "was removed from its cluster") {
			return err
		}
		_, err = n.CLI(ctx, "leave")
		return errors.Join(errors.New("it was removed"), err)
	})
	if err != nil {
		return err
	}
	if gone {
		return r.join(ctx, n)
	}
	r.back(n, false)
	return nil
}

// join makes n a member again, through whoever can do it.
func (r *run) join(ctx context.Context, n *lab.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 2*stepTime)
	defer cancel()
	return lab.WaitFor(ctx, n.Name()+" to join again", func(ctx context.Context) error {
		via := r.running(n)
		if via == nil {
			return errNotNow
		}
		token, err := via.CLI(ctx, "token", "create")
		if err != nil {
			return err
		}
		r.back(n, true) // from here on it may know the flows
		_, err = n.CLI(ctx, "join", via.ClusterAddress().String(), "--token", strings.TrimSpace(token))
		return err
	})
}

// heal undoes whatever is still hurt.
func (r *run) heal(ctx context.Context) error {
	for _, n := range r.lab.Nodes() {
		p := n.Process()
		if n.Powered() && !p.Running() {
			r.found(n, "the daemon ended by itself: "+lastLine(n.LogFile()))
			if err := n.Start(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}
