package node

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"pontoon/fsm"
	"pontoon/web"
)

// A command whose outcome is unknown is asked for again until somebody can say what came of it; anything else is the answer.
func TestWhatIsInDoubtIsAskedForAgain(t *testing.T) {
	doubt := fmt.Errorf("%w: leadership lost", errUnknownOutcome)
	for _, c := range []struct {
		name    string
		answers []error // of one attempt after the other
		moot    bool
		want    error
		told    int
	}{
		{"known at once", []error{nil}, false, nil, 0},
		{"refused at once", []error{fsm.ErrInUse}, false, fsm.ErrInUse, 0},
		{"nobody led, and nothing was tried", []error{web.ErrNoLeader}, false, web.ErrNoLeader, 0},
		{"it had happened", []error{doubt, fsm.ErrNotFound}, false, fsm.ErrNotFound, 1},
		{"it had not happened", []error{doubt, nil}, false, nil, 1},
		{"nobody leads for a while", []error{doubt, web.ErrNoLeader, doubt, web.ErrNoLeader, fsm.ErrNotFound}, false, fsm.ErrNotFound, 1},
		{"refused when asked again", []error{doubt, fsm.ErrInUse}, false, fsm.ErrInUse, 1},
		{"this node hears that it was removed", []error{doubt}, true, nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			asked, told := 0, 0
			err := untilKnown(t.Context(), func(context.Context) error {
				asked++
				return c.answers[asked-1]
			}, func() bool { return c.moot }, func(string) { told++ })
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("got %v, want %v", err, c.want)
			}
			if asked != len(c.answers) || told != c.told {
				t.Errorf("asked %d times and told %d times, want %d and %d", asked, told, len(c.answers), c.told)
			}
		})
	}
}

// Who asked may give up: then the doubt is the answer, and not that time was over.
func TestADoubtThatLastsIsTheAnswer(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	asked := 0
	err := untilKnown(ctx, func(context.Context) error {
		if asked++; asked == 3 {
			cancel()
		}
		return errUnknownOutcome
	}, func() bool { return false }, func(string) {})
	if !errors.Is(err, errUnknownOutcome) {
		t.Errorf("got %v, want the doubt", err)
	}
}
