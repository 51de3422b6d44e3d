package detect

import (
	"errors"
	"fmt"
	"time"
)

// SlowInterval is the least time between two packets while a session is not up
// (RFC 5880, 6.8.3).
const SlowInterval = time.Second

// Config is what an operator decides about a session.
type Config struct {
	// DesiredMinTx is the shortest time between two packets this side would like to send. Default 100 ms.
	DesiredMinTx time.Duration
	// RequiredMinRx is the shortest time between two packets this side can take. Default 100 ms.
	RequiredMinRx time.Duration
	// DetectMult is how many missing packets in a row mean that the session is down. Default 3.
	DetectMult uint8
	// Passive sessions send nothing before the neighbour does (RFC 5880, 6.1).
	Passive bool
}

func (c Config) withDefaults() Config {
	if c.DesiredMinTx == 0 {
		c.DesiredMinTx = 100 * time.Millisecond
	}
	if c.RequiredMinRx == 0 {
		c.RequiredMinRx = 100 * time.Millisecond
	}
	if c.DetectMult == 0 {
		c.DetectMult = 3
	}
	return c
}

// Validate reports everything that is wrong, with the defaults filled in.
func (c Config) Validate() error {
	c = c.withDefaults()
	var errs []error
	for name, d := range map[string]time.Duration{"transmit": c.DesiredMinTx, "receive": c.RequiredMinRx} {
		if d < time.Millisecond || d > time.Minute {
			errs = append(errs, fmt.Errorf("%s interval must be 1 ms to 1 min, is %v", name, d))
		}
	}
	if errs != nil {
		return fmt.Errorf("session: %w", errors.Join(errs...))
	}
	return nil
}

// Machine is one session: the state variables of RFC 5880, 6.8.1, and its two
// timers. It is a value; Step returns the next one. The zero value is of no use:
// see NewMachine. Fields are named as in the RFC.
type Machine struct {
	cfg Config

	SessionState          State
	RemoteSessionState    State
	LocalDiscr            uint32
	RemoteDiscr           uint32
	LocalDiag             Diag
	DesiredMinTxInterval  time.Duration
	RequiredMinRxInterval time.Duration
	RemoteMinRxInterval   time.Duration
	RemoteDemandMode      bool
	DetectMult            uint8

	remoteMinTx time.Duration // the neighbour's desired interval
	remoteMult  uint8

	// What is in use until a poll sequence has told the neighbour of a change (RFC 5880, 6.8.3).
	usedTx  time.Duration
	usedRx  time.Duration
	polling bool

	nextTx   time.Time // zero: nothing is sent by itself
	detectAt time.Time // zero: nothing to miss
	random   uint64
}

// NewMachine returns a session in the state Down that sends its first packet at
// now, if it is not passive. discr must be unique among the sessions of this
// node and not zero; seed makes the jitter.
func NewMachine(cfg Config, discr uint32, seed uint64, now time.Time) Machine {
	cfg = cfg.withDefaults()
	m := Machine{
		cfg:                   cfg,
		SessionState:          Down,
		RemoteSessionState:    Down,
		LocalDiscr:            discr,
		DesiredMinTxInterval:  max(cfg.DesiredMinTx, SlowInterval),
		RequiredMinRxInterval: cfg.RequiredMinRx,
		RemoteMinRxInterval:   time.Microsecond,
		DetectMult:            cfg.DetectMult,
		random:                seed | 1,
	}
	m.usedTx, m.usedRx = m.DesiredMinTxInterval, m.RequiredMinRxInterval
	if !cfg.Passive {
		m.nextTx = now
	}
	return m
}

// Event is what happens to a session: one of Received, Tick, Configure, Admin,
// PathFailed, Ask.
type Event interface{ event() }

// Events of a session.
type (
	// Received is a control packet that ParsePacket accepted and that belongs to this session.
	Received struct{ Packet Packet }
	// Tick says that time has passed; see Machine.Deadline.
	Tick struct{}
	// Configure changes the timers. It does not end the session.
	Configure struct{ Config Config }
	// Admin takes the session down by decision, or lets it come up again.
	Admin struct{ Down bool }
	// PathFailed says that the way to the neighbour is known to be broken: its echoes stay out.
	PathFailed struct{ Diag Diag }
	// Ask wants to know at once whether the neighbour is there: a poll, which it answers without
	// regard to its timers (RFC 5880, 6.5).
	Ask struct{}
)

func (Received) event()   {}
func (Tick) event()       {}
func (Configure) event()  {}
func (Admin) event()      {}
func (PathFailed) event() {}
func (Ask) event()        {}

// Action is what a driver has to do: Send or Change.
type Action interface{ action() }

// Actions of a session.
type (
	// Send is a control packet for the neighbour.
	Send struct{ Packet Packet }
	// Change is a change of the session's state.
	Change struct {
		From, To State
		Diag     Diag // why, when it went down
	}
)

