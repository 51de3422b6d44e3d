package node

import (
	"time"

	"pontoon/fsm"
)

// What is to be committed of endpoints is decided here, from values alone.

const (
	// verdictBatch is how many verdicts one entry of the log carries at most.
	verdictBatch = 4096
	// shareSteps is in how many steps a recovered endpoint gets its whole weight again.
	shareSteps = 10
)

// finding is one endpoint that this node probes: what the cluster knows of it, and what the probes
// say here.
type finding struct {
	service   string
	instance  string
	slowStart time.Duration
	committed fsm.Verdict // with the endpoint's id

	known    bool // the probes say something, by as many of them as it takes
	early    bool // they do, by fewer
	up       bool
	flapping bool
	failing  bool // the last probe failed, be it the first one to do so
	since    time.Time
	why      string

	probed time.Time     // when the last probe ended
	span   time.Duration // how long it takes to fall
}

// bad says that the endpoint does not answer this node, or not at present.
func (f *finding) bad() bool { return f.known && !f.up || f.failing }

// dies says that the endpoint was known to work and does not answer any more.
func (f *finding) dies() bool { return f.known && !f.up && f.committed.Health == fsm.HealthUp }

// verdict is what is to be known of the endpoint at now, and when that changes by itself, since a slow
// start goes on; zero: it does not. A verdict that stays keeps its time and its words.
func (f *finding) verdict(now time.Time) (v fsm.Verdict, later time.Time) {
	was := f.committed
	if !f.known {
		return was, time.Time{}
	}
	v = fsm.Verdict{Endpoint: was.Endpoint, Health: fsm.HealthDown, Since: f.since.UTC(), Why: f.why, Flapping: f.flapping}
	if f.up {
		v.Health, v.Why = fsm.HealthUp, ""
	}
	if v.Health == was.Health {
		v.Since, v.Why = was.Since, was.Why
	} else if f.since.IsZero() { // the probe is shared with an endpoint of which more was known
		v.Since = now.UTC()
	}
	switch {
	case !f.up || f.slowStart <= 0:
	case was.Health == fsm.HealthDown:
		v.Since, v.Share = now.UTC(), 100/shareSteps
	case was.Health == fsm.HealthUp && was.Percent() < 100:
		v.Share = was.Share
		if was.Since.After(now) { // by the clock of another node: it would begin late
			v.Since = now.UTC()
		}
	}
	if v.Share == 0 {
		return v, time.Time{}
	}
	step := f.slowStart / shareSteps
	done := now.Sub(v.Since) / step
	if done >= shareSteps-1 {
		v.Share = 0
		return v, time.Time{}
	}
	v.Share = uint8((done + 1) * (100 / shareSteps))
	return v, v.Since.Add((done + 1) * step)
}

// news says whether a verdict tells more than the one that is committed.
func news(is, was fsm.Verdict) bool {
	return is.Health != was.Health || is.Percent() != was.Percent() || is.Flapping != was.Flapping ||
		is.Percent() < 100 && !is.Since.Equal(was.Since)
}

// dueVerdicts are those to be committed at now, by instance, in the order of all, and when there will
// be others without any news; zero: not before there is some. Those that are held stay what they are.
func dueVerdicts(all []finding, held map[uint32]bool, now time.Time) (due map[string][]fsm.Verdict, later time.Time) {
	due = map[string][]fsm.Verdict{}
	for i := range all {
		f := &all[i]
		if held[f.committed.Endpoint] {
			continue
		}
		v, next := f.verdict(now)
		if news(v, f.committed) {
			due[f.instance] = append(due[f.instance], v)
		}
		if !next.IsZero() && (later.IsZero() || next.Before(later)) {
			later = next
		}
	}
	return due, later
}

// healthCommands are what commits verdicts, in entries of at most verdictBatch. prober says who this
// node is for an instance: in which epoch it probes.
func healthCommands(self fsm.NodeID, instances []string, due map[string][]fsm.Verdict, prober func(instance string) (fsm.NodeID, uint64)) []fsm.Command {
	var out []fsm.Command
	var batch []fsm.Command
	room := verdictBatch
	flush := func() {
		switch len(batch) {
		case 0:
		case 1:
			out = append(out, batch[0])
		default:
			out = append(out, fsm.Batch{Commands: batch})
		}
		batch, room = nil, verdictBatch
	}
	for _, instance := range instances {
		node, epoch := prober(instance)
		if node != self {
			continue
		}
		for rest := due[instance]; len(rest) > 0; {
			n := min(room, len(rest))
			batch = append(batch, fsm.SetHealth{Instance: instance, Node: self, Epoch: epoch, Verdicts: rest[:n:n]})
			rest = rest[n:]
			if room -= n; room == 0 {
				flush()
			}
		}
	}
	flush()
	return out
}
