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
	kernel string
	initrd string
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
	say("booting %s: %s, %d processors, %d MiB", filepath.Base(filepath.Dir(m.kernel)), m.acceleration(), m.cpus, m.memory)
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
	return []string{
		"-accel", m.acceleration(), "-cpu", "max", "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
		"-serial", "stdio", "-serial", "file:" + report,
		"-kernel", m.kernel, "-initrd", m.initrd,
		"-append", "console=ttyS0 loglevel=4 panic=-1 oops=panic net.ifnames=0",
	}
}

// acceleration is hardware's where the processor offers it to this machine.
// A /dev/kvm alone proves nothing: there are guests that have one and in
// which a machine never gets beyond its first instruction.
func (m machine) acceleration() string {
	const software = "tcg,thread=multi"
	switch m.accel {
	case "tcg":
		return software
	case "kvm":
		return "kvm"
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !hardwareVirtualisation(info) {
		return software
	}
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return software
	}
	f.Close()
	return "kvm"
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
