package bpf

import (
	"fmt"
	"math"
	"time"

	"github.com/cilium/ebpf"
)

// createdShift is CREATED_SHIFT of the C side: flows note their birth in units of 64 jiffies.
const createdShift = 6

// clockMeasure is how long the tick rate is measured. Its resolution is one jiffy, so 80 ms
// tell the rates that kernels are built with (100, 250, 300, 1000) apart with room to spare.
const clockMeasure = 80 * time.Millisecond

// clock reads the kernel's jiffies, the unit in which flows are stamped: the cheapest clock a
// program can read, but one that user space has no call for.
type clock struct {
	program *ebpf.Program
	values  *ebpf.Map
	hz      uint64
}

// newClock loads the clock program and learns the tick rate by running it twice.
func newClock(spec *ebpf.CollectionSpec) (*clock, error) {
	only := &ebpf.CollectionSpec{
		Maps:      map[string]*ebpf.MapSpec{pontoonMapClocks: spec.Maps[pontoonMapClocks].Copy()},
		Programs:  map[string]*ebpf.ProgramSpec{pontoonProgPontoonClock: spec.Programs[pontoonProgPontoonClock].Copy()},
		Types:     spec.Types,
		ByteOrder: spec.ByteOrder,
	}
	var objects struct {
		Program *ebpf.Program `ebpf:"pontoon_clock"`
		Values  *ebpf.Map     `ebpf:"clocks"`
	}
	if err := only.LoadAndAssign(&objects, nil); err != nil {
		return nil, fmt.Errorf("load clock program: %w", err)
	}
	c := &clock{program: objects.Program, values: objects.Values}
	first, err := c.read()
	if err != nil {
		c.close()
		return nil, err
	}
	timer := time.NewTimer(clockMeasure)
	defer timer.Stop()
	<-timer.C
	second, err := c.read()
	if err != nil {
		c.close()
		return nil, err
	}
	c.hz = tickRate(second.Jiffies-first.Jiffies, second.KtimeNs-first.KtimeNs)
	return c, nil
}

// tickRate names the rate of the kernel that counted so many jiffies in so many nanoseconds.
func tickRate(jiffies, ns uint64) uint64 {
	if ns == 0 {
		return 250
	}
	measured := float64(jiffies) * 1e9 / float64(ns)
	best := uint64(100)
	for _, hz := range []uint64{250, 300, 1000} {
		if math.Abs(measured-float64(hz)) < math.Abs(measured-float64(best)) {
			best = hz
		}
	}
	return best
}

func (c *clock) read() (pontoonClock, error) {
	var value pontoonClock
	if _, err := c.program.Run(&ebpf.RunOptions{Data: make([]byte, 64)}); err != nil {
		return value, fmt.Errorf("run clock program: %w", err)
	}
	if err := c.values.Lookup(uint32(0), &value); err != nil {
		return value, fmt.Errorf("read clock: %w", err)
	}
	return value, nil
}

// now returns the instant from which ages are counted.
func (c *clock) now() (instant, error) {
	value, err := c.read()
	return instant{jiffies: value.Jiffies, hz: c.hz}, err
}

func (c *clock) close() {
	_ = c.program.Close()
	_ = c.values.Close()
}

// instant is one reading of the clock.
type instant struct {
	jiffies uint64
	hz      uint64
}

// skew is how far ahead of us a stamp may be: another CPU's packet after our reading. Anything
// further ahead is a stamp from before the 32 bit counter wrapped.
const skew = 1 << 16

// idle returns the age of a 32 bit stamp. Ages of up to 2^32 - 2^16 jiffies (49 days at 1000 Hz)
// are told apart.
func (i instant) idle(stamp uint32) time.Duration {
	age := uint32(i.jiffies) - stamp
	if age > math.MaxUint32-skew {
		return 0
	}
	return i.duration(uint64(age))
}

// age returns the time since created (in units of 64 jiffies).
func (i instant) age(created uint32) time.Duration {
	age := uint32(i.jiffies>>createdShift) - created
	if age > math.MaxUint32-skew {
		return 0
	}
	return i.duration(uint64(age) << createdShift)
}

// since returns the time from an earlier instant to this one; negative when it is a later one.
func (i instant) since(earlier instant) time.Duration {
	return time.Duration(int64(i.jiffies-earlier.jiffies)) * (time.Second / time.Duration(i.hz))
}

// stamp is the inverse of idle, for ages that a stamp can hold.
func (i instant) stamp(idle time.Duration) uint32 {
	back := min(i.ticks(idle), 1<<31)
	return uint32(i.jiffies - back)
}

// created is the inverse of age.
func (i instant) created(age time.Duration) uint32 {
	return uint32((i.jiffies - min(i.ticks(age), i.jiffies)) >> createdShift)
}

func (i instant) duration(ticks uint64) time.Duration {
	return time.Duration(ticks) * (time.Second / time.Duration(i.hz))
}

func (i instant) ticks(d time.Duration) uint64 {
	return uint64(max(d, 0)) / uint64(time.Second/time.Duration(i.hz))
}

// units turns a time into the units in which flows note their birth; at least one.
func (c *clock) units(d time.Duration) uint32 {
	if d <= 0 {
		return 0
	}
	return uint32(max(uint64(d)/uint64(time.Second/time.Duration(c.hz))>>createdShift, 1))
}
