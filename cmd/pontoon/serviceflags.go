package main

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pontoon/fsm"
)

// serviceFlags are the settings of a service on the command line.
type serviceFlags struct {
	vip         addressFlag
	instance    string
	port        portFlag
	protocol    *choice
	mode        *choice
	algorithm   *choice
	affinity    *choice
	affinityFor unsupported
	idleTimeout time.Duration
	endpoints   endpointsFlag
	add         endpointsFlag
	remove      endpointsFlag
}

func (f *serviceFlags) addTo(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&f.vip, "vip", "the virtual address clients connect to")
	a.completingFlag(cmd, "vip", vipNames())
	fs.StringVar(&f.instance, "instance", "", "the instance the virtual address belongs to (default: the one it is in)")
	a.completingFlag(cmd, "instance", instanceNames())
	fs.Var(&f.port, "port", "the port clients connect to, 1 to 65535")
	// The daemon fills in what is not given: one place knows the defaults.
	f.protocol = newChoice("", string(fsm.TCP), string(fsm.UDP))
	f.protocol.later = []string{"sctp"}
	f.protocol.addTo(cmd, "protocol", "", "the transport protocol (default tcp)")
	f.mode = newChoice("", string(fsm.ModeFullNAT), string(fsm.ModeOneArm), string(fsm.ModeDNAT))
	f.mode.later = []string{"dsr"}
	f.mode.addTo(cmd, "mode", "", "the kind of address translation (default fullnat)")
	f.algorithm = newChoice("", string(fsm.RoundRobin), string(fsm.Maglev))
	f.algorithm.later = []string{"lc"}
	f.algorithm.addTo(cmd, "algorithm", "", "how new flows are spread: rr by weight in turn, maglev by hash (default rr)")
	f.affinity = newChoice("", "none")
	f.affinity.later = []string{"client-ip"}
	f.affinity.addTo(cmd, "affinity", "", "none: flows of one client may go to different endpoints (default none)")
	f.affinityFor.addTo(cmd, "affinity-timeout", "", "no client is kept at its endpoint, so there is nothing to time out")
	fs.DurationVar(&f.idleTimeout, "idle-timeout", 0,
		"forget an established flow after this silence, 1s to 24h (default 1h for tcp, 2m for udp)")
	fs.Var(&f.endpoints, "endpoint", "a backend; weight 0 to 100, default 1, 0 takes no new flows (repeat)")
}

// path is where to write a service, with the conditions the flags set.
func (f *serviceFlags) path(name string, create bool) string {
	q := url.Values{}
	if create {
		q.Set("create", "true")
	}
	if f.instance != "" {
		q.Set("instance", f.instance)
	}
	if len(q) == 0 {
		return servicePath(name)
	}
	return servicePath(name) + "?" + q.Encode()
}

func (f *serviceFlags) addEditsTo(cmd *cobra.Command) {
	cmd.Flags().Var(&f.add, "add-endpoint", "a backend to add, or to give another weight (repeat)")
	cmd.Flags().Var(&f.remove, "remove-endpoint", "a backend to remove (repeat)")
}

// checkEdits refuses an update that changes nothing or says two things at once.
func (f *serviceFlags) checkEdits(cmd *cobra.Command) error {
	given := false
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { given = given || f.Changed })
	if !given {
		return usagef("nothing to change is given")
	}
	if len(f.endpoints.list) > 0 && len(f.add.list)+len(f.remove.list) > 0 {
		return usagef("--endpoint replaces the whole list: leave --add-endpoint and --remove-endpoint out, or it")
	}
	return nil
}

// merge puts what was given on the command line into s.
func (f *serviceFlags) merge(cmd *cobra.Command, s *fsm.Service) error {
	changed := cmd.Flags().Changed
	if changed("vip") {
		s.VIP = f.vip.addr
	}
	if changed("port") {
		s.Port = uint16(f.port)
	}
	if changed("protocol") {
		s.Protocol = fsm.Protocol(f.protocol.value)
	}
	if changed("mode") {
		s.Mode = fsm.Mode(f.mode.value)
	}
	if changed("algorithm") {
		s.Algorithm = fsm.Algorithm(f.algorithm.value)
	}
	if changed("idle-timeout") {
		s.IdleTimeout = fsm.Duration(f.idleTimeout)
		if s.IdleTimeout == 0 {
			return usagef("--idle-timeout 0s: want 1s to 24h")
		}
	}
	if changed("endpoint") {
		s.Endpoints = keepAdmin(f.endpoints.list, s.Endpoints)
	}
	return f.edit(s)
}

// keepAdmin gives the endpoints that stay their administrative state: a new list
// must not send new flows to one that somebody is draining.
func keepAdmin(list, before []fsm.Endpoint) []fsm.Endpoint {
	list = slices.Clone(list)
	for i := range list {
		for _, b := range before {
			if b.Address == list[i].Address {
				list[i].Admin = b.Admin
			}
		}
	}
	return list
}

// edit applies --add-endpoint and --remove-endpoint.
func (f *serviceFlags) edit(s *fsm.Service) error {
	at := func(address netip.AddrPort) int {
		return slices.IndexFunc(s.Endpoints, func(e fsm.Endpoint) bool { return e.Address == address })
	}
	for _, e := range f.add.list {
		if i := at(e.Address); i >= 0 {
			s.Endpoints[i].Weight = e.Weight // its admin state is not ours to change
			continue
		}
		s.Endpoints = append(s.Endpoints, e)
	}
	for _, e := range f.remove.list {
		i := at(e.Address)
		if i < 0 {
			return fmt.Errorf("service %s has no endpoint %s: see `pontoon service show %s`", s.Name, e.Address, s.Name)
		}
		s.Endpoints = slices.Delete(s.Endpoints, i, i+1)
	}
	return nil
}

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
		return fmt.Errorf("want an IP address, like 192.168.80.200")
	}
	f.addr = addr
	return nil
}

// portFlag is one port.
type portFlag uint16

func (f *portFlag) String() string {
	if *f == 0 {
		return ""
	}
	return strconv.Itoa(int(*f))
}

func (f *portFlag) Type() string { return "port" }

func (f *portFlag) Set(s string) error {
	if first, last, ok := strings.Cut(s, "-"); ok && first != "" && last != "" {
		return fmt.Errorf("a range of ports is not supported yet: make one service per port")
	}
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return fmt.Errorf("want a port from 1 to 65535")
	}
	*f = portFlag(n)
	return nil
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
		return fsm.Endpoint{}, fmt.Errorf("want ADDRESS:PORT[,weight=N], like 10.2.0.21:8080,weight=2")
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
