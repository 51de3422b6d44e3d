package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"net/url"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newPoolCmd(a *app) *cobra.Command {
	cmd := group("pool", "List, create and delete address pools, and reserve addresses",
		`A pool is a set of addresses for services. "pontoon service create --vip auto" takes
the lowest that is free, makes it a virtual address and gives it back when the last
service on it is deleted. No address is handed out twice, whichever nodes are asked
at the same moment.`)
	cmd.AddCommand(
		shows(a, &cobra.Command{
			Use:     "list",
			Short:   "List the address pools",
			Long:    "List the address pools: how many addresses they have, and how many of them are used,\nreserved and free.",
			Example: "  pontoon pool list",
			Args:    wantArgs(),
		}, func([]string) string { return "/v1/pools" }, drawPools),
		a.completing(shows(a, &cobra.Command{
			Use:     "show NAME",
			Short:   "Show a pool, who has its addresses and which are reserved",
			Long:    "Show a pool, who has its addresses and which are reserved.",
			Example: "  pontoon pool show web",
			Args:    wantArgs("NAME"),
		}, func(args []string) string { return poolPath(args[0]) }, drawPool), poolNames()),
		newPoolCreateCmd(a), newPoolReserveCmd(a),
		a.changes(&cobra.Command{
			Use:     "unreserve ADDRESS",
			Short:   "Let an address be handed out again",
			Long:    "Let an address be handed out again that \"pontoon pool reserve\" kept back.",
			Example: "  pontoon pool unreserve 192.168.80.210",
			Args:    wantAddress,
		}, http.MethodDelete, func(args []string) string { return reservationPath(args[0]) },
			func(args []string) string { return "address " + args[0] + " is not reserved any more" }),
		a.completing(a.changes(&cobra.Command{
			Use:   "delete NAME",
			Short: "Delete a pool of which nothing is handed out",
			Long: `Delete a pool, with its reservations. One of which addresses are handed out is
refused: delete their services first.`,
			Example: "  pontoon pool delete web",
			Args:    wantArgs("NAME"),
		}, http.MethodDelete, func(args []string) string { return poolPath(args[0]) },
			func(args []string) string { return "pool " + args[0] + " is deleted" }), poolNames()),
	)
	return cmd
}

func poolPath(name string) string { return "/v1/pools/" + url.PathEscape(name) }

func reservationPath(address string) string { return "/v1/reservations/" + url.PathEscape(address) }

func newPoolCreateCmd(a *app) *cobra.Command {
	var (
		cidrs         prefixesFlag
		ranges        rangesFlag
		instance      string
		iface         string
		all, fallback bool
	)
	cmd := &cobra.Command{
		Use:   "create NAME --cidr PREFIX | --range FIRST-LAST ...",
		Short: "Create an address pool",
		Long: `Create an address pool. For one that exists, its addresses and settings are
replaced; it keeps its reservations, and cannot lose an address that is handed out.
Virtual addresses that are there already stay as they are.

All its addresses are of one IP family, and must be nobody's: those of nodes,
endpoints, BGP peers and other pools are refused, and what the
node that is asked has on a link or reaches over a router. Leave such addresses out
with --range. Virtual addresses that were made by hand, before or later, are stepped
over: they are in use, and stay when the pool is deleted.

"--vip auto" means the only pool, or the one created with --default.`,
		Example: `  pontoon pool create web --range 192.168.80.200-192.168.80.219
  pontoon pool create edge --cidr 203.0.113.0/28 --all-addresses --announce bgp --instance blue`,
		Args: wantArgs("NAME"),
	}
	fs := cmd.Flags()
	fs.Var(&cidrs, "cidr", "addresses of a prefix, without its network and broadcast address (repeat)")
	fs.Var(&ranges, "range", "addresses from one to another, both included, or one alone (repeat)")
	fs.BoolVar(&all, "all-addresses", false, "hand out the first and the last address of each --cidr too (default false)")
	fs.StringVar(&instance, "instance", fsm.DefaultInstance, "the instance its virtual addresses belong to")
	a.completingFlag(cmd, "instance", instanceNames())
	fs.StringVar(&iface, "interface", "", "the interface that holds them (default: the one whose subnet contains them)")
	fs.BoolVar(&fallback, "default", false, "let \"--vip auto\" mean this pool, and no other (default false)")
	mode := newChoice("", string(fsm.AnnounceL2), string(fsm.AnnounceBGP), string(fsm.AnnounceNone)).
		addTo(cmd, "announce", "", "how they are announced (default l2; bgp in an instance of kind ecmp)")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if len(cidrs.list)+len(ranges.list) == 0 {
			return usagef("no addresses: give --cidr or --range")
		}
		body := fsm.Pool{
			Name: args[0], CIDRs: cidrs.list, Ranges: ranges.list, AllAddresses: all,
			Instance: instance, Announce: fsm.AnnounceMode(mode.value), Interface: iface, Default: fallback,
		}
		return a.write(cmd, http.MethodPut, poolPath(args[0]), body, "pool "+args[0]+" is in place")
	}
	return cmd
}

