package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// What the verifier allows a chain of calls, and to what it rounds each frame
// (check_max_stack_depth in kernel/bpf/verifier.c). Newer kernels round to 16
// bytes what they compile to machine code, and the newest may give each function
// a stack of its own: what is within these bounds loads everywhere.
const (
	stackLimit = 512
	stackUnit  = 32
)

var stackDepths = regexp.MustCompile(`stack depth ([\d+]+)`)

// frame is one function of a program and those it calls.
type frame struct {
	name  string
	depth int // rounded
	calls []int
}

// deepestChain names the chain of calls that needs most stack, from the
// verifier's log. It is empty if the log does not tell.
func deepestChain(p *ebpf.ProgramSpec, log string) string {
	m := stackDepths.FindStringSubmatch(log)
	if m == nil {
		return ""
	}
	frames := framesOf(p.Instructions)
	depths := strings.Split(m[1], "+")
	if len(depths) != len(frames) {
		return ""
	}
	for i, d := range depths {
		n, err := strconv.Atoi(d)
		if err != nil {
			return ""
		}
		frames[i].depth = (max(n, 1) + stackUnit - 1) / stackUnit * stackUnit
	}
	sum, chain := deepest(frames, 0)
	return fmt.Sprintf("deepest chain of calls: %d of %d bytes of stack: %s", sum, stackLimit, strings.Join(chain, " > "))
}

// framesOf finds the functions and their calls. The verifier numbers them as
// they follow each other.
func framesOf(insns asm.Instructions) []frame {
	var frames []frame
	at := map[string]int{}
	for _, ins := range insns {
		if ins.Symbol() != "" && (len(frames) == 0 || isFunction(insns, ins.Symbol())) {
			at[ins.Symbol()] = len(frames)
			frames = append(frames, frame{name: ins.Symbol()})
		}
	}
	current := -1
	for _, ins := range insns {
		if i, ok := at[ins.Symbol()]; ok && ins.Symbol() != "" {
			current = i
		}
		if callee, ok := at[ins.Reference()]; ok && ins.IsFunctionReference() && current >= 0 {
			frames[current].calls = append(frames[current].calls, callee)
		}
	}
	return frames
}

// isFunction tells whether anything calls the symbol: jumps have targets too.
func isFunction(insns asm.Instructions, symbol string) bool {
	for _, ins := range insns {
		if ins.IsFunctionReference() && ins.Reference() == symbol {
			return true
		}
	}
	return false
}

// deepest follows the calls, which the kernel allows no recursion.
func deepest(frames []frame, i int) (sum int, chain []string) {
	for _, callee := range frames[i].calls {
		if callee == i {
			continue
		}
		if s, c := deepest(frames, callee); s > sum {
			sum, chain = s, c
		}
	}
	f := frames[i]
	return sum + f.depth, append([]string{fmt.Sprintf("%s %d", f.name, f.depth)}, chain...)
}
