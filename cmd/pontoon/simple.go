package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"pontoon/web"
)

// shows completes a command that prints what one path of the API answers.
func shows[T any](a *app, cmd *cobra.Command, path func(args []string) string, draw func(*table, T)) *cobra.Command {
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		answer, err := c.get(cmd.Context(), path(args))
		if err != nil {
			return err
		}
		return show(a, format.value, answer, draw)
	}
	return cmd
}

// changes completes a command that makes one call without a body and then says
// what is so now.
func (a *app) changes(cmd *cobra.Command, method string, path, done func(args []string) string) *cobra.Command {
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.api()
		if err != nil {
			return err
		}
		answer, err := c.call(cmd.Context(), method, path(args), nil, callTimeout)
		if err != nil {
			return err
		}
		return a.committed(answer, done(args))
	}
	return cmd
}

// committed says what a write changed, and the Raft index it is committed at.
func (a *app) committed(answer []byte, what string) error {
	var result web.WriteResult
	if err := decode(answer, &result); err != nil {
		return err
	}
	a.printf("%s (index %d)\n", what, result.Index)
	return nil
}

// put sends body to path and says what is so now.
func (a *app) put(cmd *cobra.Command, path string, body any, done string) error {
	c, err := a.api()
	if err != nil {
		return err
	}
	answer, err := c.call(cmd.Context(), http.MethodPut, path, body, callTimeout)
	if err != nil {
		return err
	}
	return a.committed(answer, done)
}
