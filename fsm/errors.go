package fsm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// The kinds of refusal. Every error of Apply and Check matches at least one of
// them with errors.Is; its text says in one line what is wrong and how to mend
// it.
var (
	// ErrNotFound is returned when a command names an object that is not there.
	ErrNotFound = errors.New("not found")
	// ErrExists is returned when a command would create what is there already.
	ErrExists = errors.New("already exists")
	// ErrInvalid is returned when a command's own content is not acceptable;
	// the error is then a *ValidationError that lists every problem.
	ErrInvalid = errors.New("invalid")
	// ErrNotInitialised is returned for every command before InitCluster.
	ErrNotInitialised = errors.New("cluster is not initialised")
	// ErrAlreadyInitialised is returned for a second InitCluster.
	ErrAlreadyInitialised = errors.New("cluster is already initialised")
	// ErrInUse is returned when something else depends on the object, or holds
	// the resource (an address, a slot, the last vote) the command needs.
	ErrInUse = errors.New("in use")
	// ErrTokenInvalid is returned when a join token is unknown, used, expired,
	// of another role, or comes with the wrong secret.
	ErrTokenInvalid = errors.New("join token is not valid")
	// ErrNodeDown is returned for a report of a node that the last verdict
	// calls dead.
	ErrNodeDown = errors.New("node is down")
	// ErrNotEligible is returned when an instance is to be moved to a node that
	// may not be master now.
	ErrNotEligible = errors.New("node is not eligible")
	// ErrStale is returned for what a node found out in an epoch that is over.
	ErrStale = errors.New("out of date")
	// ErrChanged is returned when an object is to be replaced that is not as it was read; see State.CheckFingerprint.
	ErrChanged = errors.New("changed meanwhile")
	// ErrUnsupported is returned by Decode and Restore for bytes written by a
	// newer version. Skipping such a log entry would make replicas differ, so
	// whoever meets it must stop, not go on.
	ErrUnsupported = errors.New("written by a newer version")
)

// refusal is an error whose text stands alone and which still matches its
// sentinel, without the sentinel's words repeated in the text.
type refusal struct {
	kind error
	text string
}

func (r *refusal) Error() string { return r.text }
func (r *refusal) Unwrap() error { return r.kind }

func refuse(kind error, format string, args ...any) error {
	return &refusal{kind: kind, text: fmt.Sprintf(format, args...)}
}

// Problem is one thing that is wrong with a command.
type Problem struct {
	Field string `json:"field"` // JSON path below the object, like "endpoints[3].weight"
	Value string `json:"value"` // what was given
	Text  string `json:"text"`  // what is wrong with it, and how to mend it
	kind  error
}

// String returns the problem as part of one line.
func (p Problem) String() string {
	if p.Value == "" {
		return p.Field + " " + p.Text
	}
	return p.Field + " " + p.Value + " " + p.Text
}

// ValidationError lists everything that is wrong with one object of a command.
// It matches ErrInvalid, or ErrExists and ErrInUse where a problem is a clash
// with something that is there already.
type ValidationError struct {
	Object   string    // what was validated, like "service web"
	Problems []Problem // never empty
}

// Error returns all the problems in one line.
func (e *ValidationError) Error() string {
	parts := make([]string, len(e.Problems))
	for i, p := range e.Problems {
		parts[i] = p.String()
	}
	return e.Object + ": " + strings.Join(parts, "; ")
}

// Unwrap returns the sentinels the error matches.
func (e *ValidationError) Unwrap() []error {
	var kinds []error
	for _, p := range e.Problems {
		if !slices.Contains(kinds, p.kind) {
			kinds = append(kinds, p.kind)
		}
	}
	return kinds
}

// checker collects problems of one object.
type checker struct {
	object   string
	problems []Problem
}

func (c *checker) bad(field string, value any, format string, args ...any) {
	c.clash(ErrInvalid, field, value, format, args...)
}

func (c *checker) clash(kind error, field string, value any, format string, args ...any) {
	c.problems = append(c.problems, Problem{
		Field: field, Value: shown(value), Text: fmt.Sprintf(format, args...), kind: kind,
	})
}

func (c *checker) err() error {
	if len(c.problems) == 0 {
		return nil
	}
	return &ValidationError{Object: c.object, Problems: c.problems}
}

// shown makes a value safe for one line: text a user typed is quoted unless it
// is plain, and cut when it is long.
func shown(value any) string {
	if value == nil {
		return ""
	}
	s := fmt.Sprint(value)
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	plain := s != ""
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '"' {
			plain = false
		}
	}
	if plain {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// manyErrors is the error of a batch: one line, every refusal in it.
type manyErrors []error

func (m manyErrors) Error() string {
	parts := make([]string, len(m))
	for i, err := range m {
		parts[i] = err.Error()
	}
	return strings.Join(parts, "; ")
}

func (m manyErrors) Unwrap() []error { return m }
