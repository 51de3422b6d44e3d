package main

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// suite is one test binary and what is asked of it.
type suite struct {
	name    string
	pkg     string        // import path without the module
	run     string        // -test.run; empty: all
	must    []string      // tests that a skip does not excuse
	data    []string      // patterns, below the package's folder, of files its tests read
	timeout time.Duration // of the whole suite
	slow    int           // the factor in it
	product bool          // it starts the product's binary
	paced   bool          // it wants the paced clock, see machine.processors
	args    []string      // instead of a test binary: what is run, with the pattern, in the folder of its data
}

// suites are run in this order: first those that only work, then, in a machine
// with a paced clock, those with daemons whose timers must not run out.
var suites = []suite{
	{name: "programs", pkg: "bpf", data: []string{"*_bpfel.o"}, args: []string{"/init", programsCommand, "*_bpfel.o"}, timeout: 8 * time.Minute},
	{name: "bpf", pkg: "bpf", data: []string{"testdata", "c", "*.go"}, timeout: 12 * time.Minute},
	{name: "announce", pkg: "node/announce", timeout: 2 * time.Minute},
	{name: "host", pkg: "node/host", timeout: 2 * time.Minute},
	{
		name: "sctp", pkg: "node/e2e", run: "^TestSCTP", must: []string{"TestSCTPAssociationBetweenTwoHosts", "TestSCTPAssociationThroughAService", "TestSCTPAssociationSurvivesTheMastersPowerLoss"},
		timeout: 4 * time.Minute, product: true, paced: true,
	},
	{
		name: "clock", pkg: "node/e2e", run: "^TestAStepOfTheClock", must: []string{"TestAStepOfTheClockHurtsNobody"},
		timeout: 3 * time.Minute, product: true, paced: true,
	},
	{name: "e2e", pkg: "node/e2e", run: "^(" + strings.Join(clusterTests, "|") + ")$", must: clusterTests, timeout: 8 * time.Minute, product: true, paced: true},
}

// clusterTests are those of node/e2e that say most about a kernel for their
// time: forming, failing over, restarting, coming and going.
var clusterTests = []string{
	"TestThreeNodesFormACluster",
	"TestConnectionsSurviveTheMastersPowerLoss",
	"TestNobodyNoticesTheDeathOfADaemon",
	"TestADrainedEndpointKeepsWhatItHas",
	"TestALabLeavesNothingBehind",
}

func suiteNames() []string {
	var out []string
	for _, s := range suites {
		out = append(out, s.name)
	}
	return out
}

// chosen are the suites that the command line asks for.
func chosen(o options) ([]suite, error) {
	out := slices.Clone(suites)
	if len(o.suites) > 0 {
		out = slices.DeleteFunc(out, func(s suite) bool { return !slices.Contains(o.suites, s.name) })
	}
	for _, name := range o.suites {
		if !slices.Contains(suiteNames(), name) {
			return nil, fmt.Errorf("no suite is called %q; there are %s", name, strings.Join(suiteNames(), ", "))
		}
	}
	for i := range out {
		if o.run != "" {
			out[i].run, out[i].must = o.run, nil
		}
		out[i].slow = max(o.slow, 1)
		out[i].timeout *= time.Duration(out[i].slow)
	}
	return out, nil
}

// Places in the guest.
const (
	guestTests   = "tests"
	guestProduct = guestTests + "/pontoon"
	guestJobs    = guestTests + "/jobs.json"
)

// patience stretches the deadlines of tests that wait for whole clusters and of
// those that measure time.
const patience = 6

// job is the suite as the guest runs it.
func (s suite) job() job {
	dir := "/" + guestTests + "/" + s.pkg
	if s.args != nil {
		return job{Name: s.name, Dir: dir, Timeout: s.timeout, Args: append(slices.Clone(s.args), s.run)}
	}
	j := job{
		Name: s.name, Dir: dir, Timeout: s.timeout,
		Args: []string{s.binary(), "-test.v", "-test.timeout=" + s.timeout.String()},
		Env:  []string{"PONTOON_REQUIRE_PRIV=1", fmt.Sprintf("PONTOON_TEST_PATIENCE=%d", patience*s.slow)},
	}
	if s.run != "" {
		j.Args = append(j.Args, "-test.run="+s.run)
	}
	if s.product {
		j.Args = append(j.Args, "-test.parallel=1") // an emulated machine bears one cluster
		j.Env = append(j.Env, "PONTOON_BINARY=/"+guestProduct)
	}
	return j
}

