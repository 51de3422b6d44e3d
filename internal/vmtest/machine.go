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
	initrd string
	paced  bool   // the guest's clock follows its instructions
	work   string // where the second serial port's file is made
	log    string // gets a copy of the console
}

// stopGrace is how long qemu may take to end after it was asked to.
const stopGrace = 5 * time.Second

// run boots the machine and waits until it has powered off or its time is
// over. The verdicts that arrived are returned also with an error.
func (m machine) run(ctx context.Context) (verdicts []verdict, ran time.Duration, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, m.timeout, fmt.Errorf("the machine was still running after %s", m.timeout))
	defer cancel()
	console, err := os.Create(m.log)
	if err != nil {
		return nil, 0, fmt.Errorf("make console log: %w", err)
	}
	defer func() { err = errors.Join(err, console.Close()) }()
	report := filepath.Join(m.work, "verdicts")
	cmd, err := command(ctx, "", "qemu-system-x86_64", m.args(report)...)
	if err != nil {
		return nil, 0, err
	}
	cmd.Stdout = io.MultiWriter(os.Stdout, console)
	cmd.Stderr = cmd.Stdout
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	say("booting %s: %s, %d MiB", m.base.release, m.clock(), m.memory)
	began := time.Now()
	err = cmd.Run()
	ran = time.Since(began)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err != nil {
		err = fmt.Errorf("run qemu: %w", err)
	}
	verdicts, rerr := readVerdicts(report)
	return verdicts, ran, errors.Join(err, rerr)
}

// args is qemu's command line. -nodefaults leaves nothing but what is named;
// the kernel gives up instead of waiting when it panics, and -no-reboot makes
// that the end of qemu.
func (m machine) args(report string) []string {
	return append(m.processors(), []string{
		"-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "stdio", "-serial", "file:" + report,
		"-kernel", m.base.vmlinuz, "-initrd", m.initrd,
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
