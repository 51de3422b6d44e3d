// Command pontoon is the daemon and its command line in one binary. It is
// thin: flags, files and printing. `run` and `demo` do their work in other
// packages of this module; every other command speaks HTTP to a daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// The exit statuses, part of the contract with scripts.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed; standard error says what and how to mend it
	exitUsage  = 2 // wrong usage
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is the whole program but for the process: arguments in, exit status out.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	// The first signal asks, the second one kills as signals do by default.
	context.AfterFunc(ctx, stop)

	a := &app{in: stdin, out: stdout, err: stderr, getenv: os.Getenv}
	root := newRoot(a)
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	var usage usageError
	if err != nil && !a.began && !errors.As(err, &usage) {
		err = usageError{err} // cobra refused the command line before any command ran
	}
	return report(stderr, cmd, err)
}

// report prints err for a person and returns the exit status that belongs to it.
func report(stderr io.Writer, cmd *cobra.Command, err error) int {
	if err == nil {
		return exitDone
	}
	var usage usageError
	if errors.As(err, &usage) {
		_, _ = fmt.Fprintf(stderr, "pontoon: %s\nusage: %s (more: %s --help)\n",
			strings.ReplaceAll(usage.Error(), "\n", "; "), usageLine(cmd), cmd.CommandPath())
		return exitUsage
	}
	// One line, or one for each thing that is wrong: joined errors are lines.
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSuffix(line, "\n")
		if what, interrupted := strings.CutSuffix(line, context.Canceled.Error()); interrupted {
			line = what + "interrupted"
		}
		_, _ = fmt.Fprintf(stderr, "pontoon: %s\n", line)
	}
	return exitFailed
}

// app is what the commands share: the process's streams and environment, and
// how to reach the daemon.
type app struct {
	in     io.Reader
	out    io.Writer
	err    io.Writer
	getenv func(string) string
	conn   connFlags
	began  bool // a command's own code has begun: errors are no longer about usage
}

// printf writes to standard output. A reader that went away (a closed pipe)
// ends the process by signal, so there is nobody to tell about an error.
func (a *app) printf(format string, args ...any) { _, _ = fmt.Fprintf(a.out, format, args...) }

// notef writes a remark to standard error, away from what scripts read.
func (a *app) notef(format string, args ...any) { _, _ = fmt.Fprintf(a.err, format, args...) }

func newRoot(a *app) *cobra.Command {
	root := group("pontoon", "A layer-4 load balancer whose connections outlive its machines",
		`Pontoon turns three or more Linux machines into one layer-4 load balancer that
keeps its connections when a machine dies.

Every command but run and demo talks to the daemon of this machine through its
Unix socket, or to any node's API with --server and a token. A change may be
given to any node; the answer comes once it is committed.

Exit status: 0 done, 1 refused or failed (standard error says what and how to
mend it), 2 wrong usage.`)
	root.Example = `  pontoon demo                 see it work on this machine, as root
  pontoon run --address 192.168.80.11:7400 --interface eth1
  pontoon status`
	root.Version = versionString()
	root.SetVersionTemplate("pontoon {{.Version}}\n")
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	a.conn.addTo(root.PersistentFlags(), a.getenv)
	addGroup(root, "begin", "Begin and end:",
		newDemoCmd(a), newRunCmd(a), newInitCmd(a), newJoinCmd(a), newLeaveCmd(a), newRecoverCmd(a), newTokenCmd(a))
	addGroup(root, "look", "Look:",
		newStatusCmd(a), newEventsCmd(a), newConntrackCmd(a), newReplicationCmd(a), newTraceCmd(a), newBFDCmd(a))
	addGroup(root, "change", "Change what is served, and by whom:",
		newVIPCmd(a), newPoolCmd(a), newServiceCmd(a), newEndpointCmd(a), newInstanceCmd(a), newBGPCmd(a), newNodeCmd(a))
	root.SetHelpCommand(newHelpCmd())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	a.noteBeginning(root)
	return root
}

func addGroup(root *cobra.Command, id, title string, commands ...*cobra.Command) {
	root.AddGroup(&cobra.Group{ID: id, Title: title})
	for _, c := range commands {
		c.GroupID = id
		root.AddCommand(c)
	}
}

// noteBeginning makes every command below cmd note that its own code has begun.
func (a *app) noteBeginning(cmd *cobra.Command) {
	if inner := cmd.RunE; inner != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			a.began = true
			return inner(cmd, args)
		}
	}
	for _, sub := range cmd.Commands() {
		a.noteBeginning(sub)
	}
}
