package bpf

import (
	"github.com/cilium/ebpf"
)

func (b *bench) errorsToXlat() {
	var id uint32
	if err := b.programs.tails.Lookup(uint32(pontoonTailTAIL_XLAT_ICMP), &id); err != nil {
		b.tb.Fatal(err)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		b.tb.Fatal(err)
	}
	defer p.Close()
	if err := b.programs.tails.Put(uint32(pontoonTailTAIL_ICMP), p); err != nil {
		b.tb.Fatal(err)
	}
}
