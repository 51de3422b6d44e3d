package web

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"pontoon/fsm"
)

// Problem is the body of every answer that is an error (RFC 9457, problem
// details). Detail is the one line a person needs; Code is for programs.
type Problem struct {
	Title  string         `json:"title" doc:"The meaning of the HTTP status." example:"Conflict"`
	Status int            `json:"status" doc:"The HTTP status."`
	Detail string         `json:"detail" doc:"What is wrong and how to mend it, in one line."`
	Code   string         `json:"code" doc:"The kind of error; does not change between versions." example:"in_use"`
	Errors []ProblemField `json:"errors,omitempty" doc:"Where the request is wrong, if it is."`
}

// ProblemField is one thing wrong with a request.
type ProblemField struct {
	Location string `json:"location" example:"body.endpoints[0].weight"`
	Message  string `json:"message"`
}

// codeInvalid is the code of a request whose content is refused, by whatever
// layer found it first.
const codeInvalid = "invalid"

// refusals maps the sentinels of fsm and of Backend to HTTP. The first that
// matches wins.
var refusals = []struct {
	err    error
	status int
	code   string
}{
	{ErrNoCluster, http.StatusConflict, "no_cluster"},
	{fsm.ErrNotInitialised, http.StatusConflict, "no_cluster"},
	{ErrNoLeader, http.StatusServiceUnavailable, "no_leader"},
	{ErrTraceBusy, http.StatusConflict, "trace_busy"},
	{fsm.ErrChanged, http.StatusPreconditionFailed, "changed"},
	{fsm.ErrInvalid, http.StatusUnprocessableEntity, codeInvalid}, // first of those one error may match together
	{fsm.ErrNotFound, http.StatusNotFound, "not_found"},
	{fsm.ErrExists, http.StatusConflict, "exists"},
	{fsm.ErrInUse, http.StatusConflict, "in_use"},
	{fsm.ErrNotEligible, http.StatusConflict, "not_eligible"},
	{fsm.ErrNodeDown, http.StatusConflict, "node_down"},
	{fsm.ErrStale, http.StatusConflict, "stale"},
	{fsm.ErrAlreadyInitialised, http.StatusConflict, "already_initialised"},
	{fsm.ErrTokenInvalid, http.StatusForbidden, "token_invalid"},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "timeout"},
	{context.Canceled, http.StatusServiceUnavailable, "canceled"},
}

// NewProblem turns an error into what the API answers for it. An error that is
// none of the known kinds is a fault of ours: status 500.
func NewProblem(err error) *Problem {
	var p *Problem
	if errors.As(err, &p) {
		return p
	}
	for _, r := range refusals {
		if errors.Is(err, r.err) {
			return &Problem{
				Title: http.StatusText(r.status), Status: r.status, Detail: oneLine(err.Error()), Code: r.code,
				Errors: invalidFields(err),
			}
		}
	}
	return statusProblem(http.StatusInternalServerError, oneLine(err.Error()))
}

// invalidFields lists what fsm's validation found, where it did.
func invalidFields(err error) []ProblemField {
	var v *fsm.ValidationError
	if !errors.As(err, &v) {
		return nil
	}
	fields := make([]ProblemField, len(v.Problems))
	for i, p := range v.Problems {
		fields[i] = ProblemField{Location: "body." + p.Field, Message: p.String()}
	}
	return fields
}

// Err returns the sentinel a problem stands for, wrapped with its detail, so
// that a client can use errors.Is; an unknown code gives the problem itself.
func (p *Problem) Err() error {
	for _, r := range refusals {
		if r.code == p.Code {
			return &remoteError{problem: p, sentinel: r.err}
		}
	}
	return p
}

// remoteError is a problem that came from another process.
type remoteError struct {
	problem  *Problem
	sentinel error
}

func (e *remoteError) Error() string { return e.problem.Detail }

func (e *remoteError) Unwrap() []error { return []error{e.problem, e.sentinel} }

// refusal is an error whose text stands alone and which matches its sentinel
// without repeating the sentinel's words.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }

func (r *refusal) Unwrap() error { return r.kind }

func refusef(kind error, format string, args ...any) error {
	return &refusal{kind: kind, text: fmt.Sprintf(format, args...)}
}

// statusProblem is a problem without a sentinel.
func statusProblem(status int, detail string) *Problem {
	title := http.StatusText(status)
	code := strings.ReplaceAll(strings.ToLower(title), " ", "_")
	if status == http.StatusInternalServerError {
		code = "internal"
	}
	return &Problem{Title: title, Status: status, Detail: detail, Code: code}
}

var (
	_ huma.StatusError  = (*Problem)(nil)
	_ huma.HeadersError = (*Problem)(nil)
)

// Error returns the detail.
func (p *Problem) Error() string { return p.Detail }

// GetStatus returns the HTTP status.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is that of RFC 9457.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders asks the client to come again where that helps.
func (p *Problem) GetHeaders() http.Header {
	h := http.Header{}
	if p.Status == http.StatusServiceUnavailable {
		h.Set("Retry-After", "1")
	}
	return h
}

// write answers a request with the problem, outside the API framework.
func (p *Problem) write(w http.ResponseWriter) {
	h := w.Header()
	for k, v := range p.GetHeaders() {
		h[k] = v
	}
	h.Set("Content-Type", p.ContentType(""))
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(p.Status)
	_ = json.NewEncoder(w).Encode(p) // the client went away: nobody is left to tell
}

// asProblem is a huma transformer: what the framework itself found wrong with a
// request leaves in our form, with every complaint in the one line.
func asProblem(_ huma.Context, _ string, v any) (any, error) {
	m, ok := v.(*huma.ErrorModel)
	if !ok {
		return v, nil
	}
	p := statusProblem(m.Status, m.Detail)
	lines := make([]string, 0, len(m.Errors))
	for _, d := range m.Errors {
		if d == nil {
			continue
		}
		msg := d.Message
		if d.Location == "body" && m.Status == http.StatusBadRequest {
			msg = "not JSON: " + msg
		}
		p.Errors = append(p.Errors, ProblemField{Location: d.Location, Message: msg})
		lines = append(lines, fmt.Sprintf("%s: %s", d.Location, msg))
	}
	if len(lines) > 0 {
		p.Detail = oneLine(strings.Join(lines, "; "))
	}
	if p.Status == http.StatusUnprocessableEntity {
		p.Code = codeInvalid
	}
	return p, nil
}

// oneLine keeps the promise that a detail is one line.
func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
