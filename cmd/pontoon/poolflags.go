package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

// poolFlags are what can be said of a pool on the command line.
type poolFlags struct {
	cidrs         prefixesFlag
	ranges        rangesFlag
	instance      string
	iface         string
	mode          *choice
	all, fallback bool

	addCIDRs, dropCIDRs   prefixesFlag // of an update
	addRanges, dropRanges rangesFlag
}

func (f *poolFlags) addTo(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(&f.cidrs, "cidr", "addresses of a prefix, without its network and broadcast address (repeat)")
	fs.Var(&f.ranges, "range", "addresses from one to another, both included, or one alone (repeat)")
	fs.BoolVar(&f.all, "all-addresses", false, "hand out the first and the last address of each --cidr too (default false)")
	fs.StringVar(&f.instance, "instance", fsm.DefaultInstance, "the instance its virtual addresses belong to")
	a.completingFlag(cmd, "instance", instanceNames())
	fs.StringVar(&f.iface, "interface", "", "the interface that holds them (default: the one whose subnet contains them)")
	fs.BoolVar(&f.fallback, "default", false, "let \"--vip auto\" mean this pool, and no other (default false)")
	f.mode = newChoice("", string(fsm.AnnounceL2), string(fsm.AnnounceBGP), string(fsm.AnnounceNone)).
		addTo(cmd, "announce", "", "how they are announced (default l2; bgp in an instance of kind ecmp)")
}

func newPoolCreateCmd(a *app) *cobra.Command {
	var f poolFlags
	cmd := &cobra.Command{
		Use:   "create NAME --cidr PREFIX | --range FIRST-LAST ...",
		Short: "Create an address pool",
		Long: `Create an address pool. For one that exists, its addresses and settings are
replaced; it keeps its reservations, and cannot lose an address that is handed out.
Virtual addresses that are there already stay as they are. "pontoon pool update"
changes a part.

All its addresses are of one IP family, and must be nobody's: those of nodes,
endpoints, BGP peers and other pools are refused, and what a node has on a link or
reaches over a router. Leave such addresses out with --range. A node that cannot be
asked for its links and routes is named. Virtual addresses that were made by hand,
before or later, are stepped over: they are in use, and stay when the pool is deleted.

"--vip auto" means the only pool, or the one created with --default.`,
		Example: `  pontoon pool create web --range 192.168.80.200-192.168.80.219
  pontoon pool create edge --cidr 203.0.113.0/28 --all-addresses --announce bgp --instance blue`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(f.cidrs.list)+len(f.ranges.list) == 0 {
				return usagef("no addresses: give --cidr or --range")
			}
			body := fsm.Pool{
				Name: args[0], CIDRs: f.cidrs.list, Ranges: f.ranges.list, AllAddresses: f.all,
				Instance: f.instance, Announce: fsm.AnnounceMode(f.mode.value), Interface: f.iface, Default: f.fallback,
			}
			return a.putPool(cmd, body, nil, "pool "+args[0]+" is in place")
		},
	}
	f.addTo(a, cmd)
	return cmd
}

func newPoolUpdateCmd(a *app) *cobra.Command {
	var f poolFlags
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change what is given of an address pool",
		Long: `Change what is given of an address pool and leave the rest. --cidr and --range replace
all its addresses; --add-cidr, --add-range, --remove-cidr and --remove-range change them,
and what is removed is named as "pontoon pool show" tells it. It cannot lose an address
that is handed out or reserved. Virtual addresses that are there already keep the
instance and the announcement that they have.`,
		Example: `  pontoon pool update web --add-range 192.168.80.220-192.168.80.229
  pontoon pool update web --default`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !given(cmd) {
				return usagef("nothing to change is given")
			}
			return edit(a, cmd, poolPath(args[0]), false, func(current web.PoolStatus, _ bool, condition http.Header) error {
				p := current.Pool
				p.Reservations = nil // without the key it keeps those it has
				if err := f.merge(cmd, &p); err != nil {
					return err
				}
				return a.putPool(cmd, p, condition, "pool "+args[0]+" is updated")
			})
		},
	}
	f.addTo(a, cmd)
	fs := cmd.Flags()
	fs.Var(&f.addCIDRs, "add-cidr", "a prefix more (repeat)")
	fs.Var(&f.addRanges, "add-range", "a range or an address more (repeat)")
	fs.Var(&f.dropCIDRs, "remove-cidr", "a prefix of the pool less (repeat)")
	fs.Var(&f.dropRanges, "remove-range", "a range or an address of the pool less (repeat)")
	return a.completing(cmd, poolNames())
}

// merge puts what was given on the command line into a pool.
func (f *poolFlags) merge(cmd *cobra.Command, p *fsm.Pool) error {
	if len(f.cidrs.list)+len(f.ranges.list) > 0 {
		p.CIDRs, p.Ranges = f.cidrs.list, f.ranges.list
	}
	var err error
	if p.CIDRs, err = changed(p.CIDRs, f.addCIDRs.list, f.dropCIDRs.list, p.Name); err != nil {
		return err
	}
	if p.Ranges, err = changed(p.Ranges, f.addRanges.list, f.dropRanges.list, p.Name); err != nil {
		return err
	}
	put(cmd.Flags().Changed("all-addresses"), &p.AllAddresses, f.all)
	put(cmd.Flags().Changed("instance"), &p.Instance, f.instance)
	put(cmd.Flags().Changed("interface"), &p.Interface, f.iface)
	put(cmd.Flags().Changed("default"), &p.Default, f.fallback)
	set(&p.Announce, f.mode)
	return nil
}

// changed is a copy of a list of a pool with some more and some less. What is added is there once.
func changed[T interface {
	comparable
	fmt.Stringer
}](list, more, less []T, pool string) ([]T, error) {
	list = slices.Clone(list)
	for _, v := range less {
		i := slices.Index(list, v)
		if i < 0 {
			return nil, fmt.Errorf("pool %s has no part %s: see \"pontoon pool show %s\"", pool, v, pool)
		}
		list = slices.Delete(list, i, i+1)
	}
	for _, v := range more {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list, nil
}

// putPool writes a pool and says what is so now, and what could not be looked at.
func (a *app) putPool(cmd *cobra.Command, p fsm.Pool, condition http.Header, done string) error {
	written, err := askIf[web.PoolWritten](a, cmd, http.MethodPut, poolPath(p.Name), p, condition)
	if err != nil {
		return err
	}
	a.committed(written.WriteResult, done)
	for _, note := range written.Notes {
		a.printf("note: %s\n", note)
	}
	return nil
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