func (Send) action()   {}
func (Change) action() {}

// Deadline is when the next Tick is due; zero: only when something else happened.
func (m Machine) Deadline() time.Time {
	switch {
	case m.nextTx.IsZero():
		return m.detectAt
	case m.detectAt.IsZero() || m.nextTx.Before(m.detectAt):
		return m.nextTx
	}
	return m.detectAt
}

// DetectionTime is how long nothing may come before the session is down: the
// neighbour's multiplier times the agreed interval of its packets (RFC 5880, 6.8.4).
// Zero until the neighbour was heard.
func (m Machine) DetectionTime() time.Duration {
	return time.Duration(m.remoteMult) * max(m.usedRx, m.remoteMinTx)
}

// TransmitInterval is the agreed interval of this side's packets before jitter
// (RFC 5880, 6.8.7).
func (m Machine) TransmitInterval() time.Duration { return max(m.usedTx, m.RemoteMinRxInterval) }

// Step is what becomes of a session when ev happens at now, and what is to be
// done, in order. It is pure.
func (m Machine) Step(ev Event, now time.Time) (Machine, []Action) {
	var out []Action
	switch ev := ev.(type) {
	case Received:
		out = m.receive(ev.Packet, now)
	case Tick:
		out = m.tick(now)
	case Configure:
		m.configure(ev.Config.withDefaults(), now)
	case Admin:
		out = m.admin(ev.Down, now)
	case PathFailed:
		if m.SessionState == Up {
			out = m.enter(Down, ev.Diag, now)
		}
	case Ask:
		out = m.ask(now)
	}
	return m, out
}

// receive is RFC 5880, 6.8.6 from "Set bfd.RemoteDiscr" on.
func (m *Machine) receive(p Packet, now time.Time) []Action {
	if p.YourDiscr != 0 && p.YourDiscr != m.LocalDiscr || p.Authenticated {
		return nil
	}
	if p.YourDiscr == 0 && p.State != Down && p.State != AdminDown {
		return nil
	}
	before := m.TransmitInterval()
	m.RemoteDiscr = p.MyDiscr
	m.RemoteSessionState = p.State
	m.RemoteDemandMode = p.Demand
	m.RemoteMinRxInterval = p.RequiredMinRx
	m.remoteMinTx, m.remoteMult = p.DesiredMinTx, p.DetectMult
	if m.polling && p.Final {
		m.polling = false
		m.usedTx, m.usedRx = m.DesiredMinTxInterval, m.RequiredMinRxInterval
		m.pace(m.SessionState == Up) // what was changed meanwhile
	}
	if m.SessionState == AdminDown {
		return nil
	}
	m.detectAt = now.Add(m.DetectionTime())
	out := m.transition(p.State, now)
	if p.Poll {
		reply := m.packet()
		reply.Poll, reply.Final = false, true // RFC 5880, 6.5: never both
		out = append(out, Send{reply})
	}
	m.rearm(before, now)
	return out
}

// transition is the state machine of RFC 5880, 6.2 and 6.8.6.
func (m *Machine) transition(remote State, now time.Time) []Action {
	switch {
	case remote == AdminDown:
		if m.SessionState != Down {
			return m.enter(Down, DiagNeighbourDown, now)
		}
	case m.SessionState == Down && remote == Down:
		return m.enter(Init, DiagNone, now)
	case m.SessionState == Down && remote == Init:
		return m.enter(Up, DiagNone, now)
	case m.SessionState == Init && (remote == Init || remote == Up):
		return m.enter(Up, DiagNone, now)
	case m.SessionState == Up && remote == Down:
		return m.enter(Down, DiagNeighbourDown, now)
	}
	return nil
}

// enter changes the state and tells the neighbour at once (RFC 5880, 6.8.7).
func (m *Machine) enter(to State, diag Diag, now time.Time) []Action {
	from := m.SessionState
	m.SessionState = to
	if diag != DiagNone || to == Up {
		m.LocalDiag = diag
	}
	if from == Up || to == Up {
		m.pace(to == Up)
	}
	out := []Action{Change{From: from, To: to, Diag: diag}}
	if m.silent() {
		return out
	}
	return append(out, m.transmit(now))
}

// pace sets the interval this side would like: that of the configuration when
// the session is up, a second or more when it is not.
func (m *Machine) pace(up bool) {
	want := m.cfg.DesiredMinTx
	if !up {
		want = max(want, SlowInterval)
	}
	m.change(want, m.cfg.RequiredMinRx)
}

