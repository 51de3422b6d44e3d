package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// contractCommands are the commands users and scripts rely on, with the flags
// they have of their own. A change here is a change of the contract.
var contractCommands = map[string][]string{
	"run": {
		"address", "agent-grace", "api-listen", "bfd-interval", "bfd-multiplier", "config", "data-dir", "discard-flows",
		"echo-interval", "echo-misses", "gossip-port", "hook", "interface",
		"lease", "log-format", "log-level", "max-flows", "name", "nice", "pin-dir", "role", "run-dir",
	},
	"demo":               {"bgp", "clean", "connections", "failures", "keep", "nodes", "output"},
	"init":               {},
	"join":               {"no-wait", "timeout", "token"},
	"leave":              {"force"},
	"recover":            {"i-have-fenced", "output"},
	"token create":       {"role", "ttl"},
	"token list":         {"output"},
	"token revoke":       {},
	"status":             {"output", "watch"},
	"events":             {"follow", "output", "since"},
	"node list":          {"output"},
	"node show":          {"output"},
	"node drain":         {"force", "timeout"},
	"node resume":        {},
	"node remove":        {"force"},
	"instance list":      {"output"},
	"instance create":    {"announce-policy", "as-prepend", "community", "kind", "next-hop", "priority"},
	"instance update":    {"announce-policy", "as-prepend", "community", "kind", "next-hop", "no-community", "no-next-hop", "priority"},
	"instance move":      {"to"},
	"instance delete":    {},
	"instance rebalance": {"dry-run", "output"},
	"pool list":          {"output"},
	"pool show":          {"output"},
	"pool create":        {"all-addresses", "announce", "cidr", "default", "instance", "interface", "range"},
	"pool update":        {"add-cidr", "add-range", "all-addresses", "announce", "cidr", "default", "instance", "interface", "range", "remove-cidr", "remove-range"},
	"pool reserve":       {"service"},
	"pool unreserve":     {},
	"pool delete":        {},
	"vip list":           {"output"},
	"vip create":         {"announce", "instance", "interface", "kind", "on-no-endpoint", "on-quorum-loss"},
	"vip delete":         {},
	"service list":       {"output"},
	"service show":       {"output"},
	"service create": {
		"affinity", "affinity-timeout", "algorithm", "all-down", "drain-timeout", "endpoint", "idle-reset", "idle-timeout", "instance", "mode",
		"new-flow-rate", "on-down", "on-full", "on-remove", "port", "probe", "probe-body", "probe-expect", "probe-fall", "probe-grpc-service", "probe-host", "probe-interval", "probe-method", "probe-path", "probe-port",
		"probe-rise", "probe-send", "probe-server-name", "probe-source", "probe-through-vip", "probe-timeout", "probe-tls", "probe-tls-verify", "protocol",
		"replicate", "replicate-min-age", "share", "slow-start", "tunnel", "vip",
	},
	"service update": {
		"add-endpoint", "affinity", "affinity-timeout", "algorithm", "all-down", "drain-timeout", "endpoint", "idle-reset", "idle-timeout", "instance", "mode",
		"new-flow-rate", "on-down", "on-full", "on-remove", "port", "probe", "probe-body", "probe-expect", "probe-fall", "probe-grpc-service", "probe-host", "probe-interval", "probe-method", "probe-path", "probe-port",
		"probe-rise", "probe-send", "probe-server-name", "probe-source", "probe-through-vip", "probe-timeout", "probe-tls", "probe-tls-verify", "protocol",
		"remove-endpoint", "replicate", "replicate-min-age", "share", "slow-start", "tunnel", "vip",
	},
	"service delete":     {},
	"endpoint list":      {"output"},
	"endpoint drain":     {"timeout"},
	"endpoint resume":    {},
	"conntrack list":     {"client", "limit", "output", "service"},
	"conntrack count":    {"output"},
	"conntrack flush":    {"service"},
	"replication":        {"output", "watch"},
	"replication digest": {"output"},
	"bfd list":           {"output"},
	"bgp show":           {"output"},
	"bgp set":            {"as", "dry-run", "import", "listen-port", "max-import", "no-import", "node", "restart-time", "router-id"},
	"bgp peer list":      {"output"},
	"bgp peer add": {
		"as", "bfd", "bfd-interval", "bfd-multiplier", "dry-run", "family", "hold", "keepalive", "local-as", "max-prefixes", "multihop",
		"no-graceful-restart", "node", "passive", "password", "password-file", "port", "source", "ttl-security",
	},
	"bgp peer remove":       {"dry-run", "node"},
	"bgp routes":            {"advertised", "output", "received"},
	"trace":                 {"bytes", "client", "count", "output", "service", "timeout", "write"},
	"completion bash":       {"no-descriptions"},
	"completion zsh":        {"no-descriptions"},
	"completion fish":       {"no-descriptions"},
	"completion powershell": {"no-descriptions"},
	"help":                  {},
}

