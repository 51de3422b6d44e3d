package bpf

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
)

// echoUDP answers on port 8080 of both endpoints until the test ends.
func (l *lab) echoUDP() {
	for _, e := range l.endpoints {
		server := e.ListenUDP("0.0.0.0:8080")
		go func() {
			buffer := make([]byte, 65536)
			for {
				n, from, err := server.ReadFromUDPAddrPort(buffer)
				if err != nil {
					return
				}
				_, _ = server.WriteToUDPAddrPort(buffer[:n], from)
			}
		}()
	}
}

func TestTracingDisturbsNoTraffic(t *testing.T) {
	for _, hook := range []string{HookAuto, HookClsact, HookXDP, HookXDPGeneric} {
		t.Run(hook, func(t *testing.T) {
			l := newLab(t, false, 1)
			xdp := hook == HookXDP || hook == HookXDPGeneric
			if xdp {
				l.forXDP()
			}
			l.echoUDP()
			d := l.open(0, func(o *Options) { o.Hook = hook })
			runDataplane(t, d)
			l.sync(d, ModeFullNAT, protoUDP)
			c, err := l.client.Dial(&net.Dialer{}, "udp4", vipPort.String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			flow := pingPong(t, c)
			told := uint64(0)
			for range 2 {
				told += traceFor(t, d, 30, flow.answered)
			}
			sent, answered := flow.stop()
			t.Logf("%d datagrams, %d packets told", sent, told)
			if sent < 100 || answered != sent {
				t.Errorf("%d of %d datagrams were answered", answered, sent)
			}
			if n := d.Stats().Counters["xdp_forward"]; xdp && n == 0 {
				t.Error("XDP forwarded nothing between the sessions")
			}
			if told < 60 {
				t.Errorf("%d packets told", told)
			}
			for reason, n := range d.Stats().Drops {
				if n > 0 {
					t.Errorf("%d drops for %s", n, reason)
				}
			}
		})
	}
}

// traceFor traces the test's client until some more datagrams were answered.
func traceFor(t *testing.T, d *Dataplane, more uint64, answered func() uint64) uint64 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	started, done := make(chan struct{}), make(chan TraceSummary, 1)
	go func() {
		s, err := d.Trace(ctx, TraceFilter{Client: netip.PrefixFrom(client, 32)}, TraceNames{}, func() { close(started) },
			func(TraceEvent) error { return nil })
		if err != nil {
			t.Error(err)
		}
		done <- s
	}()
	<-started
	until := answered() + more
	eventually(t, "traffic", func() error {
		if n := answered(); n < until {
			return fmt.Errorf("%d answered, want %d", n, until)
		}
		return nil
	})
	cancel()
	return (<-done).Packets
}

// datagrams is a stream of datagrams that are to come back.
type datagrams struct {
	answered func() uint64
	stop     func() (sent, answered uint64)
}

// pingPong sends a datagram a millisecond, however many were answered.
func pingPong(t *testing.T, c net.Conn) datagrams {
	t.Helper()
	var sent, answered atomic.Uint64
	ctx, cancel := context.WithCancel(t.Context())
	sender, reader := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sender)
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for ctx.Err() == nil {
			if _, err := c.Write(binary.BigEndian.AppendUint64(nil, sent.Load())); err != nil {
				t.Error(err)
				return
			}
			sent.Add(1)
			<-ticker.C
		}
	}()
	go func() {
		defer close(reader)
		buffer := make([]byte, 64)
		for {
			if n, err := c.Read(buffer); err != nil || n != 8 {
				return
			}
			answered.Add(1)
		}
	}()
	return datagrams{answered: answered.Load, stop: func() (uint64, uint64) {
		cancel()
		<-sender
		_ = c.SetReadDeadline(time.Now().Add(time.Second))
		<-reader
		return sent.Load(), answered.Load()
	}}
}

// While nobody traces, the kernel holds no instruction of the tracer.
func TestNothingOfTheTracerIsInTheUsualPrograms(t *testing.T) {
	b := newBench(t, whole)
	if n := tracerReferences(t, b.programs); n != 0 {
		t.Errorf("%d references to the tracer's maps in the usual programs", n)
	}
	var traced programs
	var err error
	b.ns.Do(func() { traced, err = b.loadTraced(anyOfClient) })
	if err != nil {
		t.Fatal(err)
	}
	defer traced.close()
	if n := tracerReferences(t, traced); n < 10 {
		t.Errorf("%d references in the tracing programs: this test sees nothing", n)
	}
}

// tracerReferences counts how often the loaded instructions of a set name the tracer's maps.
func tracerReferences(t *testing.T, set programs) int {
	t.Helper()
	ids := map[uint32]bool{mapID(t, set.traces): true, mapID(t, set.buffer): true}
	n := references(t, set.entry, ids)
	for _, program := range tailsOf(t, set) {
		n += references(t, program, ids)
	}
	return n
}

// A packet's steps are told by the program it leaves by, whichever that is.
func TestEveryProgramTellsWhatWasTraced(t *testing.T) {
	b := newBench(t, whole)
	traced, err := b.loadTraced(anyOfClient)
	if err != nil {
		t.Fatal(err)
	}
	defer traced.close()
	for index, program := range tailsOf(t, traced) {
		tells := references(t, program, map[uint32]bool{mapID(t, traced.traces): true}) > 0
		if index == pontoonTailTAIL_GATE { // who asks for an address is no client's packet, and not traced
			if tells {
				t.Error("the gate tells of what nobody began to trace")
			}
			continue
		}
		if !tells {
			t.Errorf("%s returns without tc_done", tailPrograms[index])
		}
	}
}

// tailsOf are the programs that a set jumps to.
func tailsOf(t *testing.T, set programs) map[pontoonTail]*ebpf.Program {
	t.Helper()
	all := map[pontoonTail]*ebpf.Program{}
	for index := range tailPrograms {
		var id uint32
		if err := set.tails.Lookup(uint32(index), &id); err != nil {
			t.Fatal(err)
		}
		program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = program.Close() })
		all[index] = program
	}
	return all
}

func references(t *testing.T, program *ebpf.Program, maps map[uint32]bool) int {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	instructions, err := info.Instructions()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, i := range instructions {
		if i.IsLoadFromMap() && maps[uint32(i.Constant)] {
			n++
		}
	}
	return n
}

func mapID(t *testing.T, m *ebpf.Map) uint32 {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return uint32(id)
}
