package bpf

import (
	"regexp"
	"strconv"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// The kernel gives up on a program after a million verified instructions. Other versions of it
// follow more paths than this one, so there must be room to spare. Of the stack the strictest of
// them is asked.
func TestProgramsLeaveTheVerifierRoom(t *testing.T) {
	bpftest.RequirePrivilege(t)
	for name, settings := range map[string]map[string]uint8{
		"plain":          {},
		"traced":         {pontoonVarCfgTrace: 1},
		"between tables": {pontoonVarCfgFormer: 1},
	} {
		t.Run(name, func(t *testing.T) { leaveRoom(t, settings) })
	}
}

func leaveRoom(t *testing.T, settings map[string]uint8) {
	const allowed = 250_000
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range settings {
		if err := spec.Variables[name].Set(value); err != nil {
			t.Fatal(err)
		}
	}
	options := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}}
	collection, err := ebpf.NewCollectionWithOptions(spec, options)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer collection.Close()
	processed := regexp.MustCompile(`processed (\d+) insns`)
	for name, program := range collection.Programs {
		found := processed.FindStringSubmatch(program.VerifierLog)
		if found == nil {
			t.Errorf("%s: no figure in %q", name, program.VerifierLog)
			continue
		}
		n, _ := strconv.Atoi(found[1])
		t.Logf("%s: %d instructions verified", name, n)
		if n > allowed {
			t.Errorf("%s: %d instructions verified, allowed are %d", name, n, allowed)
		}
		stackIsEnough(t, spec.Programs[name], program)
	}
}

func stackIsEnough(t *testing.T, spec *ebpf.ProgramSpec, program *ebpf.Program) {
	t.Helper()
	deepest, longest, ok := bpftest.Chains(spec, program.VerifierLog, program)
	if !ok {
		t.Errorf("%s: the verifier does not tell how deep its calls go", spec.Name)
		return
	}
	t.Logf("%s: %s", spec.Name, deepest)
	if deepest.Bytes > bpftest.StackLimit {
		t.Errorf("%s: too deep a chain of calls for kernels before 6.8: %s", spec.Name, deepest)
	}
	if len(longest.Calls) > bpftest.CallLimit {
		t.Errorf("%s: %d frames: %s", spec.Name, len(longest.Calls), longest)
	}
}
