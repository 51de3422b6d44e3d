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
	cmd := group("pool", "List, create, update and delete address pools, and reserve addresses",
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
		newPoolCreateCmd(a), newPoolUpdateCmd(a), newPoolReserveCmd(a),
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
