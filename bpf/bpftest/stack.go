package bpftest

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
	StackLimit = 512 // bytes
	CallLimit  = 8   // frames
	stackUnit  = 32
)

// Chain is one chain of calls, the program's own function first.
type Chain struct {
	Bytes int      // of stack, each frame rounded up to 32
	Calls []string // names, and the bytes of each
}

// String names the chain beside the limit.
func (c Chain) String() string {
	return fmt.Sprintf("%d of %d bytes of stack: %s", c.Bytes, StackLimit, strings.Join(c.Calls, " > "))
}

var stackDepths = regexp.MustCompile(`stack depth ([\d+]+)`)

// frame is one function of a program and those it calls.
type frame struct {
	name  string
	depth int // rounded
	calls []string
}

// Chains returns the chain of calls that needs most stack and the longest one,
// from the verifier's log, which must hold its statistics. The kernel leaves out
// functions that settings make unreachable; it says which through loaded, or all
// count as there when that is nil. False: the log does not tell.
func Chains(p *ebpf.ProgramSpec, log string, loaded *ebpf.Program) (deepest, longest Chain, ok bool) {
	m := stackDepths.FindStringSubmatch(log)
	if m == nil {
		return deepest, longest, false
	}
	frames := framesOf(p.Instructions)
	if loaded != nil {
		frames = alive(frames, loaded)
	}
	depths := strings.Split(m[1], "+")
	if len(depths) != len(frames) {
		return deepest, longest, false
	}
	byName := map[string]frame{}
	for i, d := range depths {
		n, err := strconv.Atoi(d)
		if err != nil {
			return deepest, longest, false
		}
		frames[i].depth = (max(n, 1) + stackUnit - 1) / stackUnit * stackUnit
		byName[frames[i].name] = frames[i]
	}
	walk(byName, frames[0].name, Chain{}, func(c Chain) {
		if c.Bytes > deepest.Bytes {
			deepest = c
		}
		if len(c.Calls) > len(longest.Calls) {
			longest = c
		}
	})
	return deepest, longest, true
}

// framesOf finds the functions and their calls. The verifier numbers them as
// they follow each other.
func framesOf(insns asm.Instructions) []frame {
	var frames []frame
	called := map[string]bool{}
	for _, ins := range insns {
		if ins.IsFunctionReference() { // also what jumps have as a target is a symbol
			called[ins.Reference()] = true
		}
	}
	for _, ins := range insns {
		if s := ins.Symbol(); s != "" && (len(frames) == 0 || called[s]) {
			frames = append(frames, frame{name: s})
		}
		if n := len(frames); n > 0 && ins.IsFunctionReference() {
			frames[n-1].calls = append(frames[n-1].calls, ins.Reference())
		}
	}
	return frames
}

// alive leaves of frames what the kernel has kept.
func alive(frames []frame, loaded *ebpf.Program) []frame {
	info, err := loaded.Info()
	if err != nil {
		return frames
	}
	functions, err := info.FuncInfos()
	if err != nil {
		return frames
	}
	there := map[string]bool{}
	for _, f := range functions {
		there[f.Func.Name] = true
	}
	out := frames[:1:1]
	for _, f := range frames[1:] {
		if there[f.name] {
			out = append(out, f)
		}
	}
	return out
}

// walk visits every chain that begins with name, behind the one that led there.
// The kernel allows no recursion.
func walk(frames map[string]frame, name string, before Chain, visit func(Chain)) {
	f, ok := frames[name]
	if !ok {
		return
	}
	c := Chain{
		Bytes: before.Bytes + f.depth,
		Calls: append(append([]string(nil), before.Calls...), fmt.Sprintf("%s %d", f.name, f.depth)),
	}
	visit(c)
	for _, callee := range f.calls {
		if callee != name {
			walk(frames, callee, c, visit)
		}
	}
}
