package health

import (
	"fmt"
	"math/rand/v2"
	"os"
)

// ports are the local ports that probes may use.
type ports struct {
	low, high   uint16 // what the kernel gives out, both included
	first, last uint16 // not these; 0: the kernel may choose any
}

// kernelPorts reads what the kernel gives out by itself.
func kernelPorts() ports {
	p := ports{low: 32768, high: 60999} // its default
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return p
	}
	var low, high uint16
	if n, err := fmt.Sscan(string(b), &low, &high); n == 2 && err == nil && low > 0 && low <= high {
		p.low, p.high = low, high
	}
	return p
}

// avoids tells whether a port is one of those that must not be used.
func (p ports) avoids(port uint16) bool {
	return p.last != 0 && port >= p.first && port <= p.last
}

// pick is a random port that may be used; 0 when the kernel may choose, or nothing is left.
func (p ports) pick() uint16 {
	if p.last == 0 || p.first > p.high || p.last < p.low {
		return 0
	}
	below := max(0, int(p.first)-int(p.low))
	above := max(0, int(p.high)-int(p.last))
	if below+above == 0 {
		return 0
	}
	n := rand.IntN(below + above)
	if n < below {
		return p.low + uint16(n)
	}
	return p.last + 1 + uint16(n-below)
}
