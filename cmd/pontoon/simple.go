package main

import (
	"net/http"

	"github.com/spf13/cobra"

	"pontoon/web"
)

// call makes one call of the daemon the flags name and returns its answer.
func (a *app) call(cmd *cobra.Command, method, path string, body any) ([]byte, error) {
	return a.callIf(cmd, method, path, body, nil)
}

// callIf is call under a condition, which is headers.
func (a *app) callIf(cmd *cobra.Command, method, path string, body any, condition http.Header) ([]byte, error) {
	c, err := a.api()
	if err != nil {
		return nil, err
	}
	answer, _, err := c.exchange(cmd.Context(), method, path, body, callTimeout, condition)
	return answer, err
}

// ask makes one call of the daemon the flags name and decodes its answer.
func ask[T any](a *app, cmd *cobra.Command, method, path string, body any) (T, error) {
	return askIf[T](a, cmd, method, path, body, nil)
}

// askIf is ask under a condition, which is headers.
func askIf[T any](a *app, cmd *cobra.Command, method, path string, body any, condition http.Header) (T, error) {
	var v T
	answer, err := a.callIf(cmd, method, path, body, condition)
	if err != nil {
		return v, err
	}
	err = decode(answer, &v)
	return v, err
}

// shows completes a command that prints what one path of the API answers.
func shows[T any](a *app, cmd *cobra.Command, path func(args []string) string, draw func(*table, T)) *cobra.Command {
	format := addOutput(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		answer, err := a.call(cmd, http.MethodGet, path(args), nil)
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
		return a.write(cmd, method, path(args), nil, done(args))
	}
	return cmd
}

// write makes one call that changes the replicated state and says what is so now.
func (a *app) write(cmd *cobra.Command, method, path string, body any, done string) error {
	result, err := ask[web.WriteResult](a, cmd, method, path, body)
	if err != nil {
		return err
	}
	a.committed(result, done)
	return nil
}

// committed says what a write changed, and the Raft index it is committed at.
func (a *app) committed(result web.WriteResult, what string) {
	a.printf("%s (index %d)\n", what, result.Index)
}
