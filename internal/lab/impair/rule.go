package impair

import (
	"errors"
	"fmt"
	"net"
	"time"
)

// maxRules bounds one direction's list; each rule is about fifty instructions.
const maxRules = 16

// Rule says which frames it is about and what becomes of them. Of a list the
// first rule that matches decides; a frame that none matches passes.
type Rule struct {
	// EtherType matches Ethernet's type, like 0x0806 for ARP; 0 is any.
	EtherType uint16
	// Protocol matches IP's protocol (IPv6: the first next header), like 6 for
	// TCP; 0 is any, also what is not IP.
	Protocol uint8
	// Port matches the source or the destination port of TCP, UDP and SCTP; 0 is
	// any.
	Port uint16
	// DSCP matches any of these code points (RFC 2474); empty is any, also what is
	// not IP.
	DSCP []uint8
	// Peer matches the other end: the source of what goes to the host, the
	// destination of what comes from it. Nil is any. What a host sends to all is
	// to nobody in particular: to part two hosts, name each in the rules of what
	// goes to the other.
	Peer net.HardwareAddr

	// Drop is the probability with which a frame is lost, 0 to 1.
	Drop float64
	// Duplicate is the probability with which a second copy is sent, at once.
	Duplicate float64
	// Delay is how late a frame comes, and Jitter how much later at most, evenly
	// distributed. With both 0 it comes at once.
	Delay, Jitter time.Duration
}

// Rules are those of one port.
type Rules struct {
	FromHost []Rule // of what the host sends
	ToHost   []Rule // of what the host gets
}

// Both uses the same rules for both directions.
func Both(rules ...Rule) Rules { return Rules{FromHost: rules, ToHost: rules} }

// maxDelay bounds what waits in this process.
const maxDelay = 10 * time.Second

// Validate reports everything that is wrong with the rule at once.
func (r Rule) Validate() error {
	var errs []error
	for _, p := range []struct {
		what string
		is   float64
	}{{"drop", r.Drop}, {"duplicate", r.Duplicate}} {
		if !(p.is >= 0 && p.is <= 1) { // also false for what is no number
			errs = append(errs, fmt.Errorf("%s %v: want a probability", p.what, p.is))
		}
	}
	if r.Delay < 0 || r.Jitter < 0 || r.Delay+r.Jitter > maxDelay {
		errs = append(errs, fmt.Errorf("delay %s and jitter %s: want 0 to %s together", r.Delay, r.Jitter, maxDelay))
	}
	if r.Peer != nil && len(r.Peer) != 6 {
		errs = append(errs, fmt.Errorf("peer %s: want a hardware address of Ethernet", r.Peer))
	}
	for _, d := range r.DSCP {
		if d > 63 {
			errs = append(errs, fmt.Errorf("code point %d: want 0 to 63", d))
		}
	}
	return errors.Join(errs...)
}

// Validate reports everything that is wrong with the rules at once.
func (r Rules) Validate() error {
	var errs []error
	for _, list := range [][]Rule{r.FromHost, r.ToHost} {
		if len(list) > maxRules {
			errs = append(errs, fmt.Errorf("%d rules: want at most %d for each direction", len(list), maxRules))
		}
		for i, rule := range list {
			if err := rule.Validate(); err != nil {
				errs = append(errs, fmt.Errorf("rule %d: %w", i+1, err))
			}
		}
	}
	return errors.Join(errs...)
}

// Counts says what one rule has done since it was set, in frames.
type Counts struct{ Matched, Dropped, Duplicated, Delayed uint64 }
