package chaostest

import (
	"testing"

	"pontoon/internal/lab/impair"
	"pontoon/internal/roottest"
)

// More than a cable takes is refused, and does not stay in the way of what comes after.
func TestHarmThatCannotBeDoneIsNotLeftBehind(t *testing.T) {
	roottest.Namespace(t)
	p, err := impair.Open(impair.Config{Do: func(f func() error) error { return f() }, Interface: "lo"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	c := &cables{ports: map[string][]*cable{"node": {{Port: p}}}, harm: map[int][]harm{}}
	drop := func(rules int) harm {
		return harm{"node", func(int) impair.Rules { return impair.Rules{ToHost: make([]impair.Rule, rules)} }}
	}
	if _, err := c.hurt(drop(100)); err == nil {
		t.Fatal("a hundred rules are taken")
	}
	undo, err := c.hurt(drop(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, to, err := p.Counts(); err != nil || len(to) != 1 {
		t.Errorf("%d rules, %v", len(to), err)
	}
	if err := undo(); err != nil {
		t.Error(err)
	}
}
