package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"pontoon/fsm"
)

// addressFlag is an IP address.
type addressFlag struct{ addr netip.Addr }

func (f *addressFlag) String() string {
	if !f.addr.IsValid() {
		return ""
	}
	return f.addr.String()
}

func (f *addressFlag) Type() string { return "address" }

func (f *addressFlag) Set(s string) error {
	addr, err := netip.ParseAddr(s)
	if err != nil {
		return fmt.Errorf("want an IP address, like 192.168.80.200 or 2001:db8::200")
	}
	f.addr = addr
	return nil
}

// portsFlag is one port, or a range of them.
type portsFlag struct{ first, last uint16 } // last is 0 for one port

func (f *portsFlag) String() string {
	switch {
	case f.first == 0:
		return ""
	case f.last == 0:
		return strconv.Itoa(int(f.first))
	}
	return fmt.Sprintf("%d-%d", f.first, f.last)
}

func (f *portsFlag) Type() string { return "port[-port]" }

func (f *portsFlag) Set(s string) error {
	from, to, ranged := strings.Cut(s, "-")
	first, ok := parsePort(from)
	if !ok {
		return fmt.Errorf("want a port from 1 to 65535, or a range like 8000-8100")
	}
	last := uint16(0)
	if ranged {
		if last, ok = parsePort(to); !ok || last < first {
			return fmt.Errorf("want a range like 8000-8100, its ports from 1 to 65535")
		}
	}
	f.first, f.last = first, last
	return nil
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n > 0
}

// endpointsFlag collects ADDRESS:PORT[,weight=N].
type endpointsFlag struct{ list []fsm.Endpoint }

func (f *endpointsFlag) String() string { return "" }

func (f *endpointsFlag) Type() string { return "address:port[,weight=N]" }

func (f *endpointsFlag) Set(s string) error {
	endpoint, err := parseEndpoint(s)
	if err != nil {
		return err
	}
	f.list = append(f.list, endpoint)
	return nil
}

func parseEndpoint(s string) (fsm.Endpoint, error) {
	address, options, more := strings.Cut(s, ",")
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fsm.Endpoint{}, fmt.Errorf("want ADDRESS:PORT[,weight=N], like 10.2.0.21:8080,weight=2 or [2001:db8::21]:8080")
	}
	endpoint := fsm.Endpoint{Address: ap, Weight: 1, Admin: fsm.AdminUp}
	if !more {
		return endpoint, nil
	}
	weight, ok := strings.CutPrefix(options, "weight=")
	n, err := strconv.ParseUint(weight, 10, 16)
	if !ok || err != nil || n > fsm.MaxWeight {
		return fsm.Endpoint{}, fmt.Errorf("%q: want weight=N with N from 0 to %d", options, fsm.MaxWeight)
	}
	endpoint.Weight = uint16(n)
	return endpoint, nil
}
