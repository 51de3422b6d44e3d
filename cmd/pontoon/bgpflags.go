package main

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"pontoon/fsm"
)

// given says whether any flag of its own but those named was given to a command.
func given(cmd *cobra.Command, but ...string) bool {
	found := false
	cmd.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) { found = found || f.Changed && !slices.Contains(but, f.Name) })
	return found
}

// nodeOrAll is the name of a node, or "all", which is "".
type nodeOrAll struct{ node fsm.NodeID }

func (f *nodeOrAll) String() string {
	if f.node == "" {
		return "all"
	}
	return string(f.node)
}

func (f *nodeOrAll) Type() string { return "name|all" }

func (f *nodeOrAll) Set(s string) error {
	f.node = ""
	if s != "all" {
		f.node = fsm.NodeID(s)
	}
	return nil
}

func (f *nodeOrAll) addTo(a *app, cmd *cobra.Command, usage string) {
	cmd.Flags().Var(f, "node", usage)
	a.completingFlag(cmd, "node", nodeNames())
}

// addressOrNone is an IP address, or "none".
type addressOrNone struct{ addr netip.Addr }

func (f *addressOrNone) String() string {
	if !f.addr.IsValid() {
		return ""
	}
	return f.addr.String()
}

func (f *addressOrNone) Type() string { return "address|none" }

func (f *addressOrNone) Set(s string) error {
	f.addr = netip.Addr{}
	if s == "none" {
		return nil
	}
	var a addressFlag
	if err := a.Set(s); err != nil {
		return fmt.Errorf("%w, or none", err)
	}
	f.addr = a.addr
	return nil
}

// portOrNone is a port, or "none", which is 0.
type portOrNone struct{ port uint16 }

func (f *portOrNone) String() string { return "" }

func (f *portOrNone) Type() string { return "port|none" }

func (f *portOrNone) Set(s string) error {
	f.port = 0
	if s == "none" {
		return nil
	}
	port, ok := parsePort(s)
	if !ok {
		return fmt.Errorf("want a port from 1 to 65535, or none")
	}
	f.port = port
	return nil
}

// peerFlags are the settings of a BGP peer on the command line. Their defaults are
// not told to pflag: the daemon fills in what is not given.
type peerFlags struct {
	node          nodeOrAll
	as            uint32
	localAS       uint32
	port          uint16
	password      string
	passwordFile  string
	multihop      uint8
	ttlSecurity   bool
	passive       bool
	hold          time.Duration
	keepalive     time.Duration
	source        addressOrNone
	family        *choice
	noGraceful    bool
	maxPrefixes   uint32
	bfd           bool
	bfdInterval   time.Duration
	bfdMultiplier uint8
}

func (f *peerFlags) addTo(a *app, cmd *cobra.Command) {
	fs := cmd.Flags()
	f.node.addTo(a, cmd, "who speaks with it")
	fs.Uint32Var(&f.as, "as", 0, "the `number` of the peer's autonomous system")
	fs.Uint32Var(&f.localAS, "local-as", 0, "the `number` of the AS the nodes call theirs to this peer; 0 is their own (default 0)")
	fs.Uint16Var(&f.port, "port", 0, "where the peer listens (default 179)")
	fs.StringVar(&f.passwordFile, "password-file", "", "the `file` with the password of the session (TCP MD5, RFC 2385); a line end at its end does not count")
	fs.StringVar(&f.password, "password", "", "the password itself, which process lists show (better: --password-file); \"\" takes it off")
	fs.Uint8Var(&f.multihop, "multihop", 0, "how many `hops` away a peer of another AS may be; 0: on a link of the node (default 0)")
	fs.BoolVar(&f.ttlSecurity, "ttl-security", false, "take packets from the link itself only (RFC 5082); both sides have to (default false)")
	fs.BoolVar(&f.passive, "passive", false, "wait for the peer to connect (default false)")
	fs.DurationVar(&f.hold, "hold", 0, "end the session after this silence, 3s to 65535s (default 9s)")
	fs.DurationVar(&f.keepalive, "keepalive", 0, "break the silence this often (default: a third of --hold)")
	fs.Var(&f.source, "source", "this node's end of the session, with --node only; none: the kernel's choice (default none)")
	f.family = newChoice("", string(fsm.FamilyIPv4), string(fsm.FamilyIPv6), string(fsm.FamilyBoth)).
		addTo(cmd, "family", "", "which routes are exchanged, whatever the family of ADDRESS (default both)")
	fs.BoolVar(&f.noGraceful, "no-graceful-restart", false, "let the peer drop the routes as soon as the session ends (default false)")
	fs.Uint32Var(&f.maxPrefixes, "max-prefixes", 0, "end the session when more than this `number` of prefixes are received (default 10000)")
	fs.BoolVar(&f.bfd, "bfd", false, "watch the peer by BFD; the router has to be told to do it, too (default false)")
	fs.DurationVar(&f.bfdInterval, "bfd-interval", 0, "between two BFD packets, 10ms to 10s (default 50ms)")
	fs.Uint8Var(&f.bfdMultiplier, "bfd-multiplier", 0, "this `number` of BFD packets missing in a row is down, 2 to 255 (default 3)")
}

