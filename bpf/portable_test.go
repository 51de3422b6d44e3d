package bpf

import (
	"regexp"
	"slices"
	"strconv"
	"testing"

	"pontoon/bpf/bpftest"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The oldest kernel that the data plane is made for is 5.15. Where no machine runs it these tests
// say what can be said without: nothing in the object is younger.

// newestHelper is the last one that 5.15 has (bpf_task_pt_regs; include/uapi/linux/bpf.h there).
const newestHelper = asm.FnTaskPtRegs

// hidden are younger helpers that a setting hides: what the verifier knows not to be reached it
// does not look at.
var hidden = []asm.BuiltinFunc{asm.FnXdpGetBuffLen}

func TestNoHelperIsYoungerThan515(t *testing.T) {
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		if p.Type != ebpf.SchedCLS && p.Type != ebpf.XDP && p.Type != ebpf.Syscall { // the last: since 5.14
			t.Errorf("%s: a %s program", name, p.Type)
		}
		for i, ins := range p.Instructions {
			if ins.IsKfuncCall() {
				t.Errorf("%s: instruction %d calls a function of the kernel's own", name, i)
			}
			if !ins.IsBuiltinCall() {
				continue
			}
			helper := asm.BuiltinFunc(ins.Constant)
			if helper > newestHelper && (p.Type != ebpf.XDP || !slices.Contains(hidden, helper)) {
				t.Errorf("%s: instruction %d calls %s, which came after 5.15", name, i, helper)
			}
		}
	}
}

// With the settings of a kernel without XDP frames of several buffers, as xdpFrags makes them.
func TestSettingsHideYoungerHelpers(t *testing.T) {
	bpftest.RequirePrivilege(t)
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.Variables[pontoonVarCfgXdpFrags].Set(uint8(0)); err != nil {
		t.Fatal(err)
	}
	onlyHiding(spec)
	for _, p := range spec.Programs {
		p.Flags &^= unix.BPF_F_XDP_HAS_FRAGS
	}
	options := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelInstruction}}
	collection, err := ebpf.NewCollectionWithOptions(spec, options)
	if err != nil {
		t.Fatalf("%+v", err)
	}
	defer collection.Close()
	// As it is walked through; newer kernels also list what each instruction reads.
	called := regexp.MustCompile(`(?m)^\d+: \(85\) call (bpf_\w+)#(\d+)`)
	for name, program := range collection.Programs {
		calls := called.FindAllStringSubmatch(program.VerifierLog, -1)
		if len(calls) == 0 {
			t.Errorf("%s: the verifier's log names no helper", name)
		}
		for _, c := range calls {
			if n, _ := strconv.Atoi(c[2]); asm.BuiltinFunc(n) > newestHelper {
				t.Errorf("%s: %s can be reached", name, c[1])
				break
			}
		}
	}
}

// onlyHiding leaves in spec the programs that younger helpers are in.
func onlyHiding(spec *ebpf.CollectionSpec) {
	for name, p := range spec.Programs {
		young := func(ins asm.Instruction) bool {
			return ins.IsBuiltinCall() && asm.BuiltinFunc(ins.Constant) > newestHelper
		}
		if !slices.ContainsFunc(p.Instructions, young) {
			delete(spec.Programs, name)
		}
	}
}

func TestNoMapIsYoungerThan515(t *testing.T) {
	types := []ebpf.MapType{
		ebpf.Hash, ebpf.LRUHash, ebpf.Array, ebpf.PerCPUArray, ebpf.ProgramArray, ebpf.LPMTrie, // 4.20 and before
		ebpf.RingBuf, // 5.8
	}
	const flags = unix.BPF_F_NO_PREALLOC | unix.BPF_F_RDONLY_PROG | // 5.2 and before
		unix.BPF_F_MMAPABLE // 5.5
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range spec.Maps {
		if !slices.Contains(types, m.Type) {
			t.Errorf("%s: is 5.15 known to have a %s?", name, m.Type)
		}
		if m.Flags&^flags != 0 {
			t.Errorf("%s: is 5.15 known to have the flags %#x?", name, m.Flags&^flags)
		}
	}
}

func TestNoInstructionIsYoungerThan515(t *testing.T) {
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		for i, ins := range p.Instructions {
			if younger(ins) {
				t.Errorf("%s: instruction %d is one of the fourth set, of 6.6 and later: %v", name, i, ins)
			}
		}
	}
	for _, ins := range []asm.Instruction{
		{OpCode: asm.Mov.Op(asm.RegSource), Offset: 8},                             // movsx
		{OpCode: asm.OpCode(asm.Jump32Class).SetJumpOp(asm.Ja)},                    // gotol
		{OpCode: asm.OpCode(asm.LdXClass) | 0x80},                                  // ldxsx
		{OpCode: asm.OpCode(asm.ALU64Class) | asm.OpCode(asm.Swap)},                // bswap
		{OpCode: asm.OpCode(asm.StXClass) | 0xc0, Constant: 0x100},                 // load-acquire
		{OpCode: asm.OpCode(asm.ALU64Class) | asm.OpCode(asm.Div&0xf0), Offset: 1}, // sdiv
	} {
		if !younger(ins) {
			t.Errorf("%v passes for an old instruction", ins)
		}
	}
}

