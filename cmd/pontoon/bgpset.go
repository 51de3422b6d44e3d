package main

import (
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

// bgpFlags are the settings of the BGP speakers on the command line.
type bgpFlags struct {
	as        uint32
	node      string
	routerID  addressOrNone
	port      portOrNone
	restart   time.Duration
	imports   importFlag
	noImport  bool
	maxImport uint32
}

func newBGPSetCmd(a *app) *cobra.Command {
	var f bgpFlags
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "set",
		Short: "Change what is given of the settings of the BGP speakers",
		Long: `Change what is given of the settings of the BGP speakers and leave the rest.

--as is that of all nodes, with --node that of one, where 0 goes back to that of
all. A router id is derived from a node's address unless it is set with --node and
--router-id; none goes back.

--import lets prefixes that routers advertise into the kernel's routes of all
nodes; given once or more often, it replaces all rules. PREFIX alone means exactly
that one, ge=N and le=N bound the length of those within it: 10.0.0.0/8,le=24. For
the default route: 0.0.0.0/0; for all routes: 0.0.0.0/0,le=32.

Another AS, router id or restart time resets sessions: --dry-run says
which, and whether routers keep their routes meanwhile, and changes nothing.`,
		Example: `  pontoon bgp set --as 65010
  pontoon bgp set --node lb1 --router-id 192.0.2.11 --dry-run
  pontoon bgp set --import 0.0.0.0/0 --import 2001:db8::/32,le=48 --max-import 500`,
		Args: wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.check(cmd); err != nil {
				return err
			}
			return edit(a, cmd, "/v1/bgp", false, func(current web.BGPSettings, _ bool, condition http.Header) error {
				f.merge(cmd, &current.BGP)
				return a.writeBGP(cmd, http.MethodPut, "/v1/bgp", current.BGP, condition, dryRun, "the settings of BGP are in place")
			})
		},
	}
	fs := cmd.Flags()
	fs.Uint32Var(&f.as, "as", 0, "the `number` of the autonomous system the nodes belong to (default 64512)")
	fs.StringVar(&f.node, "node", "", "set --as and --router-id of this `node` only")
	a.completingFlag(cmd, "node", nodeNames())
	fs.Var(&f.routerID, "router-id", "what identifies the node of --node among routers, an IPv4 address (default: that of its cluster port)")
	fs.Var(&f.port, "listen-port", "where the nodes listen; none: they only connect (default 179)")
	fs.DurationVar(&f.restart, "restart-time", 0, "for how long routers are to keep the routes of a daemon that restarts, 1s to 4095s (default 2m)")
	fs.Var(&f.imports, "import", "learned prefixes to put into the kernel's routes (repeat; default none)")
	fs.BoolVar(&f.noImport, "no-import", false, "put no learned prefix into the kernel's routes")
	fs.Uint32Var(&f.maxImport, "max-import", 0, "the greatest `number` of prefixes imported in all (default 1000)")
	addDryRun(cmd, &dryRun)
	return cmd
}

// check refuses what says nothing, or two things at once.
func (f *bgpFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	switch {
	case !given(cmd, "dry-run"):
		return usagef("nothing to change is given")
	case changed("router-id") && f.node == "":
		return usagef("--router-id is that of one node: name it with --node")
	case f.node != "" && !changed("as") && !changed("router-id"):
		return usagef("--node goes with --as or --router-id")
	case f.node == "" && changed("as") && f.as == 0:
		return usagef("--as 0: want 1 to 4294967294")
	case f.noImport && changed("import"):
		return usagef("--import and --no-import: give one of them")
	case changed("restart-time") && f.restart == 0:
		return usagef("--restart-time 0s: want 1s to 4095s; --no-graceful-restart of a peer switches it off")
	case changed("max-import") && f.maxImport == 0:
		return usagef("--max-import 0: want 1 to %d; --no-import imports nothing", fsm.MaxImportBound)
	}
	return nil
}

// merge puts what was given on the command line into b.
func (f *bgpFlags) merge(cmd *cobra.Command, b *fsm.BGP) {
	changed := cmd.Flags().Changed
	if f.node != "" {
		f.mergeNode(cmd, b)
	} else if changed("as") {
		b.AS = f.as
	}
	if changed("listen-port") {
		b.Port = f.port.port
	}
	if changed("restart-time") {
		b.RestartTime = fsm.Duration(f.restart)
	}
	if changed("import") || f.noImport {
		b.Import = f.imports.list
	}
	if changed("max-import") {
		b.MaxImport = f.maxImport
	}
}

func (f *bgpFlags) mergeNode(cmd *cobra.Command, b *fsm.BGP) {
	i := slices.IndexFunc(b.Nodes, func(n fsm.BGPNode) bool { return string(n.Node) == f.node })
	if i < 0 {
		b.Nodes = append(b.Nodes, fsm.BGPNode{Node: fsm.NodeID(f.node)})
		i = len(b.Nodes) - 1
	}
	if cmd.Flags().Changed("as") {
		b.Nodes[i].AS = f.as
	}
	if cmd.Flags().Changed("router-id") {
		b.Nodes[i].RouterID = f.routerID.addr
	}
}

// importFlag collects PREFIX[,ge=N][,le=N].
type importFlag struct{ list []fsm.ImportRule }

func (f *importFlag) String() string { return "" }

func (f *importFlag) Type() string { return "prefix[,ge=N][,le=N]" }

func (f *importFlag) Set(s string) error {
	rule, err := parseImport(s)
	if err != nil {
		return err
	}
	f.list = append(f.list, rule)
	return nil
}

func parseImport(s string) (fsm.ImportRule, error) {
	words := strings.Split(s, ",")
	prefix, err := netip.ParsePrefix(words[0])
	if err != nil {
		return fsm.ImportRule{}, fmt.Errorf("want PREFIX[,ge=N][,le=N], like 10.0.0.0/8,le=24 or 2001:db8::/32")
	}
	rule := fsm.ImportRule{Prefix: prefix}
	for _, word := range words[1:] {
		key, value, _ := strings.Cut(word, "=")
		n, err := strconv.ParseUint(value, 10, 8)
		into := map[string]*uint8{"ge": &rule.MinLen, "le": &rule.MaxLen}[key]
		if err != nil || into == nil || int(n) > prefix.Addr().BitLen() {
			return fsm.ImportRule{}, fmt.Errorf("%q: want ge=N or le=N with N up to %d", word, prefix.Addr().BitLen())
		}
		*into = uint8(n)
	}
	return rule, nil
}

// importWords writes a rule as --import reads it.
func importWords(r fsm.ImportRule) string {
	bits, most := r.Prefix.Bits(), r.Prefix.Addr().BitLen()
	s := r.Prefix.String()
	if int(r.MinLen) > bits {
		s += fmt.Sprintf(",ge=%d", r.MinLen)
	}
	if int(r.MaxLen) > bits && (int(r.MaxLen) < most || int(r.MinLen) <= bits) {
		s += fmt.Sprintf(",le=%d", r.MaxLen)
	}
	return s
}
