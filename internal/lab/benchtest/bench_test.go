package benchtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pontoon/internal/lab"
	"pontoon/internal/roottest"
)

func TestMain(m *testing.M) {
	if os.Geteuid() == 0 {
		// Mounted here and left, so that no lab of ours takes it away under another.
		if _, err := lab.EnsureBPFFS("/sys/fs/bpf"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// spy is a contender that tells which lab it was in, and is not available.
type spy struct{ prefix string }

var errSpy = errors.New("only here to look")

func (s *spy) contender() Contender {
	return Contender{Name: "spy", Start: func(_ context.Context, site *Site) ([]Target, error) {
		s.prefix, _, _ = strings.Cut(site.Node.Namespace(), "-")
		return nil, errSpy
	}}
}

// checkGone fails the test if the lab has left something.
func (s *spy) checkGone(t *testing.T) {
	t.Helper()
	if s.prefix == "" {
		t.Fatal("the lab was never seen")
	}
	for _, dir := range []string{"/run/netns", os.TempDir()} {
		if left, _ := filepath.Glob(filepath.Join(dir, s.prefix+"*")); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestEveryWorkloadGetsThroughBothHooks(t *testing.T) {
	roottest.Need(t)
	t.Parallel()
	var s spy
	cfg := Config{
		Contenders: append(Floors(), Contender{Name: routingName, Start: startRouting}, s.contender()),
		Rounds:     1, Window: 400 * time.Millisecond, Progress: t.Output(),
	}.withDefaults()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	r, err := run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.checkGone(t)
	if len(r.Unavailable) != 1 || !errors.Is(r.Unavailable[0].Err, errSpy) {
		t.Errorf("not available: %v", r.Unavailable)
	}
	for _, f := range r.Failed {
		t.Errorf("%s, %s: %v", f.Contender, f.Workload, f.Err)
	}
	if got, want := strings.Join(r.Names(), " "), "direct direct-xdp floor-tc floor-xdp routing"; got != want {
		t.Errorf("measured %s, want %s", got, want)
	}
	for _, name := range r.Names() {
		for _, w := range cfg.Workloads {
			if rate, ok := r.Median(w, name); !ok || rate <= 0 {
				t.Errorf("%s, %s: %v, %v", name, w, rate, ok)
			}
		}
	}
}

func TestARunThatIsEndedEarlyRemovesItsLab(t *testing.T) {
	roottest.Need(t)
	t.Parallel()
	var s spy
	ctx, cancel := context.WithCancel(t.Context())
	leave := Contender{Name: "leaver", Start: func(context.Context, *Site) ([]Target, error) {
		cancel()
		return nil, nil
	}}
	r, err := run(ctx, Config{Contenders: []Contender{s.contender(), leave}}.withDefaults())
	if !errors.Is(err, context.Canceled) || r == nil {
		t.Errorf("report %v, error %v", r, err)
	}
	s.checkGone(t)
}

func TestAContenderThatSwallowsIsNotAvailable(t *testing.T) {
	roottest.Need(t)
	t.Parallel()
	hole := Contender{Name: "hole", Start: func(_ context.Context, s *Site) ([]Target, error) {
		return []Target{{Addr: s.VIP(0)}}, nil // nobody has it
	}}
	r, err := run(t.Context(), Config{
		Contenders: []Contender{hole}, Workloads: []Workload{Conns}, Rounds: 1, Window: 100 * time.Millisecond,
	}.withDefaults())
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Unavailable) != 1 || r.Unavailable[0].Contender != "hole" {
		t.Errorf("not available: %v", r.Unavailable)
	}
	if got := strings.Join(r.Names(), " "); got != directName {
		t.Errorf("measured %s", got)
	}
}

func TestConfigurationIsCheckedAllAtOnce(t *testing.T) {
	err := Config{Contenders: make([]Contender, 9), Rounds: -1, Window: time.Millisecond}.Validate()
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("want three faults: %v", err)
	}
	if err := (Config{}).Validate(); err != nil {
		t.Errorf("the defaults: %v", err)
	}
}

func TestRulesAndConfigurationNameEveryEndpoint(t *testing.T) {
	s := &Site{Front: "front", Back: "back", index: 3}
	for what, text := range map[string]string{"nft": nftRules(s), "haproxy": haproxyConfig(s)} {
		if !strings.Contains(text, "10.80.3.200") {
			t.Errorf("%s without the VIP:\n%s", what, text)
		}
		for _, e := range s.Endpoints() {
			if !strings.Contains(text, e.String()) {
				t.Errorf("%s without %s:\n%s", what, e, text)
			}
		}
	}
}
