package bpftest

import (
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

func call(function string) asm.Instruction {
	return asm.Instruction{OpCode: asm.OpCode(asm.JumpClass).SetJumpOp(asm.Call), Src: asm.PseudoCall, Constant: -1}.WithReference(function)
}

func TestDeepestAndLongestChainAreNamed(t *testing.T) {
	p := &ebpf.ProgramSpec{Instructions: asm.Instructions{
		call("a").WithSymbol("main"), call("b"), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("a"), asm.Return(),
		call("c").WithSymbol("b"), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("c"), asm.Return(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("where a jump goes"), asm.Return(),
	}}
	deepest, longest, ok := Chains(p, "verification time 1 usec\nstack depth 8+200+33+0\nprocessed 9 insns", nil)
	if want := "256 of 512 bytes of stack: main 32 > a 224"; !ok || deepest.String() != want {
		t.Errorf("deepest chain is %q, want %q", deepest, want)
	}
	if want := "128 of 512 bytes of stack: main 32 > b 64 > c 32"; longest.String() != want {
		t.Errorf("longest chain is %q, want %q", longest, want)
	}
	if _, _, ok := Chains(p, "stack depth 8+8", nil); ok {
		t.Error("a log that speaks of other functions is believed")
	}
}