// younger tells the instructions of -mcpu=v4, and the atomic loads and stores of 6.14, by the bits
// that make them up (Documentation/bpf/standardization/instruction-set.rst).
func younger(ins asm.Instruction) bool {
	const (
		div, mod, mov, swap = 0x30, 0x90, 0xb0, 0xd0
		memSX, atomic       = 0x80, 0xc0
		loadAcquire         = 0x100
	)
	code := uint8(ins.OpCode)
	switch ins.OpCode.Class() {
	case asm.ALUClass, asm.ALU64Class:
		switch code & 0xf0 {
		case div, mod, mov:
			return ins.Offset != 0
		case swap:
			return ins.OpCode.Class() == asm.ALU64Class
		}
	case asm.LdXClass:
		return code&0xe0 == memSX
	case asm.StXClass:
		return code&0xe0 == atomic && ins.Constant >= loadAcquire
	case asm.Jump32Class:
		return code&0xf0 == 0
	}
	return false
}

// A verifier before 6.7 takes a loop only where a jump leads back to its begin (check_cfg in
// kernel/bpf/verifier.c: an edge that is no jump may not lead to an instruction that is still being
// followed). A compiler may as well place the begin right behind the end.
func TestLoopsAreClosedByJumps(t *testing.T) {
	spec, err := loadPontoon()
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range spec.Programs {
		for _, i := range unclosedLoops(t, p.Instructions) {
			t.Errorf("%s: instruction %d (%v) leads back to the next one without a jump", name, i, p.Instructions[i])
		}
	}
	jump := func(to string) asm.Instruction { return asm.Ja.Label(to) }
	begin := asm.Mov.Imm(asm.R0, 0).WithSymbol("begin")
	for _, tc := range []struct {
		name string
		code asm.Instructions
		want int
	}{
		{"by a jump", asm.Instructions{begin, asm.JEq.Imm(asm.R0, 1, "end"), jump("begin"), asm.Return().WithSymbol("end")}, 0},
		{"from above", asm.Instructions{jump("begin"), asm.Mov.Imm(asm.R1, 0).WithSymbol("last"), begin, asm.JEq.Imm(asm.R0, 1, "last"), asm.Return()}, 1},
	} {
		if got := unclosedLoops(t, tc.code); len(got) != tc.want {
			t.Errorf("%s: found %v", tc.name, got)
		}
	}
}

// unclosedLoops follows the code depth first, as check_cfg does, and returns the instructions that
// lead back without a jump.
func unclosedLoops(t *testing.T, code asm.Instructions) (found []int) {
	t.Helper()
	const followed, done = 1, 2
	next := targets(t, code)
	state := make([]int, len(code))
	var follow func(i int)
	follow = func(i int) {
		if i >= len(code) || state[i] != 0 {
			return
		}
		state[i] = followed
		class, op := code[i].OpCode.Class(), code[i].OpCode.JumpOp()
		jumps := class.IsJump() && op != asm.Call && op != asm.Exit
		if !class.IsJump() || op != asm.Exit && op != asm.Ja {
			if !jumps && i+1 < len(code) && state[i+1] == followed {
				found = append(found, i)
			}
			follow(i + 1)
		}
		if to, ok := next[i]; ok {
			follow(to)
		}
		state[i] = done
	}
	follow(0)
	return found
}

// targets maps the jumps and the calls of functions to where they lead.
func targets(t *testing.T, code asm.Instructions) map[int]int {
	t.Helper()
	names, places := map[string]int{}, map[asm.RawInstructionOffset]int{}
	for it := code.Iterate(); it.Next(); {
		places[it.Offset] = it.Index
		if name := it.Ins.Symbol(); name != "" {
			names[name] = it.Index
		}
	}
	out := map[int]int{}
	for it := code.Iterate(); it.Next(); {
		op := it.Ins.OpCode.JumpOp()
		if !it.Ins.IsFunctionCall() && (!it.Ins.OpCode.Class().IsJump() || op == asm.Call || op == asm.Exit) {
			continue
		}
		to, ok := names[it.Ins.Reference()]
		if !ok {
			to, ok = places[asm.RawInstructionOffset(int64(it.Offset)+int64(it.Ins.Offset)+1)]
		}
		if !ok {
			t.Fatalf("instruction %d (%v) leads nowhere", it.Index, it.Ins)
		}
		out[it.Index] = to
	}
	return out
}
