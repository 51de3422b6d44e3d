package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"pontoon/web"
)

func newInitCmd(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Make this node the first of a new cluster",
		Long: `Make this node the first of a new cluster: it creates the cluster's CA and the
first entry of the replicated log. The daemon must be running and in no cluster.

The last line printed is the command to type on the next node. Its token is for
one node of role lb and expires after one hour; more are made by
"pontoon token create".`,
		Example: "  pontoon init",
		Args:    wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			answer, err := c.call(cmd.Context(), http.MethodPost, "/v1/cluster/init", nil, clusterTimeout)
			if err != nil {
				return err
			}
			var result web.InitResult
			if err := decode(answer, &result); err != nil {
				return err
			}
			a.printf("Cluster %s is made; this node is its first voter.\n", result.ClusterID)
			a.printf("One node keeps nothing alive: add two more, or one and a witness.\n")
			a.printf("The token below lets one node of role lb join, once, within an hour.\n")
			a.printf("For others: pontoon token create [--role lb|witness] [--ttl 1h]\n\n")
			a.printf("%s\n", result.JoinCommand)
			return nil
		},
	}
	return overSocketOnly(cmd)
}

func newJoinCmd(a *app) *cobra.Command {
	var token string
	var noWait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "join ADDRESS:PORT --token TOKEN",
		Short: "Make this node a member of a cluster",
		Long: `Make this node a member of the cluster that ADDRESS:PORT, the cluster address of
any member, belongs to. The daemon must be running and in no cluster; its role
(lb or witness) is the one of its node file and must be the token's.

A new member first copies the state and gets no vote; the command waits until it
has caught up and votes.`,
		Example: "  pontoon join 192.168.80.11:7400 --token TOKEN",
		Args:    wantArgs("ADDRESS:PORT"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := netip.ParseAddrPort(args[0]); err != nil {
				return usagef("%q: want the ip:port of a member, like 192.168.80.11:7400", args[0])
			}
			if err := requireFlags(cmd, "token"); err != nil {
				return err
			}
			c, err := a.api()
			if err != nil {
				return err
			}
			return a.join(cmd.Context(), c, web.JoinRequest{Address: args[0], Token: token}, noWait, timeout)
		},
	}
	cmd.Flags().StringVar(&token, "token", "", "join `token` from \"pontoon token create\" or \"pontoon init\"")
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "return once a member, without waiting for the vote")
	cmd.Flags().DurationVar(&timeout, "timeout", 2*time.Minute, "how long to wait for the vote")
	return overSocketOnly(cmd)
}

func (a *app) join(ctx context.Context, c *api, req web.JoinRequest, noWait bool, timeout time.Duration) error {
	a.printf("Joining the cluster at %s ...\n", req.Address)
	answer, err := c.call(ctx, http.MethodPost, "/v1/cluster/join", req, clusterTimeout)
	if err != nil {
		return err
	}
	var result web.JoinResult
	if err := decode(answer, &result); err != nil {
		return err
	}
	a.printf("%s is a member of cluster %s with role %s.\n", result.Name, result.ClusterID, result.Role)
	if noWait {
		return nil
	}
	a.printf("Waiting until it has caught up and votes ...\n")
	if err := waitForVote(ctx, c, result, timeout); err != nil {
		return err
	}
	a.printf("%s votes.\n", result.Name)
	return nil
}

// waitForVote returns once the joined node is a voter, by its own status.
func waitForVote(ctx context.Context, c *api, joined web.JoinResult, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("%s is a member and has no vote after %s: it goes on catching up; look at `pontoon status`", joined.Name, timeout))
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		answer, err := c.get(ctx, "/v1/status")
		if err == nil {
			var st web.Status
			if err := decode(answer, &st); err != nil {
				return err
			}
			if votes(st, joined) {
				return nil
			}
		} else if !transient(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func votes(st web.Status, joined web.JoinResult) bool {
	for _, n := range st.Nodes {
		if n.Name == joined.Name {
			return n.Raft == web.RaftVoter || n.Raft == web.RaftLeader
		}
	}
	return false
}

// transient tells that a node which has just joined may answer otherwise in a
// moment: it knows of no cluster or leader before the first entries arrive.
func transient(err error) bool {
	return errors.Is(err, web.ErrNoCluster) || errors.Is(err, web.ErrNoLeader)
}

func newLeaveCmd(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "leave",
		Short: "Take this node out of its cluster",
		Long: `Take this node out of its cluster: it hands its instances over, leaves the Raft
group and forgets the cluster. The daemon goes on running and may join again.

The last voter refuses, for the cluster and its configuration end with it, unless
--force is given.`,
		Example: "  pontoon leave",
		Args:    wantArgs(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.api()
			if err != nil {
				return err
			}
			if err := a.leave(cmd.Context(), c, force); err != nil {
				return err
			}
			a.printf("This node is in no cluster now.\n")
			return nil
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "leave also as the last voter: the cluster ends")
	return overSocketOnly(cmd)
}

// leave asks the daemon to leave and prints each step as it is taken.
func (a *app) leave(ctx context.Context, c *api, force bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, clusterTimeout,
		fmt.Errorf("leaving takes longer than %s: it goes on, look at `pontoon status`", clusterTimeout))
	defer cancel()
	_, err := c.steps(ctx, "/v1/cluster/leave", web.LeaveRequest{Force: force}, func(text string) { a.printf("%s\n", text) })
	return err
}

// steps makes a call that is answered step by step: it hands on each step's
// sentence and returns the result at the end.
func (c *api) steps(ctx context.Context, path string, body any, tell func(text string)) (result []byte, err error) {
	err = c.stream(ctx, http.MethodPost, path, body, func(event string, data []byte) error {
		switch event {
		case "progress":
			var step struct {
				Text string `json:"text"`
			}
			if err := decode(data, &step); err != nil {
				return err
			}
			tell(step.Text)
		case "problem":
			var p web.Problem
			if err := decode(data, &p); err != nil {
				return err
			}
			return p.Err()
		case "done":
			result = bytes.Clone(data)
		}
		return nil
	})
	if result != nil && errors.Is(err, errStreamEnded) {
		return result, nil
	}
	return nil, err
}

// overSocketOnly is for commands only the machine's own daemon takes.
func overSocketOnly(cmd *cobra.Command) *cobra.Command {
	return hideInherited(cmd, "server", "token", "ca")
}
