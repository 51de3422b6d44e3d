package routertest

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

// newLab is a lab whose nodes run nothing: what speaks on them is the test's.
func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	roottest.Need(t)
	l, err := lab.New(lab.Config{Topology: lab.Routed, Nodes: 3, Clients: 1, Endpoints: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Each documented configuration is one its router takes.
func TestRoutersTakeWhatIsDocumented(t *testing.T) {
	l := newLab(t)
	r := l.Routers()[0]
	for _, kind := range Kinds() {
		for _, form := range Forms() {
			t.Run(string(kind)+"/"+string(form), func(t *testing.T) {
				d := Start(t, kind, r, 3, Options{Form: form, BFD: 50 * time.Millisecond})
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if _, err := d.Established(ctx); err != nil {
					t.Error(err)
				}
				if paths, err := d.Paths(ctx, netip.MustParsePrefix("198.18.0.1/32")); err != nil || len(paths) > 0 {
					t.Errorf("a router nobody speaks to has %v, %v", paths, err)
				}
				d.Stop(t)
			})
		}
	}
}
