package lab

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketName    = "pontoon.sock"
	maxSocketPath = 107 // sockaddr_un.sun_path without its final zero, unix(7)
	clusterPort   = 7400
	gossipPort    = "7401"
	apiListen     = "127.0.0.1:7480"
	maxFlows      = "65536"
)

// cliTimeout bounds one call of the command line; a stopped daemon answers
// nothing.
const cliTimeout = 30 * time.Second

// Node is a load balancer: a host that runs the product's daemon.
type Node struct {
	*Host
	dir     string
	witness bool

	mu   sync.Mutex
	proc *Process // the newest daemon, nil before the first start
	args []string // see SetArgs
	file string   // see SetBinary
	off  bool     // without power: there is no namespace
}

func newNode(h *Host) (*Node, error) {
	n := &Node{Host: h, dir: filepath.Join(h.lab.dir, h.spec.name)}
	for _, d := range []string{n.DataDir(), n.RunDir()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make directory of %s: %w", h.spec.name, err)
		}
	}
	if size := h.lab.cfg.DiskSize; size > 0 {
		if err := unix.Mount("tmpfs", n.DataDir(), "tmpfs", 0, fmt.Sprintf("size=%d,mode=0700", size)); err != nil {
			return nil, fmt.Errorf("mount disk of %s: %w", h.spec.name, err)
		}
	}
	return n, nil
}

// DataDir is the node's disk; it survives a power loss.
func (n *Node) DataDir() string { return filepath.Join(n.dir, "data") }

// RunDir holds the node's socket.
func (n *Node) RunDir() string { return filepath.Join(n.dir, "run") }

// Socket is the path of the daemon's Unix socket.
func (n *Node) Socket() string { return filepath.Join(n.RunDir(), socketName) }

// PinDir is where the node's data plane is pinned.
func (n *Node) PinDir() string { return filepath.Join(n.lab.cfg.BPFFS, n.ns) }

// LogFile gets what the daemon writes to stdout and stderr, over all starts.
func (n *Node) LogFile() string { return filepath.Join(n.dir, "log") }

// ClusterAddress is where the other nodes find this one.
func (n *Node) ClusterAddress() netip.AddrPort {
	if n.lab.cfg.ClusterIPv6 {
		return netip.AddrPortFrom(n.Addr6(), clusterPort)
	}
	return netip.AddrPortFrom(n.Addr(), clusterPort)
}

// SetArgs gives this node arguments of its own, put behind all others, from
// its next start on.
func (n *Node) SetArgs(args ...string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.args = args
}

// SetBinary gives this node another build of the product, from its next start on.
func (n *Node) SetBinary(path string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.file = path
}

// RunArgs are the arguments the daemon is started with.
func (n *Node) RunArgs() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.runArgsLocked()
}

func (n *Node) runArgsLocked() []string {
	args := []string{
		"run", "--name", n.Name(), "--data-dir", n.DataDir(), "--run-dir", n.RunDir(),
		"--address", n.ClusterAddress().String(), "--gossip-port", gossipPort,
		"--api-listen", apiListen, "--pin-dir", n.PinDir(), "--max-flows", maxFlows,
	}
	if n.witness {
		args = append(args, "--role", "witness")
	} else {
		for _, i := range n.Interfaces() {
			args = append(args, "--interface", i)
		}
	}
	return append(append(args, n.lab.cfg.NodeArgs...), n.args...)
}

// Process is the newest daemon of the node, nil before the first Start.
func (n *Node) Process() *Process {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc
}

// Start runs the daemon and returns as soon as the process exists; see
// WaitUp. A daemon that still runs is an error.
func (n *Node) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start %s: %w", n.Name(), err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.startLocked()
}

