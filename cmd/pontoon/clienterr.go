package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"syscall"

	"pontoon/web"
)

// refusal turns an answer with an error status into an error with the daemon's
// one line. errors.Is finds the sentinel the daemon refused with.
func (c *api) refusal(resp *http.Response) error {
	if resp.StatusCode == http.StatusUnauthorized {
		if c.token == "" {
			return fmt.Errorf("%s wants the API token: set PONTOON_API_TOKEN to what api.token in that node's data directory says", c.where)
		}
		return fmt.Errorf("%s does not accept this API token: set PONTOON_API_TOKEN to what api.token in that node's data directory says", c.where)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return c.explain(resp.Request.Context(), err)
	}
	var p web.Problem
	if json.Unmarshal(body, &p) != nil || p.Detail == "" {
		return fmt.Errorf("%s answered %s: is it a Pontoon daemon of this version?", c.where, resp.Status)
	}
	return p.Err()
}

// explain says what a failed call means and how to mend it.
func (c *api) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err // the method and URL say nothing to an operator
	}
	if c.unix {
		return c.explainSocket(err)
	}
	var unknown x509.UnknownAuthorityError
	if errors.As(err, &unknown) {
		return fmt.Errorf("%s: its certificate is signed by a CA this machine does not know: name ca.crt of a node's data directory with --ca: %w", c.where, err)
	}
	return fmt.Errorf("no answer from %s: %w", c.where, err)
}

func (c *api) explainSocket(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to use %s: run as root, or name another socket with --socket", c.where)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon answers on %s: start it with `pontoon run` or name its socket with --socket", c.where)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("the daemon on %s went away before it answered: look at its log", c.where)
	}
	return fmt.Errorf("talk to the daemon on %s: %w", c.where, err)
}
