package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
)

// programsCommand is this program's argument when it shows a compiled object
// to the kernel's verifier.
const programsCommand = "programs"

// logTail is how many lines of the verifier's log tell why it refuses.
const logTail = 60

// effortAllowed is half of the instructions that the verifier walks through
// before it gives up: the next kernel may follow more ways than this one.
const effortAllowed = 500_000

// loadPrograms loads every program of the objects that match pattern by itself,
// if its name matches too, and prints what the verifier thought of it, in the
// form of Go's test output. Once with the settings as compiled, and once with all
// that they can switch on: what is off the verifier does not look at.
func loadPrograms(w io.Writer, pattern, names string) error {
	wanted, err := regexp.Compile(names)
	if err != nil {
		return fmt.Errorf("read names of programs: %w", err)
	}
	objects, err := filepath.Glob(pattern)
	if err != nil {
		return fmt.Errorf("find objects: %w", err)
	}
	if len(objects) == 0 {
		return fmt.Errorf("no object matches %s", pattern)
	}
	var errs []error
	for _, file := range objects {
		f, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("open object: %w", err)
		}
		spec, err := ebpf.LoadCollectionSpecFromReader(f)
		f.Close()
		if err != nil {
			return fmt.Errorf("read object %s: %w", file, err)
		}
		for _, name := range slices.Sorted(maps.Keys(spec.Programs)) {
			if wanted.MatchString(name) {
				errs = append(errs, loadOne(w, spec, name, false), loadOne(w, spec, name, true))
			}
		}
	}
	return errors.Join(errs...)
}

// switches are the settings that make code reachable.
var switches = []string{"cfg_trace", "cfg_xdp_frags"}

// loadOne shows one program to the verifier.
func loadOne(w io.Writer, spec *ebpf.CollectionSpec, name string, everything bool) error {
	began := time.Now()
	single := alone(spec, name)
	test := name
	if everything {
		test += "/everything"
		for _, s := range switches {
			if err := single.Variables[s].Set(uint8(1)); err != nil {
				return fmt.Errorf("switch %s on: %w", s, err)
			}
		}
	}
	coll, err := verify(single, ebpf.LogLevelStats)
	took := time.Since(began).Seconds()
	if err != nil {
		// Once more with all that the verifier has to say: it costs time and
		// memory that programs which load need not pay.
		if again, whole := verify(single, ebpf.LogLevelBranch|ebpf.LogLevelStats); whole != nil {
			err = whole
		} else {
			again.Close()
		}
		printRefusal(w, single.Programs[name], err)
		fmt.Fprintf(w, "--- FAIL: %s (%.2fs)\n", test, took)
		return fmt.Errorf("program %s is refused", test)
	}
	defer coll.Close()
	p := coll.Programs[name]
	fmt.Fprintf(w, "    %s: %s, %s\n", p.Type(), sizes(p), verifierEffort(p.VerifierLog))
	printChain(w, single.Programs[name], p.VerifierLog, p)
	if n := walked(p.VerifierLog); n > effortAllowed {
		fmt.Fprintf(w, "    %d instructions walked, more than %d: other kernels may find this too much\n", n, effortAllowed)
		fmt.Fprintf(w, "--- FAIL: %s (%.2fs)\n", test, took)
		return fmt.Errorf("program %s keeps the verifier too long", test)
	}
	fmt.Fprintf(w, "--- PASS: %s (%.2fs)\n", test, took)
	return nil
}

func verify(spec *ebpf.CollectionSpec, level ebpf.LogLevel) (*ebpf.Collection, error) {
	return ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: level}})
}

// sizes says how long the program is, in as far as the kernel tells.
func sizes(p *ebpf.Program) string {
	info, err := p.Info()
	if err != nil {
		return "size unknown"
	}
	n, err := info.TranslatedSize()
	if err != nil {
		return "size unknown"
	}
	jited, err := info.JitedSize()
	if err != nil {
		return fmt.Sprintf("%d instructions", n/8)
	}
	return fmt.Sprintf("%d instructions, %d bytes of machine code", n/8, jited)
}

var processed = regexp.MustCompile(`processed (\d+) insns.*`)

// walked is how many instructions the verifier went through, as far as it says.
func walked(log string) int {
	m := processed.FindStringSubmatch(log)
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1]) // digits, but perhaps too many: none
	return n
}

// verifierEffort is the last line of the verifier's statistics: how many
// instructions it walked through of those it is willing to.
func verifierEffort(log string) string {
	if m := processed.FindString(log); m != "" {
		return m
	}
	return "the verifier printed no statistics"
}

// printChain tells how near the program is to the limit of the stack.
func printChain(w io.Writer, p *ebpf.ProgramSpec, log string, loaded *ebpf.Program) {
	if chain, _, ok := bpftest.Chains(p, log, loaded); ok {
		fmt.Fprintf(w, "    deepest chain of calls: %s\n", chain)
	}
}

// printRefusal prints the error, and the end of the verifier's log if it is one
// of the verifier's.
func printRefusal(w io.Writer, p *ebpf.ProgramSpec, err error) {
	fmt.Fprintf(w, "    %v\n", err)
	var v *ebpf.VerifierError
	if !errors.As(err, &v) {
		return
	}
	for _, line := range v.Log[max(0, len(v.Log)-logTail):] {
		fmt.Fprintf(w, "    | %s\n", line)
	}
	printChain(w, p, strings.Join(v.Log, "\n"), nil)
}

// smallTable is the size of the tables the programs are verified with: the
// verifier does not ask for it, and memory is short.
const smallTable = 1024

// alone is spec with no other program than the named one, with small tables and
// nothing pinned.
func alone(spec *ebpf.CollectionSpec, name string) *ebpf.CollectionSpec {
	out := spec.Copy()
	maps.DeleteFunc(out.Programs, func(n string, _ *ebpf.ProgramSpec) bool { return n != name })
	for _, m := range out.Maps {
		m.Pinning = ebpf.PinNone
		switch m.Type {
		case ebpf.Hash, ebpf.LRUHash, ebpf.PerCPUHash, ebpf.LRUCPUHash, ebpf.LPMTrie:
			m.MaxEntries = min(max(m.MaxEntries, 1), smallTable)
		case ebpf.ProgramArray:
			m.Contents = nil // it may name programs that were left out
		}
	}
	return out
}
