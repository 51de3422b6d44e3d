package web

import (
	"context"
	"net/http"
	"reflect"
	"strings"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// stepwiseInput is the request of an operation of several steps.
type stepwiseInput[B any] struct {
	Accept string `header:"Accept" doc:"text/event-stream for progress."`
	Body   B
}

// stepwise registers an operation of several steps, which answers at the end or
// tells each step as it is taken. The caller going away does not stop it: half
// done is worse than either end. steps says where in the result the steps stand.
func stepwise[B, R any](s *server, o op, do func(ctx context.Context, in B, progress func(string)) (R, error), steps func(*R) *[]string) {
	result := reflect.TypeFor[R]()
	o.text += " With Accept: text/event-stream, messages `progress` ({\"text\"}) while it goes, then `done` " +
		"(a " + result.Name() + ") or `problem` (a Problem)."
	h := s.operation(o)
	h.Responses = streamResponses("Done.")
	h.Responses["200"].Content["application/json"] = &huma.MediaType{Schema: s.schemas.Schema(result, true, result.Name())}
	work := func(ctx context.Context, in B, each func(string)) (R, error) {
		taken := []string{}
		res, err := do(context.WithoutCancel(ctx), in, func(step string) {
			taken = append(taken, step)
			each(step)
		})
		*steps(&res) = taken
		return res, err
	}
	huma.Register(s.api, h, func(ctx context.Context, in *stepwiseInput[B]) (*huma.StreamResponse, error) {
		if strings.Contains(in.Accept, "text/event-stream") {
			return &huma.StreamResponse{Body: func(hc huma.Context) {
				r, w := humago.Unwrap(hc)
				streamSteps(s, r, w, func(each func(string)) (any, error) { return work(r.Context(), in.Body, each) })
			}}, nil
		}
		res, err := work(ctx, in.Body, func(string) {})
		if err != nil {
			return nil, NewProblem(err)
		}
		return &huma.StreamResponse{Body: func(hc huma.Context) {
			_, w := humago.Unwrap(hc)
			writeJSON(w, res)
		}}, nil
	})
}

func streamSteps(s *server, r *http.Request, w http.ResponseWriter, work func(each func(string)) (any, error)) {
	stream := s.streams.begin(w, r)
	if stream == nil {
		return
	}
	defer stream.end()
	res, err := work(func(step string) {
		_ = stream.sendJSON("progress", "", map[string]string{"text": step}) // the caller may have gone
	})
	if err != nil {
		_ = stream.sendJSON("problem", "", NewProblem(err))
		return
	}
	_ = stream.sendJSON("done", "", res)
}