// check refuses what says two things at once, and a zero where it would be read as
// "the default".
func (f *peerFlags) check(cmd *cobra.Command) error {
	changed := cmd.Flags().Changed
	if changed("password") && changed("password-file") {
		return usagef("--password and --password-file: give one of them")
	}
	for _, z := range []struct {
		flag string
		zero bool
		want string
	}{
		{"as", f.as == 0, "1 to 4294967294"},
		{"port", f.port == 0, "1 to 65535"},
		{"hold", f.hold == 0, "3s to 65535s"},
		{"keepalive", f.keepalive == 0, "1s to a third of --hold"},
		{"max-prefixes", f.maxPrefixes == 0, "1 or more"},
		{"bfd-interval", f.bfdInterval == 0, "10ms to 10s; --bfd=false switches it off"},
		{"bfd-multiplier", f.bfdMultiplier == 0, "2 to 255"},
	} {
		if changed(z.flag) && z.zero {
			return usagef("--%s 0: want %s", z.flag, z.want)
		}
	}
	return nil
}

// merge puts what was given on the command line into p.
func (f *peerFlags) merge(cmd *cobra.Command, p *fsm.BGPPeer) error {
	changed := cmd.Flags().Changed
	put(changed("as"), &p.AS, f.as)
	put(changed("local-as"), &p.LocalAS, f.localAS)
	put(changed("port"), &p.Port, f.port)
	put(changed("multihop"), &p.Multihop, f.multihop)
	put(changed("ttl-security"), &p.TTLSecurity, f.ttlSecurity)
	put(changed("passive"), &p.Passive, f.passive)
	if changed("hold") {
		p.Hold, p.Keepalive = fsm.Duration(f.hold), 0 // a third of it, unless more is said
	}
	put(changed("keepalive"), &p.Keepalive, fsm.Duration(f.keepalive))
	put(changed("source"), &p.Source, f.source.addr)
	set(&p.Family, f.family)
	put(changed("no-graceful-restart"), &p.NoGracefulRestart, f.noGraceful)
	put(changed("max-prefixes"), &p.MaxPrefixes, f.maxPrefixes)
	put(changed("bfd"), &p.BFD, f.bfd)
	if !p.BFD {
		p.BFDInterval, p.BFDMultiplier = 0, 0 // they went with it
	}
	put(changed("bfd-interval"), &p.BFDInterval, fsm.Duration(f.bfdInterval))
	put(changed("bfd-multiplier"), &p.BFDMultiplier, f.bfdMultiplier)
	return f.mergePassword(cmd, p)
}

func (f *peerFlags) mergePassword(cmd *cobra.Command, p *fsm.BGPPeer) error {
	put(cmd.Flags().Changed("password"), &p.Password, f.password)
	if !cmd.Flags().Changed("password-file") {
		return nil
	}
	content, err := os.ReadFile(f.passwordFile)
	if err != nil {
		return fmt.Errorf("read --password-file: %w", err)
	}
	p.Password = string(bytes.TrimRight(content, "\r\n"))
	if p.Password == "" {
		return fmt.Errorf("read --password-file %s: there is no password in it: --password \"\" takes one off", f.passwordFile)
	}
	return nil
}

// put sets a setting that was given.
func put[T any](given bool, setting *T, value T) {
	if given {
		*setting = value
	}
}