func (n *Node) startLocked() error {
	switch {
	case n.lab.ctx.Err() != nil:
		return fmt.Errorf("start %s: %w", n.Name(), ErrClosed)
	case n.lab.cfg.Binary == "":
		return fmt.Errorf("start %s: the lab has no binary", n.Name())
	case n.off:
		return fmt.Errorf("start %s: it has no power", n.Name())
	case n.proc != nil && n.proc.Running():
		return fmt.Errorf("start %s: process %d still runs", n.Name(), n.proc.PID)
	}
	logf, err := os.OpenFile(n.LogFile(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: open log: %w", n.Name(), err)
	}
	defer logf.Close()
	cmd := exec.Command(cmp.Or(n.file, n.lab.cfg.Binary), n.runArgsLocked()...)
	cmd.Stdout, cmd.Stderr = logf, logf
	cmd.Dir = n.dir
	p, err := n.Host.Start(cmd)
	if err != nil {
		return err
	}
	n.proc = p
	return nil
}

// WaitUp waits until the daemon answers on its socket. It gives up at once
// when the process ends, with the last lines of its log.
func (n *Node) WaitUp(ctx context.Context) error {
	return WaitFor(ctx, n.Name()+" to answer on its socket", func(ctx context.Context) error {
		p := n.Process()
		if p == nil || !p.Running() {
			return fmt.Errorf("%w: the daemon has ended; its log ends with:\n%s", ErrGiveUp, tail(n.LogFile(), 5))
		}
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", n.Socket())
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// signal sends sig to the daemon.
func (n *Node) signal(sig os.Signal) error {
	p := n.Process()
	if p == nil || !p.Running() {
		return fmt.Errorf("send %v to %s: its daemon does not run", sig, n.Name())
	}
	return p.Signal(sig)
}

// Pause stops the daemon (SIGSTOP): user space is dead, the kernel goes on.
func (n *Node) Pause() error { return n.signal(syscall.SIGSTOP) }

// Resume ends a Pause.
func (n *Node) Resume() error { return n.signal(syscall.SIGCONT) }

// Kill ends the daemon with SIGKILL and waits until it is gone. The links
// stay up and the kernel keeps forwarding.
func (n *Node) Kill(ctx context.Context) error {
	p := n.Process()
	if p == nil {
		return nil
	}
	return p.Kill(ctx)
}

// Stacks ends the daemon, which tells in its log first where each of its goroutines stands (SIGQUIT).
func (n *Node) Stacks(ctx context.Context) error {
	if err := n.signal(syscall.SIGQUIT); err != nil {
		return err
	}
	p := n.Process()
	if err := p.Wait(ctx); p.Running() {
		return fmt.Errorf("end %s: %w", n.Name(), err)
	}
	return nil
}

// Terminate asks the daemon to end (SIGTERM) and waits until it is gone.
func (n *Node) Terminate(ctx context.Context) error {
	if err := n.signal(syscall.SIGTERM); err != nil {
		return err
	}
	p := n.Process()
	// A daemon may well exit with a status; that it is gone is what counts.
	if err := p.Wait(ctx); p.Running() {
		return fmt.Errorf("terminate %s: %w", n.Name(), err)
	}
	return nil
}

// PowerOff is a power loss: links down and the process killed at once, then
// the kernel's memory goes: pins, interfaces, addresses, the namespace. The
// links go first, so that no peer is told anything by the dying sockets.
func (n *Node) PowerOff(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.off {
		return nil
	}
	errs := []error{n.LinksDown()}
	n.off = true
	if n.proc != nil {
		errs = append(errs, n.proc.Kill(ctx))
	}
	errs = append(errs, removePins(n.PinDir()), n.destroy())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("power %s off: %w", n.Name(), err)
	}
	return nil
}

// PowerOn boots the node again: a fresh kernel on the kept data directory and
// the same hardware addresses, links up, daemon started.
func (n *Node) PowerOn(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("power %s on: %w", n.Name(), err)
	}
	if !n.off {
		return fmt.Errorf("power %s on: it has power", n.Name())
	}
	if err := n.build(); err != nil {
		return fmt.Errorf("power %s on: %w", n.Name(), err)
	}
	n.off = false
	return n.startLocked()
}

// Powered says whether the node has power.
func (n *Node) Powered() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.off
}

// CLI runs the product's command line against the node's daemon and returns
// its stdout. The error holds what it wrote to stderr. It is cut off after
// 30 s, or when ctx ends.
func (n *Node) CLI(ctx context.Context, args ...string) (stdout string, err error) {
	ctx, cancel := context.WithTimeout(ctx, cliTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, n.lab.cfg.Binary, append([]string{"--socket", n.Socket()}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		said := strings.TrimSpace(errOut.String())
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return out.String(), fmt.Errorf("pontoon %s on %s: %w: %s", commandWords(args), n.Name(), err, said)
	}
	return out.String(), nil
}

// commandWords is the part of a command line before its flags, for messages:
// tokens are given as flags and belong into no message.
func commandWords(args []string) string {
	for i, a := range args {
		if strings.HasPrefix(a, "-") {
			return strings.Join(args[:i], " ")
		}
	}
	return strings.Join(args, " ")
}