func TestEveryContractCommandIsThereWithItsFlags(t *testing.T) {
	a, _, _ := testApp(nil)
	found := map[string][]string{}
	walk(newRoot(a), func(cmd *cobra.Command) {
		name := strings.TrimPrefix(cmd.CommandPath(), "pontoon ")
		found[name] = ownFlags(cmd)
	})
	for name, flags := range contractCommands {
		have, ok := found[name]
		if !ok {
			t.Errorf("pontoon %s is gone", name)
			continue
		}
		if !slices.Equal(have, flags) {
			t.Errorf("pontoon %s has flags %q, want %q", name, have, flags)
		}
		delete(found, name)
	}
	for name := range found {
		t.Errorf("pontoon %s stands in no contract", name)
	}
}

// walk visits the commands that do something, not the groups. One that shows
// something may have others below it.
func walk(cmd *cobra.Command, visit func(*cobra.Command)) {
	if !cmd.HasSubCommands() || cmd.Flags().Lookup("output") != nil {
		visit(cmd)
	}
	for _, sub := range cmd.Commands() {
		walk(sub, visit)
	}
}

func ownFlags(cmd *cobra.Command) []string {
	names := []string{}
	for _, line := range strings.Split(cmd.LocalNonPersistentFlags().FlagUsages(), "\n") {
		_, rest, ok := strings.Cut(line, "--")
		if name := strings.FieldsFunc(rest, func(r rune) bool { return r == ' ' }); ok && name[0] != "help" {
			names = append(names, name[0])
		}
	}
	return names
}

func TestEveryCommandExplainsItselfWithAnExample(t *testing.T) {
	a, out, _ := testApp(nil)
	walk(newRoot(a), func(cmd *cobra.Command) {
		if cmd.Parent().Name() == "completion" || cmd.Name() == "help" {
			return
		}
		if cmd.Short == "" || cmd.Long == "" {
			t.Errorf("%s does not say what it does", cmd.CommandPath())
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s has no example of itself", cmd.CommandPath())
		}
		out.Reset()
		path := strings.Fields(cmd.CommandPath())[1:]
		if err := execute(t.Context(), a, append(path, "--help")...); err != nil {
			t.Errorf("%s --help: %v", cmd.CommandPath(), err)
		}
		checkHelp(t, cmd, out)
	})
}

func checkHelp(t *testing.T, cmd *cobra.Command, out *bytes.Buffer) {
	t.Helper()
	help := out.String()
	for _, want := range []string{"Usage:\n", "Examples:\n"} {
		if !strings.Contains(help, want) {
			t.Errorf("%s --help has no %q", cmd.CommandPath(), want)
		}
	}
	offline := cmd.Name() == "run" || cmd.Name() == "demo"
	if strings.Contains(help, "--socket") == offline {
		t.Errorf("%s --help: offers --socket: %v", cmd.CommandPath(), !offline)
	}
}
