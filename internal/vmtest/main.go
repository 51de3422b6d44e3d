package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	if os.Getpid() == 1 {
		powerOff(boot())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := dispatch(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmtest:", err)
		os.Exit(1)
	}
}

// dispatch tells the host's side from what runs inside the machine.
func dispatch(ctx context.Context, args []string) error {
	switch {
	case len(args) == 1 && args[0] == guestCommand:
		return runGuest(ctx)
	case len(args) == 3 && args[0] == programsCommand:
		return loadPrograms(os.Stdout, args[1], args[2])
	}
	return run(ctx, args)
}

// options is what the command line says.
type options struct {
	kernel  string        // the series, such as 6.1
	suites  []string      // names of suites; empty: all
	run     string        // replaces each suite's own choice of tests
	accel   string        // qemu's accelerator: auto, kvm or tcg
	memory  int           // MiB
	cpus    int           // of the machine
	timeout time.Duration // from power on to power off
	slow    int           // by how much all times are stretched
	cache   string        // folder of downloads, images and logs
	binary  string        // the product, for the suites that start it
	keep    bool          // keep the image that was booted
}

func parse(args []string) (options, error) {
	o := options{}
	fs := flag.NewFlagSet("vmtest", flag.ContinueOnError)
	fs.StringVar(&o.kernel, "kernel", "6.1", "kernel `series` of Debian to boot")
	suites := fs.String("suites", "", "comma separated `names`, all when empty: "+strings.Join(suiteNames(), ", "))
	fs.StringVar(&o.run, "run", "", "run only tests that match this `pattern`")
	fs.StringVar(&o.accel, "accel", "auto", "kvm, tcg or auto: kvm where the processor has it")
	fs.IntVar(&o.memory, "memory", 4096, "`MiB` of the machine")
	fs.IntVar(&o.cpus, "cpus", min(runtime.NumCPU(), 4), "processors of the machine")
	fs.DurationVar(&o.timeout, "timeout", 20*time.Minute, "how long a machine may run")
	fs.IntVar(&o.slow, "slow", 1, "give everything so many `times` the time, on a machine that is busy with other things")
	fs.StringVar(&o.cache, "cache", ".cache/vmtest", "`folder` of downloads, images and logs")
	fs.StringVar(&o.binary, "binary", "bin/pontoon", "the product's `file`")
	fs.BoolVar(&o.keep, "keep", false, "keep the booted image")
	if err := fs.Parse(args); err != nil {
		return o, flag.ErrHelp
	}
	if fs.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "vmtest: unexpected argument %q\n", fs.Arg(0))
		return o, flag.ErrHelp
	}
	if *suites != "" {
		o.suites = strings.Split(*suites, ",")
	}
	var err error
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return o, fmt.Errorf("find cache folder: %w", err)
	}
	return o, o.validate()
}

func (o options) validate() error {
	var errs []error
	if runtime.GOARCH != "amd64" {
		errs = append(errs, fmt.Errorf("the virtual machine is an amd64 one and this program was built for %s", runtime.GOARCH))
	}
	if o.accel != "auto" && o.accel != "kvm" && o.accel != "tcg" {
		errs = append(errs, fmt.Errorf("accelerator %q is not auto, kvm or tcg", o.accel))
	}
	if o.memory < 1024 {
		errs = append(errs, fmt.Errorf("%d MiB of memory are too little: the machine lives in it, 1024 at least", o.memory))
	}
	if o.slow < 1 {
		errs = append(errs, fmt.Errorf("nothing takes %d times as long", o.slow))
	}
	if o.cpus < 1 {
		errs = append(errs, fmt.Errorf("%d processors are not enough", o.cpus))
	}
	_, err := chosen(o)
	return errors.Join(append(errs, err)...)
}

// run prepares the image, boots it and judges what came back.
func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	suites, err := chosen(o)
	if err != nil {
		return err
	}
	if err := ensureTools(ctx); err != nil {
		return err
	}
	began := time.Now()
	base, err := ensureBase(ctx, o)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "pt-vmtest-")
	if err != nil {
		return fmt.Errorf("make work folder: %w", err)
	}
	defer os.RemoveAll(work)
	say("kernel and root file system ready after %.0f s: %s", time.Since(began).Seconds(), base.release)
	var machines []machine
	for _, paced := range []bool{false, true} {
		if group := paceGroup(suites, paced); len(group) > 0 {
			machines = append(machines, machine{options: o, base: base, paced: paced, suites: group, work: work})
		}
	}
	return runAll(ctx, machines)
}

// paceGroup are the suites that share a machine, and with it a clock.
func paceGroup(suites []suite, paced bool) []suite {
	return slices.DeleteFunc(slices.Clone(suites), func(s suite) bool { return s.paced != paced })
}

// runAll runs the machines at once: none of them keeps all processors busy, and
// the paced one does not notice the other. The errors are all of theirs.
func runAll(ctx context.Context, machines []machine) error {
	var all errgroup.Group
	results := make([]result, len(machines))
	var lock sync.Mutex
	for i, m := range machines {
		w := &markedWriter{to: os.Stdout, lock: &lock}
		if len(machines) > 1 {
			w.mark = fmt.Sprintf("%-5.5s| ", m.suites[0].name)
		}
		all.Go(func() error {
			results[i] = m.run(ctx, w)
			return nil
		})
	}
	_ = all.Wait() // the errors are in the results
	var errs []error
	for i, m := range machines {
		r := results[i]
		fmt.Printf("\n%s: %.0f s, console in %s\n", m.clock(), r.ran.Seconds(), m.log())
		errs = append(errs, r.err, judge(os.Stdout, m.suites, r.verdicts))
	}
	return errors.Join(errs...)
}

// markedWriter passes whole lines on, each with a mark before it.
type markedWriter struct {
	to   io.Writer
	lock *sync.Mutex // of to
	mark string
	rest []byte
}

func (m *markedWriter) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	end := bytes.LastIndexByte(m.rest, '\n') + 1
	if end == 0 {
		return len(p), nil
	}
	m.lock.Lock()
	defer m.lock.Unlock()
	for line := range bytes.Lines(m.rest[:end]) {
		if _, err := fmt.Fprintf(m.to, "%s%s", m.mark, line); err != nil {
			return 0, err
		}
	}
	m.rest = append(m.rest[:0], m.rest[end:]...)
	return len(p), nil
}

// say tells the operator what happens. The tests' own output is not marked.
func say(format string, args ...any) {
	fmt.Printf("vmtest: "+format+"\n", args...)
}
