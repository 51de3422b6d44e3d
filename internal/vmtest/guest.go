package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// guestCommand is this program's argument when it runs the suites as the
// child of the first process.
const guestCommand = "guest"

// boot is the first process: it prepares the machine, has a child run the
// suites, and buries every process that loses its parent meanwhile.
func boot() error {
	if err := mountAll(); err != nil {
		return err
	}
	// Tests with a thousand connections need the files; a child inherits it.
	files := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("raise limit of open files: %w", err)
	}
	child, err := syscall.ForkExec("/init", []string{"/init", guestCommand}, &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root", "TMPDIR=/tmp", "LC_ALL=C"}, Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return fmt.Errorf("start suites: %w", err)
	}
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for suites: %w", err)
		}
		if pid == child {
			if status.ExitStatus() != 0 {
				return fmt.Errorf("the runner of the suites ended with %d", status)
			}
			return nil
		}
	}
}

// powerOff ends the machine, whatever happened.
func powerOff(err error) {
	if err != nil {
		fmt.Println("vmtest:", err)
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func mountAll() error {
	var errs []error
	for _, m := range []struct{ what, where, kind, data string }{
		{"dev", "/dev", "devtmpfs", ""},
		{"proc", "/proc", "proc", ""},
		{"sys", "/sys", "sysfs", ""},
		{"bpf", "/sys/fs/bpf", "bpf", "mode=0700"},
		{"cgroup", "/sys/fs/cgroup", "cgroup2", ""},
	} {
		if err := unix.Mount(m.what, m.where, m.kind, 0, m.data); err != nil {
			errs = append(errs, fmt.Errorf("mount %s: %w", m.where, err))
		}
	}
	return errors.Join(errs...)
}

// runGuest runs every job and reports on the second serial port.
func runGuest(ctx context.Context) error {
	port, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("open second serial port: %w", err)
	}
	defer port.Close()
	report := json.NewEncoder(port)
	up, err := uptime()
	if err != nil {
		return err
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("ask for kernel's name: %w", err)
	}
	if err := report.Encode(verdict{Job: bootJob, Seconds: up, Notes: []string{unix.ByteSliceToString(uts.Release[:])}}); err != nil {
		return fmt.Errorf("report: %w", err)
	}
	if err := prepare(); err != nil {
		return err
	}
	raw, err := os.ReadFile("/" + guestJobs)
	if err != nil {
		return fmt.Errorf("read jobs: %w", err)
	}
	var jobs []job
	if err := json.Unmarshal(raw, &jobs); err != nil {
		return fmt.Errorf("read jobs: %w", err)
	}
	for _, j := range jobs {
		if err := report.Encode(j.run(ctx)); err != nil {
			return fmt.Errorf("report: %w", err)
		}
	}
	return report.Encode(verdict{Job: doneJob, Notes: complaints()})
}

// prepare does what a booted Debian would have done before anybody logs in.
// Modules other than SCTP's are loaded by the kernel as they are needed; this
// one is named because a test without it would be skipped.
func prepare() error {
	for _, args := range [][]string{{"ip", "link", "set", "lo", "up"}, {"modprobe", "sctp"}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// killGrace is what a suite gets beyond its time to print its stacks.
const killGrace = 20 * time.Second

// run starts the job's binary, passes on what it prints, and judges it.
func (j job) run(ctx context.Context) verdict {
	v := verdict{Job: j.Name}
	say("%s: %s", j.Name, strings.Join(j.Args, " "))
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, j.Timeout+killGrace)
	defer cancel()
	cmd := exec.CommandContext(ctx, j.Args[0], j.Args[1:]...)
	cmd.Dir, cmd.Env = j.Dir, append(os.Environ(), j.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second // for a grandchild that holds the pipe open
	lines := &lineWriter{to: os.Stdout, each: v.note}
	cmd.Stdout, cmd.Stderr = lines, lines
	err := cmd.Run()
	v.Seconds = time.Since(began).Seconds()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case ctx.Err() != nil:
		v.Status, v.Error = -1, fmt.Sprintf("was killed after %s", j.Timeout+killGrace)
	case errors.As(err, &exit):
		v.Status = exit.ExitCode()
	default:
		v.Status, v.Error = -1, err.Error()
	}
	say("%s: exit status %d after %.1f s", j.Name, v.Status, v.Seconds)
	return v
}

// lineWriter passes everything on and shows each whole line to a function.
type lineWriter struct {
	to   io.Writer
	each func(string)
	rest []byte
}

func (l *lineWriter) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			break
		}
		l.each(string(line))
		l.rest = rest
	}
	return l.to.Write(p)
}

// uptime is how long the kernel has been running, in seconds.
func uptime() (float64, error) {
	raw, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	first, _, _ := strings.Cut(string(raw), " ")
	up, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("read uptime: %w", err)
	}
	return up, nil
}

// complaints are lines of the kernel's log that nothing a test does should
// cause.
func complaints() []string {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return []string{"its log could not be read: " + err.Error()}
	}
	defer unix.Close(fd)
	var out []string
	buf := make([]byte, 8192) // one record each read
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EPIPE {
			continue // overwritten meanwhile: the next one is read
		}
		if err != nil || n <= 0 {
			return out
		}
		_, text, _ := strings.Cut(string(buf[:n]), ";")
		text, _, _ = strings.Cut(text, "\n")
		for _, word := range []string{"BUG:", "WARNING:", "Oops", "general protection", "rcu_sched", "hung task", "soft lockup", "leaked"} {
			if strings.Contains(text, word) {
				out = append(out, text)
				break
			}
		}
	}
}
