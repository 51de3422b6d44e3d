package main

import (
	"net/http"
	"net/url"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

func newTokenCmd(a *app) *cobra.Command {
	cmd := group("token", "Make, list and revoke join tokens",
		`A join token lets one node of one role become a member, once, until it expires.
It names the cluster's CA by its hash, so that the joining node trusts nobody else.`)
	cmd.AddCommand(newTokenCreateCmd(a), newTokenListCmd(a), newTokenRevokeCmd(a))
	return cmd
}

func newTokenCreateCmd(a *app) *cobra.Command {
	var ttl time.Duration
	cmd := &cobra.Command{
		Use:     "create",
		Short:   "Make a join token and print it alone",
		Long:    "Make a join token and print it, alone, on standard output. It is shown only this once.",
		Example: "  pontoon join 192.168.80.11:7400 --token \"$(ssh lb1 pontoon token create)\"",
		Args:    wantArgs(),
	}
	role := newChoice(string(fsm.RoleLB), string(fsm.RoleLB), string(fsm.RoleWitness)).
		addTo(cmd, "role", "", "what the joining node will be: lb, or witness (votes only)")
	cmd.Flags().DurationVar(&ttl, "ttl", time.Hour, "how long the token can be used, like 30m or 24h, at most 720h")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if ttl <= 0 {
			return usagef("--ttl %s: want more than nothing", ttl)
		}
		request := web.TokenRequest{Role: fsm.Role(role.value), TTL: fsm.Duration(ttl)}
		created, err := ask[web.TokenCreated](a, cmd, http.MethodPost, "/v1/tokens", request)
		if err != nil {
			return err
		}
		a.printf("%s\n", created.Token)
		return nil
	}
	return cmd
}

func newTokenListCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the join tokens that are not used up",
		Long:    "List the join tokens that are not used up. Their secrets are kept nowhere.",
		Example: "  pontoon token list",
		Args:    wantArgs(),
	}
	return shows(a, cmd, func([]string) string { return "/v1/tokens" }, drawTokens)
}

func drawTokens(t *table, tokens []web.TokenInfo) {
	t.head("ID", "ROLE", "EXPIRES", "USABLE")
	for _, tk := range tokens {
		usable := cell{"yes", good}
		if tk.Expired {
			usable = cell{"expired", warn}
		}
		t.row(tk.ID, tk.Role, tk.Expires.Local().Format(time.DateTime), usable)
	}
}

func newTokenRevokeCmd(a *app) *cobra.Command {
	return a.completing(a.changes(&cobra.Command{
		Use:     "revoke ID",
		Short:   "Make a join token useless",
		Long:    "Make a join token useless. A node that has joined with it stays a member.",
		Example: "  pontoon token revoke 3f9c2a",
		Args:    wantArgs("ID"),
	}, http.MethodDelete, func(args []string) string { return "/v1/tokens/" + url.PathEscape(args[0]) },
		func(args []string) string { return "token " + args[0] + " is revoked" }), tokenNames())
}
