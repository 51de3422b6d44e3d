package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is one process the lab has started. Its methods are safe for
// concurrent use.
type Process struct {
	// PID is the process id, also of its process group.
	PID   int
	cmd   *exec.Cmd
	start uint64        // start time in clock ticks since boot: tells a reused id
	done  chan struct{} // closed when the process has been reaped
	err   error         // of Wait; valid once done is closed
}

// Done is closed when the process has ended and was reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running says whether the process has not ended yet. A stopped one runs.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the end of the process and returns its exit error, or the
// error of ctx.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("wait for process %d: %w", p.PID, context.Cause(ctx))
	}
}

// Signal sends sig to the process. One that has ended is no error.
func (p *Process) Signal(sig os.Signal) error {
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to process %d: %w", sig, p.PID, err)
	}
	return nil
}

// Kill sends SIGKILL to the whole process group and waits until the process
// is reaped.
func (p *Process) Kill(ctx context.Context) error {
	if p.Running() {
		if err := unix.Kill(-p.PID, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("kill process group %d: %w", p.PID, err)
		}
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for killed process %d: %w", p.PID, context.Cause(ctx))
	}
}

// launch is one request to the launcher.
type launch struct {
	ns    string // "" for the namespace of the lab itself
	cmd   *exec.Cmd
	reply chan error
}

// runLauncher starts processes until the lab is closed. It holds one thread
// for its whole life, for two reasons: a process is born in the namespace its
// parent thread is in, and PR_SET_PDEATHSIG fires when the thread that forked
// ends, so that no thread of the runtime's pool may fork.
func (l *Lab) runLauncher() error {
	defer close(l.launcherDone)
	runtime.LockOSThread()
	for {
		select {
		case req := <-l.launches:
			err, stranded := launchOne(req)
			req.reply <- err
			if stranded {
				return err
			}
		case <-l.ctx.Done():
			// The thread goes back to the pool and does not end, so nothing
			// that still runs is hit by the signal.
			runtime.UnlockOSThread()
			return nil
		}
	}
}

// launchOne starts one process. It is stranded when the thread could not be
// brought home and must not be used again.
func launchOne(l launch) (err error, stranded bool) {
	if l.ns == "" {
		return l.cmd.Start(), false
	}
	restore, err := enterNS(l.ns)
	if err != nil {
		return err, false
	}
	err = l.cmd.Start()
	if rerr := restore(); rerr != nil {
		return errors.Join(err, rerr), true
	}
	return err, false
}

// start runs cmd in the named namespace, in a process group of its own, and
// reaps it when it ends.
func (l *Lab) start(ns string, cmd *exec.Cmd) (*Process, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if l.cfg.Detach {
		cmd.SysProcAttr.Setsid = true
	} else {
		cmd.SysProcAttr.Setpgid = true
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	req := launch{ns: ns, cmd: cmd, reply: make(chan error, 1)}
	select {
	case l.launches <- req:
	case <-l.launcherDone:
		return nil, fmt.Errorf("start %s: %w", cmd.Path, ErrClosed)
	}
	if err := <-req.reply; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &Process{PID: cmd.Process.Pid, cmd: cmd, done: make(chan struct{})}
	// Read before anybody reaps: the id cannot be reused yet.
	p.start, _ = startTime(p.PID)
	l.group.Go(func() error {
		p.err = cmd.Wait()
		close(p.done)
		return nil // how it ended is told to whoever waits for it
	})
	if err := l.addProcess(p); err != nil {
		return nil, errors.Join(err, p.Kill(context.Background()))
	}
	return p, nil
}

// startTime reads when the process was started, in clock ticks since boot.
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read start time of process %d: %w", pid, err)
	}
	return parseStartTime(string(raw))
}

// parseStartTime finds field 22 of /proc/PID/stat (proc(5)). The command's
// name, field 2, may hold spaces and parentheses, hence the search from the
// end.
func parseStartTime(stat string) (uint64, error) {
	const afterName = 22 - 3 // fields behind the name begin with number 3
	i := strings.LastIndexByte(stat, ')')
	fields := strings.Fields(stat[i+1:])
	if i < 0 || len(fields) <= afterName {
		return 0, errors.New("parse process state: too few fields")
	}
	t, err := strconv.ParseUint(fields[afterName], 10, 64)
	if err != nil {
		return 0, fmt.Errorf("parse process state: start time: %w", err)
	}
	return t, nil
}
