package chaostest

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"
)

// Kind is a way to hurt a cluster.
type Kind string

// The kinds.
const (
	KindKill      Kind = "kill"      // SIGKILL of the daemon, started again later
	KindPause     Kind = "pause"     // SIGSTOP of the daemon, SIGCONT later
	KindPower     Kind = "power"     // power loss; with its disk and an empty kernel it comes back
	KindLinks     Kind = "links"     // no carrier on any link
	KindFront     Kind = "front"     // no carrier towards clients and cluster
	KindBack      Kind = "back"      // no carrier towards the endpoints
	KindDeaf      Kind = "deaf"      // all that goes to the node is lost
	KindMute      Kind = "mute"      // all that the node sends is lost
	KindApart     Kind = "apart"     // it and one other node are cut off from each other; both reach the third
	KindAlone     Kind = "alone"     // it and all other nodes are cut off from each other; clients reach it
	KindNoGossip  Kind = "gossip"    // only gossip is lost
	KindNoRaft    Kind = "raft"      // only Raft is lost
	KindNoRepl    Kind = "repl"      // only flow replication is lost
	KindNoEcho    Kind = "echo"      // only BFD and echoes are lost
	KindLoss      Kind = "loss"      // some of everything is lost
	KindLate      Kind = "late"      // everything is late
	KindReorder   Kind = "reorder"   // everything is late by random times
	KindDouble    Kind = "double"    // some of everything comes twice
	KindHog       Kind = "hog"       // other processes want all processors
	KindSlowDisk  Kind = "slowdisk"  // each write to the disk takes long
	KindDiskError Kind = "diskerror" // writes to the disk fail
	KindDiskFull  Kind = "diskfull"  // there is no room on the disk
	KindMove      Kind = "move"      // an operator moves the instance
	KindRejoin    Kind = "rejoin"    // the node leaves the cluster and joins it again
	KindDetach    Kind = "detach"    // the programs are taken off the node's interfaces, while its daemon lives
)

// Target says which node a fault is for, at the moment when it happens.
type Target string

// The targets.
const (
	Master Target = "master" // of the default instance
	Leader Target = "leader" // of the Raft group
	Backup Target = "backup" // not the master, and if there is one, not the leader
)

// Fault is one planned fault.
type Fault struct {
	At, For time.Duration
	Kind    Kind
	On      Target
	// Chance is of loss and doubles, Late of what is late or slow.
	Chance float64
	Late   time.Duration
}

// String is the fault in a word or two: "loss 12% master 0.5s+2.1s".
func (f Fault) String() string {
	how := string(f.Kind)
	switch {
	case f.Chance > 0:
		how += fmt.Sprintf(" %.0f%%", 100*f.Chance)
	case f.Late > 0:
		how += " " + f.Late.String()
	}
	return fmt.Sprintf("%s %s @%.1fs+%.3gs", how, f.On, f.At.Seconds(), f.For.Seconds())
}

// Plan is what happens to a cluster.
type Plan struct {
	Seed   uint64
	Faults []Fault // by time
}

func (p Plan) String() string {
	words := make([]string, len(p.Faults))
	for i, f := range p.Faults {
		words[i] = f.String()
	}
	return strings.Join(words, ", ")
}

// kinds are what is drawn from, each with its share.
func kinds() []Kind {
	return []Kind{
		KindKill, KindKill, KindPause, KindPause, KindPause, KindPower, KindPower, KindPower, KindLinks, KindLinks, KindFront, KindBack,
		KindDeaf, KindMute, KindApart, KindApart, KindAlone, KindAlone, KindNoGossip, KindNoRaft, KindNoRepl, KindNoEcho,
		KindLoss, KindLate, KindReorder, KindDouble, KindHog, KindMove, KindRejoin, KindSlowDisk, KindSlowDisk, KindDiskError, KindDiskFull,
	}
}

// When faults begin, and when all of them have ended but the longest pauses.
const (
	faultsBegin = 6 * time.Second
	faultsEnd   = 10 * time.Second
)

// Draw makes the plan of a seed: three to five faults, one in four of them a pair
// within the time it takes to notice the first.
func Draw(seed uint64) Plan {
	rnd := rand.New(rand.NewPCG(seed, 0x70746368616f73))
	p := Plan{Seed: seed}
	from := kinds()
	for range 3 + rnd.IntN(3) {
		f := drawFault(rnd, from)
		p.Faults = append(p.Faults, f)
		if rnd.IntN(4) == 0 {
			twin := drawFault(rnd, []Kind{KindKill, KindPause, KindPower, KindLinks})
			twin.At = f.At + time.Duration(rnd.Int64N(int64(60*time.Millisecond)))
			if twin.For < faultsEnd {
				twin.For = min(twin.For, faultsEnd-twin.At)
			}
			p.Faults = append(p.Faults, twin)
		}
	}
	p.Faults = append(p.Faults, drawLater(seed)...)
	slices.SortStableFunc(p.Faults, func(a, b Fault) int { return cmp.Compare(a.At, b.At) })
	return p
}

// drawLater adds what later versions of this package thought of, by a chance of its own, so that
// the other faults of a seed stay what they were.
func drawLater(seed uint64) []Fault {
	rnd := rand.New(rand.NewPCG(seed, 0x70746368616f74))
	if rnd.IntN(3) > 0 {
		return nil
	}
	return []Fault{drawFault(rnd, []Kind{KindDetach})}
}

func drawFault(rnd *rand.Rand, from []Kind) Fault {
	f := Fault{
		Kind: from[rnd.IntN(len(from))],
		On:   []Target{Master, Master, Leader, Backup}[rnd.IntN(4)],
		At:   time.Duration(rnd.Int64N(int64(faultsBegin))).Truncate(time.Millisecond),
		For:  between(rnd, 300*time.Millisecond, 4*time.Second),
	}
	switch f.Kind {
	case KindPause: // most are short, and those are the mean ones
		f.For = between(rnd, 5*time.Millisecond, 6*time.Second)
		if rnd.IntN(8) == 0 { // longer than a stopped daemon is left alone
			f.For = between(rnd, 6*time.Second, 30*time.Second)
			return f
		}
	case KindLoss, KindDouble:
		f.Chance = 0.01 + 0.29*rnd.Float64()
	case KindLate, KindReorder:
		f.Late = between(rnd, time.Millisecond, 80*time.Millisecond)
	case KindSlowDisk:
		f.Late = between(rnd, 20*time.Millisecond, 5*time.Second)
	}
	f.For = min(f.For, faultsEnd-f.At)
	return f
}

// between draws a time such that each factor is as likely as the next.
func between(rnd *rand.Rand, low, high time.Duration) time.Duration {
	x := rnd.Float64() * math.Log(float64(high)/float64(low))
	return time.Duration(float64(low) * math.Exp(x)).Truncate(time.Millisecond)
}
