package node

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestTheEndIsNotWaitedForWithoutEnd(t *testing.T) {
	own := errors.New("its own")
	for _, tc := range []struct {
		name  string
		takes time.Duration // after the order
		want  string
	}{
		{"in time", time.Second, "its own"},
		{"just in time", endTime - time.Millisecond, "its own"},
		{"never", time.Hour, "the disk hangs"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(time.Minute, cancel) // it runs for a while
				began := time.Now()
				err := endOf(ctx, func() error {
					<-ctx.Done()
					<-time.After(tc.takes)
					return own
				}, endTime, func() string { return "the disk hangs" })
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, want %s", err, tc.want)
				}
				if took := time.Since(began) - time.Minute; took != min(tc.takes, endTime) {
					t.Errorf("it took %s", took)
				}
				<-time.After(time.Hour) // the one that is not waited for ends, too
			})
		})
	}
}

func TestAnEndByItselfIsNoTimeout(t *testing.T) {
	own := errors.New("its own")
	if err := endOf(t.Context(), func() error { return own }, endTime, nil); !errors.Is(err, own) {
		t.Error(err)
	}
}
