package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

// instanceFlags are what can be said of an instance on the command line.
type instanceFlags struct {
	priorities    priorities
	kind          *choice
	policy        *choice
	nextHops      addressesFlag
	asPrepend     bool
	communities   communitiesFlag
	noNextHop     bool // of an update
	noCommunities bool // of an update
}

func (f *instanceFlags) addTo(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.Var(f.priorities, "priority", "preference for a node; higher is preferred, default 0 (repeat)")
	f.kind = newChoice("", string(fsm.InstanceBackup), string(fsm.InstanceECMP)).
		addTo(cmd, "kind", "", "backup: one node serves and the others follow; ecmp: all serve (default backup)")
	f.policy = newChoice("", string(fsm.PolicyRanked), string(fsm.PolicyMasterOnly)).
		addTo(cmd, "announce-policy", "", "who announces by BGP. ranked: all, the master as the best way; master-only: nobody else (default ranked)")
	fs.Var(&f.nextHops, "next-hop", "an address of the instance that is the next hop of the routes to its others, one of a family (repeat)")
	a.completingFlag(cmd, "next-hop", vipNames())
	fs.BoolVar(&f.asPrepend, "as-prepend", false, "lengthen the AS path of a backup's routes by one for each place behind the master (default false)")
	fs.Var(&f.communities, "community", "a label of all its routes, 65000:100 or large 65000:1:2 (repeat)")
}

func newInstanceUpdateCmd(a *app) *cobra.Command {
	f := instanceFlags{priorities: priorities{}}
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change what is given of an instance",
		Long: `Change what is given of an instance and leave the rest. --priority, --next-hop and
--community replace the whole list. Nothing of it touches a BGP session; routes get
their new attributes at once.

--next-hop names virtual addresses of the instance: the routes to its others then
have these as next hop, and a new master moves them alone, however many the others
are. They need --announce l2 or bgp themselves.`,
		Example: `  pontoon instance update blue --next-hop 192.168.80.250 --as-prepend
  pontoon instance update blue --announce-policy master-only --no-next-hop`,
		Args: wantArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			path := instancePath(args[0])
			return edit(a, cmd, path, false, func(current web.InstanceStatus, _ bool, condition http.Header) error {
				written, err := askIf[web.WriteResult](a, cmd, http.MethodPut, path, f.updated(cmd, current), condition)
				if err == nil {
					a.committed(written, "instance "+args[0]+" is updated")
				}
				return err
			})
		},
	}
	f.addTo(a, cmd)
	cmd.Flags().BoolVar(&f.noNextHop, "no-next-hop", false, "let each node be the next hop of its own routes again")
	cmd.Flags().BoolVar(&f.noCommunities, "no-community", false, "take all communities off")
	return a.completing(cmd, instanceNames())
}

// updated is what has to be sent so that what was given on the command line is changed, and nothing else.
func (f *instanceFlags) updated(cmd *cobra.Command, current web.InstanceStatus) web.InstanceRequest {
	body := web.InstanceRequest{Priorities: current.Priorities}
	if cmd.Flags().Changed("priority") {
		body.Priorities = f.priorities
	}
	if given(cmd, "priority") {
		body.InstanceSettings = current.InstanceSettings
	}
	f.merge(cmd, &body)
	return body
}

// check refuses an update that changes nothing or says two things at once.
func (f *instanceFlags) check(cmd *cobra.Command) error {
	switch {
	case !given(cmd):
		return usagef("nothing to change is given")
	case f.noNextHop && len(f.nextHops.list) > 0:
		return usagef("--next-hop and --no-next-hop: give one of them")
	case f.noCommunities && len(f.communities.list) > 0:
		return usagef("--community and --no-community: give one of them")
	}
	return nil
}

// merge puts what was given on the command line into a request.
func (f *instanceFlags) merge(cmd *cobra.Command, r *web.InstanceRequest) {
	if set(&r.Kind, f.kind) && r.Kind == fsm.InstanceECMP {
		r.AnnouncePolicy, r.NextHops, r.ASPrepend = "", nil, false // they went with a master
	}
	set(&r.AnnouncePolicy, f.policy)
	if len(f.nextHops.list) > 0 || f.noNextHop {
		r.NextHops = f.nextHops.list
	}
	put(cmd.Flags().Changed("as-prepend"), &r.ASPrepend, f.asPrepend)
	if len(f.communities.list) > 0 || f.noCommunities {
		r.Communities = f.communities.list
	}
}

// addressesFlag collects IP addresses.
type addressesFlag struct{ list []netip.Addr }

func (f *addressesFlag) String() string { return "" }

func (f *addressesFlag) Type() string { return "address" }

func (f *addressesFlag) Set(s string) error {
	var a addressFlag
	if err := a.Set(s); err != nil {
		return err
	}
	f.list = append(f.list, a.addr)
	return nil
}

// communitiesFlag collects BGP communities.
type communitiesFlag struct{ list []fsm.Community }

func (f *communitiesFlag) String() string { return "" }

func (f *communitiesFlag) Type() string { return "n:n[:n]" }

func (f *communitiesFlag) Set(s string) error {
	c := fsm.Community(s)
	if err := c.Validate(); err != nil {
		return fmt.Errorf("it %w", err)
	}
	f.list = append(f.list, c)
	return nil
}

// settingsWords says what of the settings is not the default.
func settingsWords(s web.InstanceSettings) string {
	var words []string
	if s.Kind == fsm.InstanceECMP {
		words = append(words, string(s.Kind))
	}
	if s.AnnouncePolicy == fsm.PolicyMasterOnly {
		words = append(words, string(s.AnnouncePolicy))
	}
	if len(s.NextHops) > 0 {
		words = append(words, "next hop "+join(s.NextHops))
	}
	if s.ASPrepend {
		words = append(words, "prepends")
	}
	if len(s.Communities) > 0 {
		words = append(words, "communities "+join(s.Communities))
	}
	return strings.Join(words, "; ")
}