// binary is the suite's test binary in the guest; suites of one package share it.
func (s suite) binary() string {
	return "/" + guestTests + "/" + strings.ReplaceAll(s.pkg, "/", "-") + ".test"
}

// assemble builds the tests of a machine's suites and puts them behind the base
// image into a file; the kernel unpacks one archive after the other.
func assemble(ctx context.Context, m machine, initrd string) error {
	if err := copyFile(initrd, m.base.archive); err != nil {
		return fmt.Errorf("copy base image: %w", err)
	}
	f, err := os.OpenFile(initrd, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	return writeImage(f, func(c *cpioWriter) error {
		if err := addSelf(c); err != nil {
			return err
		}
		return addSuites(ctx, c, m)
	})
}

// addSelf makes this program the guest's first process. It must not need
// libraries: a build without cgo does not.
func addSelf(c *cpioWriter) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	f, err := elf.Open(self)
	if err != nil {
		return fmt.Errorf("look at this program: %w", err)
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return errors.New("this program needs shared libraries and cannot be the guest's first process: build it with CGO_ENABLED=0")
	}
	return addFile(c, "init", self)
}

// addSuites puts what the suites need and the list of them into the image.
func addSuites(ctx context.Context, c *cpioWriter, m machine) error {
	var jobs []job
	for _, s := range m.suites {
		jobs = append(jobs, s.job())
		if err := s.addData(ctx, c); err != nil {
			return err
		}
		if s.args != nil {
			continue
		}
		if err := s.addBinary(ctx, c, m.work); err != nil {
			return err
		}
		if !s.product || c.known[guestProduct] {
			continue
		}
		if err := addFile(c, guestProduct, m.binary); err != nil {
			return fmt.Errorf("%w (build it first: make build)", err)
		}
	}
	raw, err := json.Marshal(jobs)
	if err != nil {
		return fmt.Errorf("write jobs: %w", err)
	}
	return c.file(guestJobs, 0o644, int64(len(raw)), bytes.NewReader(raw))
}

// addBinary builds the suite's tests, unless another suite of the package has.
func (s suite) addBinary(ctx context.Context, c *cpioWriter, work string) error {
	name := strings.TrimPrefix(s.binary(), "/")
	if c.known[name] {
		return nil
	}
	bin := filepath.Join(work, filepath.Base(name))
	if _, err := output(ctx, "", "go", "test", "-c", "-tags", "pontoon_vm", "-trimpath", "-ldflags", "-s -w", "-o", bin, "pontoon/"+s.pkg); err != nil {
		return err
	}
	return addFile(c, name, bin)
}

// addData puts the files that the suite reads where it looks for them.
func (s suite) addData(ctx context.Context, c *cpioWriter) error {
	home := guestTests + "/" + s.pkg
	if err := c.dir(home, 0o755); err != nil {
		return err
	}
	out, err := output(ctx, "", "go", "list", "-f", "{{.Dir}}", "pontoon/"+s.pkg)
	if err != nil {
		return err
	}
	src := strings.TrimSpace(string(out))
	for _, pattern := range s.data {
		found, err := filepath.Glob(filepath.Join(src, pattern))
		if err != nil {
			return fmt.Errorf("find %s: %w", pattern, err)
		}
		for _, top := range found {
			err := filepath.WalkDir(top, func(file string, d fs.DirEntry, err error) error {
				name := home + strings.TrimPrefix(file, src)
				if err != nil || !d.Type().IsRegular() || c.known[name] {
					return err
				}
				return addFile(c, name, file)
			})
			if err != nil {
				return fmt.Errorf("add data of %s: %w", s.pkg, err)
			}
		}
	}
	return nil
}
