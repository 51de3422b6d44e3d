package e2e

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/lab/arping"
)

// askEvery is the pace at which an inquirer asks for each address.
const askEvery = 10 * time.Millisecond

// inquirer asks a segment again and again who has some addresses, as a client does
// that has never heard of them, and notes who answers when.
type inquirer struct {
	prober  *arping.Prober
	targets []netip.Addr
}

// answer says that the machine with the hardware address has the VIP.
type answer struct {
	at  time.Time
	vip netip.Addr
	mac string
}

// ask starts an inquirer on a host.
func ask(t testing.TB, h *lab.Host, targets ...netip.Addr) *inquirer {
	t.Helper()
	p, err := arping.New(arping.Config{Do: h.Do, Interface: h.Interfaces()[0], Targets: targets, Interval: askEvery})
	if err != nil {
		t.Fatal(err)
	}
	background(t, "inquirer", p.Run)
	return &inquirer{prober: p, targets: targets}
}

// answers are those to this host from a moment on: what is said to all is an announcement.
func (a *inquirer) answers(from time.Time) []answer {
	var out []answer
	for _, c := range a.prober.Since(time.Since(from)) {
		if c.Asked {
			out = append(out, answer{c.At, c.Address, c.MAC})
		}
	}
	return out
}

// since returns the answers for vip by a node from a moment on.
func (a *inquirer) since(from time.Time, vip netip.Addr, by *lab.Node) []answer {
	macs := map[string]bool{}
	for _, m := range by.MACs() {
		macs[m.String()] = true
	}
	var out []answer
	for _, got := range a.answers(from) {
		if got.vip == vip && macs[got.mac] && !got.at.Before(from) {
			out = append(out, got)
		}
	}
	return out
}

// waitAnswer waits until a node answers for vip.
func (a *inquirer) waitAnswer(t testing.TB, d time.Duration, vip netip.Addr, by *lab.Node) {
	t.Helper()
	from := time.Now()
	eventually(t, d, by.Name()+" to answer for "+vip.String(), func(context.Context) error {
		if len(a.since(from, vip, by)) == 0 {
			return errSilent
		}
		return nil
	})
}

// silentAfter says how long after from a node answered for vip last. It waits until nothing has come for
// as long as the quiet.
func (a *inquirer) silentAfter(t testing.TB, from time.Time, quiet time.Duration, vip netip.Addr, by *lab.Node) time.Duration {
	t.Helper()
	last := time.Duration(0)
	eventually(t, 20*time.Second, by.Name()+" to fall silent about "+vip.String(), func(context.Context) error {
		if all := a.since(from, vip, by); len(all) > 0 {
			last = all[len(all)-1].at.Sub(from)
		}
		if time.Since(from)-last < quiet {
			return errTalking
		}
		return nil
	})
	return last
}

// longest is the longest time between two answers for vip from a moment until now, whoever gives them.
func (a *inquirer) longest(from time.Time, vip netip.Addr) time.Duration {
	last, most := from, time.Duration(0)
	for _, got := range a.answers(from) {
		if got.vip == vip && got.at.After(last) {
			most, last = max(most, got.at.Sub(last)), got.at
		}
	}
	return max(most, time.Since(last))
}