// change begins a poll sequence when the intervals change in the state Up (RFC
// 5880, 6.8.3): a longer interval of sending, and a shorter one of receiving,
// count only when the neighbour knows of them. A further change waits until the
// poll is answered: an answer to the earlier one must not pass for one to the later.
func (m *Machine) change(tx, rx time.Duration) {
	if tx == m.DesiredMinTxInterval && rx == m.RequiredMinRxInterval || m.polling && m.SessionState == Up {
		return
	}
	m.DesiredMinTxInterval, m.RequiredMinRxInterval = tx, rx
	if m.SessionState != Up {
		m.usedTx, m.usedRx, m.polling = tx, rx, false
		return
	}
	m.polling = true
	m.usedTx = min(m.usedTx, tx)
	m.usedRx = max(m.usedRx, rx)
}

func (m *Machine) configure(cfg Config, now time.Time) {
	before := m.TransmitInterval()
	m.cfg = cfg
	m.DetectMult = cfg.DetectMult
	m.pace(m.SessionState == Up)
	m.rearm(before, now)
}

func (m *Machine) admin(down bool, now time.Time) []Action {
	switch {
	case down && m.SessionState != AdminDown:
		m.detectAt = time.Time{}
		return m.enter(AdminDown, DiagAdminDown, now)
	case !down && m.SessionState == AdminDown:
		m.RemoteDiscr, m.RemoteSessionState = 0, Down
		return m.enter(Down, DiagNone, now)
	}
	return nil
}

// ask polls a neighbour that is up. A poll that is under way asks the same question already; a
// second packet of it would be answered twice, and the second answer could pass for one to a later poll.
func (m *Machine) ask(now time.Time) []Action {
	if m.SessionState != Up || m.polling || m.RemoteMinRxInterval == 0 {
		return nil
	}
	m.polling = true
	return []Action{m.transmit(now)}
}

// tick does what is due.
func (m *Machine) tick(now time.Time) []Action {
	var out []Action
	if !m.detectAt.IsZero() && !now.Before(m.detectAt) {
		out = m.expire(now)
	}
	switch {
	case m.nextTx.IsZero() || now.Before(m.nextTx):
	case m.silent():
		m.nextTx = time.Time{}
	default:
		out = append(out, m.transmit(now))
	}
	return out
}

// expire is what follows when nothing came for the detection time (RFC 5880,
// 6.8.4 and 6.8.1 on bfd.RemoteDiscr).
func (m *Machine) expire(now time.Time) []Action {
	m.detectAt = time.Time{}
	m.RemoteDiscr, m.RemoteSessionState = 0, Down
	m.RemoteMinRxInterval, m.RemoteDemandMode = time.Microsecond, false
	if m.SessionState != Init && m.SessionState != Up {
		return nil
	}
	out := m.enter(Down, DiagExpired, now)
	m.remoteMinTx, m.remoteMult = 0, 0
	return out
}

// silent: nothing is sent by itself (RFC 5880, 6.8.7).
func (m *Machine) silent() bool {
	switch {
	case m.cfg.Passive && m.RemoteDiscr == 0:
		return true
	case m.RemoteMinRxInterval == 0:
		return true
	case m.RemoteDemandMode && m.SessionState == Up && m.RemoteSessionState == Up && !m.polling:
		return true
	}
	return false
}

// packet is what the neighbour is told now.
func (m *Machine) packet() Packet {
	return Packet{
		Diag:          m.LocalDiag,
		State:         m.SessionState,
		Poll:          m.polling,
		DetectMult:    m.DetectMult,
		MyDiscr:       m.LocalDiscr,
		YourDiscr:     m.RemoteDiscr,
		DesiredMinTx:  m.DesiredMinTxInterval,
		RequiredMinRx: m.RequiredMinRxInterval,
	}
}

// transmit sends and sets the time of the next packet.
func (m *Machine) transmit(now time.Time) Action {
	m.nextTx = time.Time{}
	if !m.silent() {
		m.nextTx = now.Add(m.jittered(m.TransmitInterval()))
	}
	return Send{m.packet()}
}

// rearm brings the next packet forward when the agreed interval has become
// shorter, and begins or ends sending when the neighbour wants it so.
func (m *Machine) rearm(before time.Duration, now time.Time) {
	interval := m.TransmitInterval()
	switch {
	case m.silent():
		m.nextTx = time.Time{}
	case m.nextTx.IsZero():
		m.nextTx = now
	// Any packet, an answer to a poll too, tells the neighbour of the shorter interval.
	case interval < before:
		if next := now.Add(m.jittered(interval)); next.Before(m.nextTx) {
			m.nextTx = next
		}
	}
}

// jittered takes off up to a quarter, so that sessions do not march in step;
// with a multiplier of one at least a tenth (RFC 5880, 6.8.7).
func (m *Machine) jittered(d time.Duration) time.Duration {
	m.random ^= m.random << 13
	m.random ^= m.random >> 7
	m.random ^= m.random << 17
	least, spread := int64(0), int64(250)
	if m.DetectMult == 1 {
		least, spread = 100, 150
	}
	off := least + int64(m.random%uint64(spread+1))
	return d - time.Duration(int64(d)/1000*off)
}
