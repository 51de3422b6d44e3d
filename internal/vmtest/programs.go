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
	"strings"
	"time"

	"github.com/cilium/ebpf"
)

// programsCommand is this program's argument when it shows a compiled object
// to the kernel's verifier.
const programsCommand = "programs"

// logTail is how many lines of the verifier's log tell why it refuses.
const logTail = 60

// loadPrograms loads every program of the objects that match pattern by itself,
// if its name matches too, and prints what the verifier thought of it, in the
// form of Go's test output. Settings are left as compiled: what they switch off
// is not looked at.
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
				errs = append(errs, loadOne(w, spec, name))
			}
		}
	}
	return errors.Join(errs...)
}

// loadOne shows one program to the verifier.
func loadOne(w io.Writer, spec *ebpf.CollectionSpec, name string) error {
	began := time.Now()
	single := alone(spec, name)
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
		fmt.Fprintf(w, "--- FAIL: %s (%.2fs)\n", name, took)
		return fmt.Errorf("program %s is refused", name)
	}
	defer coll.Close()
	p := coll.Programs[name]
	fmt.Fprintf(w, "    %s: %s, %s\n", p.Type(), sizes(p), verifierEffort(p.VerifierLog))
	printChain(w, single.Programs[name], p.VerifierLog)
	fmt.Fprintf(w, "--- PASS: %s (%.2fs)\n", name, took)
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

var processed = regexp.MustCompile(`processed \d+ insns.*`)

// verifierEffort is the last line of the verifier's statistics: how many
// instructions it walked through of those it is willing to.
func verifierEffort(log string) string {
	if m := processed.FindString(log); m != "" {
		return m
	}
	return "the verifier printed no statistics"
}

// printChain tells how near the program is to the limit of the stack.
func printChain(w io.Writer, p *ebpf.ProgramSpec, log string) {
	if chain := deepestChain(p, log); chain != "" {
		fmt.Fprintf(w, "    %s\n", chain)
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
	printChain(w, p, strings.Join(v.Log, "\n"))
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
