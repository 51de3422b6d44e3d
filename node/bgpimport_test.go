package node

import (
	"testing"
	"time"

	"pontoon/node/announce"
)

// A daemon that has just started finds learned routes of its earlier life. What the cluster wants is handed on
// before the speaker is told of it, and the kernel's routes must not go in between. There is no host here: to
// touch it would be a panic.
func TestLearnedRoutesAreLeftAloneBeforeTheSpeakerIsConfigured(t *testing.T) {
	n := newNeighbour(t)
	n.r.imports.clean = false
	n.config.Import = announce.ImportAll()
	n.r.hand(speaking{config: n.config, graceful: true})
	if err := n.r.importRoutes(time.Now()); err != nil {
		t.Error(err)
	}
	if is := n.r.imports; is.clean || !is.began.IsZero() {
		t.Errorf("%+v", is)
	}
	if err := n.r.applyOnce(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !n.r.set || len(n.r.config.Import) == 0 {
		t.Errorf("configured: %v, %+v", n.r.set, n.r.config)
	}
}
