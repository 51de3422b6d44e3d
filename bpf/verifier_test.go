package bpf

import (
	"regexp"
	"strconv"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// The kernel gives up on a program after a million verified instructions. Other versions of it
// follow more paths than this one, so there must be room to spare.
func TestProgramsLeaveTheVerifierRoom(t *testing.T) {
	const allowed = 250_000
	bpftest.RequirePrivilege(t)
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
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
	}
}