func newPoolReserveCmd(a *app) *cobra.Command {
	var service string
	cmd := &cobra.Command{
		Use:   "reserve ADDRESS",
		Short: "Keep an address of a pool back",
		Long: `Keep an address of a pool back, so that it is not handed out. With --service it is
kept for that service, which gets it when it asks the pool for an address; an
address that the service is on already can be reserved too, so that it gets it back
after it was deleted.`,
		Example: `  pontoon pool reserve 192.168.80.210
  pontoon pool reserve 192.168.80.211 --service web`,
		Args: wantAddress,
		RunE: func(cmd *cobra.Command, args []string) error {
			done := "address " + args[0] + " is reserved"
			if service != "" {
				done += " for service " + service
			}
			return a.write(cmd, http.MethodPut, reservationPath(args[0]), web.ReservationRequest{Service: service}, done)
		},
	}
	cmd.Flags().StringVar(&service, "service", "", "the service that may have it (default: nobody)")
	return cmd
}

func drawPools(t *table, pools []web.PoolStatus) {
	t.head("POOL", "ADDRESSES", "SIZE", "USED", "RESERVED", "FREE", "INSTANCE", "ANNOUNCED BY", "DEFAULT")
	for _, p := range pools {
		t.row(p.Name, addressesOf(p.Pool), p.Size, p.Used, p.Reserved, freeOf(p), p.Instance, p.Announce, yesNo(p.Default))
	}
}

func drawPool(t *table, p web.PoolStatus) {
	t.row("name", p.Name)
	t.row("addresses", addressesOf(p.Pool))
	t.row("instance", p.Instance)
	t.row("announced by", p.Announce)
	if p.Interface != "" {
		t.row("interface", p.Interface)
	}
	t.row("default", yesNo(p.Default))
	t.row("used", fmt.Sprintf("%d of %d, %d reserved, %d free", p.Used, p.Size, p.Reserved, p.Free))
	t.line("")
	t.head("HANDED OUT", "SHARE", "SERVICES")
	for _, at := range p.Allocations {
		t.row(at.Address, at.Share, join(at.Services))
	}
	if len(p.Others) > 0 {
		t.line("")
		t.head("NOT HANDED OUT", "IT IS", "SERVICES")
		for _, at := range p.Others {
			t.row(at.Address, at.What, join(at.Services))
		}
	}
	if len(p.Reservations) > 0 {
		t.line("")
		t.head("RESERVED", "FOR")
		for _, r := range p.Reservations {
			t.row(r.Address, r.Service)
		}
	}
}

// addressesOf are the parts of a pool as they were given.
func addressesOf(p fsm.Pool) string {
	words := make([]string, 0, len(p.CIDRs)+len(p.Ranges))
	for _, c := range p.CIDRs {
		words = append(words, c.String())
	}
	for _, r := range p.Ranges {
		words = append(words, r.String())
	}
	return join(words)
}

// freeOf is how many addresses are left; none is worth a look.
func freeOf(p web.PoolStatus) cell {
	c := cell{fmt.Sprint(p.Free), plain}
	if p.Free == 0 {
		c.style = bad
	}
	return c
}

func poolNames() names {
	return namesAt("/v1/pools", func(p web.PoolStatus) any { return p.Name })
}

// prefixesFlag collects prefixes.
type prefixesFlag struct{ list []netip.Prefix }

func (f *prefixesFlag) String() string { return "" }

func (f *prefixesFlag) Type() string { return "prefix" }

func (f *prefixesFlag) Set(s string) error {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return fmt.Errorf("want a prefix, like 192.168.80.0/24 or 2001:db8::/64")
	}
	f.list = append(f.list, p)
	return nil
}

// rangesFlag collects ranges of addresses.
type rangesFlag struct{ list []fsm.AddressRange }

func (f *rangesFlag) String() string { return "" }

func (f *rangesFlag) Type() string { return "first-last" }

func (f *rangesFlag) Set(s string) error {
	r, err := fsm.ParseAddressRange(s)
	if err != nil {
		return err
	}
	f.list = append(f.list, r)
	return nil
}

// vipFlag is an address, or the wish for one of a pool.
type vipFlag struct {
	addressFlag
	auto string // "auto" or "auto:POOL"; "" where an address was given
}

func (f *vipFlag) String() string {
	if f.auto != "" {
		return f.auto
	}
	return f.addressFlag.String()
}

func (f *vipFlag) Type() string { return "address|auto[:POOL]" }

func (f *vipFlag) Set(s string) error {
	if _, auto := web.ParseAutoVIP(s); auto {
		f.addr, f.auto = netip.Addr{}, s
		return nil
	}
	if err := f.addressFlag.Set(s); err != nil {
		return fmt.Errorf("want an IP address, like 192.168.80.200 or 2001:db8::200, or auto[:POOL] for one of a pool")
	}
	f.auto = ""
	return nil
}

// shortList shortens a long list for one line of a table.
func shortList[T any](list []T) string {
	const most = 4
	if len(list) <= most {
		return join(list)
	}
	return fmt.Sprintf("%s and %d more", join(list[:most-1]), len(list)-most+1)
}
