package bpf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// setOf lists the programs of a set by their numbers in the kernel, the entry programs first.
func setOf(t *testing.T, p programs) []ebpf.ProgramID {
	t.Helper()
	var out []ebpf.ProgramID
	for _, entry := range []*ebpf.Program{p.entry, p.xdp} {
		if entry == nil {
			continue
		}
		info, err := entry.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		out = append(out, id)
	}
	return append(out, (&goods{programs: p}).jumps()...)
}

func sameSet(t *testing.T, a, b programs) bool {
	t.Helper()
	one, two := setOf(t, a), setOf(t, b)
	if len(one) < 5 || len(one) != len(two) {
		return false
	}
	for i := range one {
		if one[i] != two[i] {
			return false
		}
	}
	return true
}

// reopened opens what b has pinned once more, with changed options; afterwards one set is pinned.
func reopened(t *testing.T, b *bench, change func(*Options)) *Dataplane {
	t.Helper()
	opts := b.opts
	if change != nil {
		change(&opts)
	}
	again := openTest(t, b.ns, opts)
	arrays := 0
	pins, err := os.ReadDir(again.programDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, pin := range pins {
		if !strings.HasPrefix(pin.Name(), filepath.Base(again.programs.pin)) {
			t.Errorf("%s is left of an earlier set", pin.Name())
		}
		if !strings.Contains(pin.Name(), "%") {
			arrays++
		}
	}
	if arrays != 1 {
		t.Errorf("%d arrays are pinned", arrays)
	}
	return again
}

func TestARestartUsesTheProgramsThatAreThere(t *testing.T) {
	for _, hook := range []string{HookTC, HookClsact, HookXDP} {
		t.Run(hook, func(t *testing.T) {
			b := newBench(t, func(o *Options) { o.Hook = hook })
			first := b.programs
			again := reopened(t, b, nil)
			if !sameSet(t, first, again.programs) {
				t.Errorf("%v became %v", setOf(t, first), setOf(t, again.programs))
			}
			if (hook == HookXDP) != (again.programs.xdp != nil) {
				t.Errorf("XDP program %v", again.programs.xdp)
			}
			b.Dataplane = again
			b.sync(service(ModeFullNAT, endpoint1))
			b.talk(clientPort, vipPort)
		})
	}
}

func TestWhatIsNotTheSameIsLoadedAnew(t *testing.T) {
	cases := map[string]struct {
		change func(*Options)
		before func(*testing.T, *bench)
	}{
		"another setting": {change: func(o *Options) { o.Slot++ }},
		"another size":    {change: func(o *Options) { o.MaxFlows *= 2 }},
		"another hook":    {change: func(o *Options) { o.Hook = HookXDPGeneric }},
		"a program is missing in the array": {before: func(t *testing.T, b *bench) {
			if err := b.programs.tails.Delete(uint32(pontoonTailTAIL_SLOW)); err != nil {
				t.Fatal(err)
			}
		}},
		"the entry program is not pinned": {before: func(t *testing.T, b *bench) {
			if err := os.Remove(b.programs.pin + entrySuffix); err != nil {
				t.Fatal(err)
			}
		}},
		"its maps are new": {before: func(t *testing.T, b *bench) {
			if err := os.Remove(filepath.Join(b.mapDir(), pontoonMapCounters)); err != nil {
				t.Fatal(err)
			}
		}},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			first := setOf(t, b.programs)
			if c.before != nil {
				c.before(t, b)
			}
			again := reopened(t, b, c.change)
			if second := setOf(t, again.programs); second[0] == first[0] || len(second) < len(first) {
				t.Errorf("%v became %v", first, second)
			}
			b.Dataplane = again
			b.sync(service(ModeFullNAT, endpoint1))
			b.talk(clientPort, vipPort)
		})
	}
}

func TestIdentityKnowsEverySetting(t *testing.T) {
	bpftest.RequirePrivilege(t)
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	plain, err := identity(spec, nil, pontoonProgPontoonIngress, false)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{plain: "plain"}
	check := func(what string, spec *ebpf.CollectionSpec, entry string, xdp bool) {
		t.Helper()
		id, err := identity(spec, nil, entry, xdp)
		if err != nil {
			t.Fatal(err)
		}
		if other, found := seen[id]; found {
			t.Errorf("%s is the same as %s", what, other)
		}
		seen[id] = what
	}
	check("XDP", spec, pontoonProgPontoonIngress, true)
	check("tracing", spec, pontoonProgPontoonTraced, false)
	for name := range spec.Variables {
		changed := spec.Copy()
		changed.Variables[name].Value[0]++
		check(name, changed, pontoonProgPontoonIngress, false)
	}
	for name := range spec.Maps {
		changed := spec.Copy()
		changed.Maps[name].MaxEntries += 1 << 21 // no character has such a number
		check("another size of "+name, changed, pontoonProgPontoonIngress, false)
	}
	without := spec.Copy()
	delete(without.Programs, pontoonProgPontoonXlat)
	check("without a program", without, pontoonProgPontoonIngress, false)
	if again, err := identity(spec.Copy(), nil, pontoonProgPontoonIngress, false); err != nil || again != plain {
		t.Errorf("a copy is %s, not %s; %v", again, plain, err)
	}
}
