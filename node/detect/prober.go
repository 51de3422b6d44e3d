package detect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// EchoConfig is how a path is probed by echoes.
type EchoConfig struct {
	// Interval between two probes. Default 20 ms.
	Interval time.Duration
	// Misses in a row mean that the path is down. Default 3.
	Misses int
	// Rise is how many answers in a row bring it up again. Default 3.
	Rise int
}

func (c EchoConfig) withDefaults() EchoConfig {
	if c.Interval == 0 {
		c.Interval = 20 * time.Millisecond
	}
	if c.Misses == 0 {
		c.Misses = 3
	}
	if c.Rise == 0 {
		c.Rise = 3
	}
	return c
}

// Validate reports everything that is wrong, with the defaults filled in.
func (c EchoConfig) Validate() error {
	c = c.withDefaults()
	var errs []error
	if c.Interval < 5*time.Millisecond || c.Interval > time.Minute {
		errs = append(errs, fmt.Errorf("interval must be 5 ms to 1 min, is %v", c.Interval))
	}
	if c.Misses < 1 || c.Rise < 1 || c.Misses > 255 || c.Rise > 255 {
		errs = append(errs, fmt.Errorf("misses and rise must be 1 to 255, are %d and %d", c.Misses, c.Rise))
	}
	if errs != nil {
		return fmt.Errorf("echo: %w", errors.Join(errs...))
	}
	return nil
}

// Prober concludes from echoes whether a path forwards (RFC 9747). It counts
// probes that were not answered, not time that passed: when this process stands
// still it sends nothing, so nothing can be missing, and a pause of its own
// delays a verdict but never makes one. It is a value; its methods are pure but
// for the receiver.
//
// The caller takes in every answer that has arrived before it calls Tick.
type Prober struct {
	cfg      EchoConfig
	state    State
	sequence uint64 // of the last probe sent, from 1
	answered uint64 // the latest one that came back
	missed   int
	doubted  time.Time // when the first of those was found missing
	returned int
	next     time.Time
	lastGood time.Time
	wasUp    bool
	rtt      time.Duration
	sent     time.Time // when the last probe was
}

// NewProber returns a prober whose path is Down until answers say otherwise. Its
// first probe is due at now.
func NewProber(cfg EchoConfig, now time.Time) Prober {
	return Prober{cfg: cfg.withDefaults(), state: Down, next: now}
}

// State is Up or Down.
func (p *Prober) State() State { return p.state }

// LastGood is when the last answer came; zero: none did yet.
func (p *Prober) LastGood() time.Time { return p.lastGood }

// Doubted is when the first of the probes was found missing since the last answer; zero: none is.
func (p *Prober) Doubted() time.Time { return p.doubted }

// Rising says that answers came, and never yet enough in a row for Up: the path is
// new, and its being Down is no failure.
func (p *Prober) Rising() bool { return !p.wasUp && !p.lastGood.IsZero() }

// RTT is how long the last answered probe took, in the state Up at most about an interval.
func (p *Prober) RTT() time.Duration { return p.rtt }

// Deadline is when the next Tick is due.
func (p *Prober) Deadline() time.Time { return p.next }

// Tick judges the last probe and returns the number of the next one to send; ok
// is false when none is due yet. changed: the state is another one now.
func (p *Prober) Tick(now time.Time) (sequence uint64, ok, changed bool) {
	if now.Before(p.next) {
		return 0, false, false
	}
	if p.sequence > 0 && p.answered < p.sequence {
		if p.missed++; p.missed == 1 {
			p.doubted = now
		}
		p.returned = 0
		if p.missed >= p.cfg.Misses && p.state == Up {
			p.state, changed = Down, true
		}
	}
	p.sequence++
	p.sent = now
	p.next = now.Add(p.cfg.Interval) // not p.next: what was slept through is not made up for
	return p.sequence, true, changed
}

// Answer takes in that probe number sequence came back. One that comes late still
// shows that the path forwards; one that was never sent, or came before, shows nothing.
func (p *Prober) Answer(sequence uint64, now time.Time) (changed bool) {
	if sequence > p.sequence || sequence <= p.answered {
		return false
	}
	p.answered = sequence
	p.missed, p.doubted = 0, time.Time{}
	p.returned++
	p.lastGood = now
	if sequence == p.sequence {
		p.rtt = now.Sub(p.sent)
	}
	if p.state == Down && p.returned >= p.cfg.Rise {
		p.state, p.wasUp = Up, true
		return true
	}
	return false
}

// The payload of an echo is this node's own affair (RFC 5880, 5). It carries a
// number that nobody but the prober knows, so that answers cannot be made up by
// who has not seen the probe.
const (
	echoMagic = "PTEC"
	// EchoLen is the length of an echo's payload in bytes.
	EchoLen = 24
)

// AppendEcho writes an echo's payload behind b.
func AppendEcho(b []byte, discr uint32, cookie, sequence uint64) []byte {
	b = append(b, echoMagic...)
	b = binary.BigEndian.AppendUint32(b, discr)
	b = binary.BigEndian.AppendUint64(b, sequence)
	return binary.BigEndian.AppendUint64(b, cookie^sequence)
}

// ParseEcho reads an echo's payload; ok is false when it is none with this cookie.
func ParseEcho(b []byte, cookie func(discr uint32) (uint64, bool)) (discr uint32, sequence uint64, ok bool) {
	if len(b) != EchoLen || string(b[:4]) != echoMagic {
		return 0, 0, false
	}
	discr, sequence = binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint64(b[8:])
	secret, known := cookie(discr)
	return discr, sequence, known && binary.BigEndian.Uint64(b[16:]) == secret^sequence
}

// Configure changes how the path is probed from the next probe on. The state
// stays, and what was counted so far counts.
func (p *Prober) Configure(cfg EchoConfig, now time.Time) {
	p.cfg = cfg.withDefaults()
	if next := now.Add(p.cfg.Interval); next.Before(p.next) {
		p.next = next
	}
}
