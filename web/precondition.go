package web

import (
	"context"
	"strings"

	"pontoon/fsm"
)

// Precondition is what a client may say of the object that it replaces (RFC 9110, 13.1). Two who read an object and write it
// back, each with a change of its own, would otherwise take back each other's.
type Precondition struct {
	IfMatch     string `header:"If-Match" doc:"The ETag that GET has answered: refused with 412 if the object has changed since."`
	IfNoneMatch string `header:"If-None-Match" doc:"*: refused with 412 if the object exists."`
}

// fingerprint is the one that the object has to have; "" is any.
func (p Precondition) fingerprint() (string, error) {
	switch {
	case p.IfMatch != "" && p.IfNoneMatch != "":
		return "", refusef(fsm.ErrInvalid, "If-Match and If-None-Match: give one of them")
	case p.IfNoneMatch == "*":
		return fsm.Absent, nil
	case p.IfNoneMatch != "":
		return "", refusef(fsm.ErrInvalid, "If-None-Match %q: want *", p.IfNoneMatch)
	case p.IfMatch == "":
		return "", nil
	}
	tag, opened := strings.CutPrefix(p.IfMatch, `"`)
	tag, closed := strings.CutSuffix(tag, `"`)
	if !opened || !closed || tag == "" || strings.ContainsAny(tag, `", `) {
		return "", refusef(fsm.ErrInvalid, "If-Match %s: want one ETag, as GET has answered it", p.IfMatch)
	}
	return tag, nil
}

// tagged is an answer with the ETag of what it shows.
type tagged[T any] struct {
	ETag string `header:"ETag" doc:"Of the content as it is configured, for If-Match."`
	Body T
}

// etag is that of what a command would replace at state, which must not be newer than what is shown: an ETag that is too
// old has a write refused that could have been done, one that is too new lets another's change be lost.
func etag(state *fsm.State, cmd fsm.Command) string {
	tag, _ := state.Fingerprint(cmd)
	return `"` + tag + `"`
}

// proposeIf is propose, under a precondition.
func (s *server) proposeIf(ctx context.Context, cmd fsm.Command, p Precondition) (*written, error) {
	want, err := p.fingerprint()
	if err != nil {
		return nil, err
	}
	if want == "" {
		return s.propose(ctx, cmd)
	}
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	index, err := s.Backend.ProposeIf(ctx, cmd, want)
	if err != nil {
		return nil, err
	}
	return &written{Body: WriteResult{Index: index}}, nil
}
