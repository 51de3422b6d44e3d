package benchtest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// cpuTime is what all processors together have spent since boot.
type cpuTime struct {
	busy  time.Duration
	steal time.Duration // taken by the hypervisor: a reason to distrust a run
}

func (c cpuTime) since(before cpuTime) cpuTime {
	return cpuTime{busy: c.busy - before.busy, steal: c.steal - before.steal}
}

// clockTick is the unit of /proc/stat: USER_HZ is 100 on every machine Go runs on.
const clockTick = 10 * time.Millisecond

func readCPU() (cpuTime, error) {
	raw, err := os.ReadFile("/proc/stat")
	if err != nil {
		return cpuTime{}, fmt.Errorf("read processor time: %w", err)
	}
	return parseCPU(string(raw))
}

// parseCPU reads the first line of /proc/stat (proc(5)): user nice system idle
// iowait irq softirq steal. Guests' time is in user already.
func parseCPU(stat string) (cpuTime, error) {
	line, _, _ := strings.Cut(stat, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return cpuTime{}, errors.New("parse processor time: no line for all processors")
	}
	var t [8]time.Duration
	for i := range t {
		n, err := strconv.ParseInt(f[i+1], 10, 64)
		if err != nil {
			return cpuTime{}, fmt.Errorf("parse processor time: %w", err)
		}
		t[i] = time.Duration(n) * clockTick
	}
	const user, nice, system, irq, softirq, steal = 0, 1, 2, 5, 6, 7
	return cpuTime{busy: t[user] + t[nice] + t[system] + t[irq] + t[softirq], steal: t[steal]}, nil
}
