package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"pontoon/fsm"
	"pontoon/web"
)

// completeTimeout bounds what a shell waits for when somebody presses Tab.
const completeTimeout = 2 * time.Second

// names lists what an argument may be; args are the arguments before it.
type names func(ctx context.Context, c *api, args []string) ([]string, error)

// completing lets the shell complete the arguments of a command, each from its
// own list. Without a daemon there is nothing to offer, and nothing is said: a
// shell in the middle of a line is no place for errors.
func (a *app) completing(cmd *cobra.Command, lists ...names) *cobra.Command {
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) >= len(lists) {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return a.offer(cmd, lists[len(args)], args)
	}
	return cmd
}

// completingFlag does the same for the value of a flag.
func (a *app) completingFlag(cmd *cobra.Command, flag string, list names) *cobra.Command {
	// The only error is a second registration, which no caller makes.
	_ = cmd.RegisterFlagCompletionFunc(flag, func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		return a.offer(cmd, list, args)
	})
	return cmd
}

func (a *app) offer(cmd *cobra.Command, list names, args []string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(cmd.Context(), completeTimeout)
	defer cancel()
	c, err := a.api()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words, err := list(ctx, c, args)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return words, cobra.ShellCompDirectiveNoFileComp
}

// namesAt lists the names of what a path of the API answers with.
func namesAt[T any](path string, name func(T) any) names {
	return func(ctx context.Context, c *api, _ []string) ([]string, error) {
		answer, err := c.get(ctx, path)
		if err != nil {
			return nil, err
		}
		var list []T
		if err := decode(answer, &list); err != nil {
			return nil, err
		}
		words := make([]string, 0, len(list))
		for _, v := range list {
			words = append(words, fmt.Sprint(name(v)))
		}
		return words, nil
	}
}

func nodeNames() names {
	return namesAt("/v1/nodes", func(n web.NodeStatus) any { return n.Name })
}

func instanceNames() names {
	return namesAt("/v1/instances", func(i web.InstanceStatus) any { return i.Name })
}

func vipNames() names {
	return namesAt("/v1/vips", func(v fsm.VIP) any { return v.Address })
}

func serviceNames() names {
	return namesAt("/v1/services", func(s web.ServiceStatus) any { return s.Name })
}

func tokenNames() names {
	return namesAt("/v1/tokens", func(t web.TokenInfo) any { return t.ID })
}

// endpointNames lists the endpoints of the service named before.
func endpointNames(ctx context.Context, c *api, args []string) ([]string, error) {
	answer, err := c.get(ctx, servicePath(args[0]))
	if err != nil {
		return nil, err
	}
	var s web.ServiceStatus
	if err := decode(answer, &s); err != nil {
		return nil, err
	}
	var words []string
	for _, e := range s.Endpoints {
		words = append(words, e.Address.String())
	}
	return words, nil
}
