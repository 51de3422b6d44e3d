package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machine is one virtual machine that is to be run once.
type machine struct {
	options
	base   baseImage
	suites []suite
	paced  bool   // the guest's clock follows its instructions
	work   string // for files that are not kept
}

// result is what came of a run. Verdicts that arrived are there also with an
// error.
type result struct {
	verdicts []verdict
	ran      time.Duration
	err      error
}

// stopGrace is how long qemu may take to end after it was asked to.
const stopGrace = 5 * time.Second

// name tells the machine from others of the same kernel.
func (m machine) name() string { return m.base.release + "-" + m.suites[0].name }

// log is where a copy of the console goes.
func (m machine) log() string { return filepath.Join(m.cache, m.name()+".log") }

// run boots the machine and waits until it has powered off or its time is over.
// The console goes to w.
func (m machine) run(ctx context.Context, w io.Writer) (r result) {
	initrd := filepath.Join(m.work, m.name()+".initrd")
	if m.keep {
		initrd = filepath.Join(m.cache, m.name()+".initrd")
	}
	if r.err = assemble(ctx, m, initrd); r.err != nil {
		return r
	}
	limit := m.timeout * time.Duration(m.slow)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the machine was still running after %s", limit))
	defer cancel()
	report := filepath.Join(m.work, m.name()+".verdicts")
	began := time.Now()
	r.err = m.qemu(ctx, w, initrd, report)
	r.ran = time.Since(began)
	var err error
	r.verdicts, err = readVerdicts(report)
	r.err = errors.Join(r.err, err)
	return r
}

// qemu runs the emulator until it ends.
func (m machine) qemu(ctx context.Context, w io.Writer, initrd, report string) (err error) {
	console, err := os.Create(m.log())
	if err != nil {
		return fmt.Errorf("make console log: %w", err)
	}
	defer func() { err = errors.Join(err, console.Close()) }()
	cmd, err := command(ctx, "", "qemu-system-x86_64", m.args(initrd, report)...)
	if err != nil {
		return err
	}
	cmd.Stdout = io.MultiWriter(w, console)
	cmd.Stderr = cmd.Stdout
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	say("booting %s: %s, %d MiB", m.base.release, m.clock(), m.memory)
	err = cmd.Run()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("run qemu: %w", err)
	}
	return nil
}

// args is qemu's command line. -nodefaults leaves nothing but what is named;
// the kernel gives up instead of waiting when it panics, and -no-reboot makes
// that the end of qemu.
func (m machine) args(initrd, report string) []string {
	return append(m.processors(), []string{
		"-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "stdio", "-serial", "file:" + report,
		"-kernel", m.base.vmlinuz, "-initrd", initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic net.ifnames=0",
	}...)
}

// processors is the part of qemu's command line that says how fast the guest's
// clock goes.
//
// With the ordinary clock the guest has all processors, each emulated by a
// thread of its own, and feels every one of them to be ten times too slow. That
// is the quickest way through work that waits for nothing. Timers of 200 ms,
// as an election has them, then run out before the work between them is done.
//
// With the paced clock a nanosecond passes with each instruction, on one
// processor: to the guest it is as quick as a small real machine, whatever else
// the host has to do, and a wait in which nothing runs takes no time at all.
func (m machine) processors() []string {
	accel := m.acceleration()
	switch {
	case accel == "kvm":
		return []string{"-accel", "kvm", "-cpu", "max", "-smp", strconv.Itoa(m.cpus)}
	case m.paced:
		return []string{"-accel", "tcg", "-icount", "shift=0,sleep=off", "-cpu", "max", "-smp", "1"}
	}
	return []string{"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", strconv.Itoa(m.cpus)}
}

// acceleration is hardware's where the processor offers it to this machine.
// A /dev/kvm alone proves nothing: there are guests that have one and in
// which a machine never gets beyond its first instruction.
func (m machine) acceleration() string {
	if m.accel != "auto" {
		return m.accel
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !hardwareVirtualisation(info) {
		return "tcg"
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg"
	}
	f.Close()
	return "kvm"
}

// clock names the clock for the operator.
func (m machine) clock() string {
	switch {
	case m.acceleration() == "kvm":
		return fmt.Sprintf("%d processors by KVM", m.cpus)
	case m.paced:
		return "one emulated processor with a paced clock"
	}
	return fmt.Sprintf("%d emulated processors", m.cpus)
}

// hardwareVirtualisation reads /proc/cpuinfo.
func hardwareVirtualisation(info []byte) bool {
	for line := range bytes.Lines(info) {
		if name, flags, ok := strings.Cut(string(line), ":"); ok && strings.TrimSpace(name) == "flags" {
			for f := range strings.FieldsSeq(flags) {
				if f == "vmx" || f == "svm" {
					return true
				}
			}
		}
	}
	return false
}
