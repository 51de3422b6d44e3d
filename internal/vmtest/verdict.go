package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// job is one suite as the guest is told of it.
type job struct {
	Name    string        `json:"name"`
	Dir     string        `json:"dir"`
	Args    []string      `json:"args"`
	Env     []string      `json:"env,omitempty"`
	Timeout time.Duration `json:"timeout"`
}

// verdict is what the guest says of one job, or of itself: a line of JSON on
// the second serial port.
type verdict struct {
	// Job is the suite's name; bootJob and doneJob are the guest's own.
	Job     string   `json:"job"`
	Status  int      `json:"status"`          // exit status; -1: killed or not started
	Error   string   `json:"error,omitempty"` // why, when the status does not say it
	Seconds float64  `json:"seconds"`         // it took; of bootJob: since power on
	Passed  int      `json:"passed"`          // tests, without those within tests
	Skipped []string `json:"skipped,omitempty"`
	Failed  []string `json:"failed,omitempty"`
	Passes  []string `json:"passes,omitempty"` // names of the passed ones
	Notes   []string `json:"notes,omitempty"`  // of doneJob: what the kernel complained of
}

// The guest's own reports: the first and the last.
const (
	bootJob = "(boot)"
	doneJob = "(done)"
)

// outcome is a line by which a test binary reports a test or one within it.
var outcome = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

// note takes a line of a test's output into account.
func (v *verdict) note(line string) {
	m := outcome.FindStringSubmatch(line)
	if m == nil {
		return
	}
	switch inner := strings.Contains(m[2], "/"); {
	case m[1] == "FAIL":
		v.Failed = append(v.Failed, m[2])
	case m[1] == "SKIP":
		v.Skipped = append(v.Skipped, m[2])
	case !inner:
		v.Passed++
		v.Passes = append(v.Passes, m[2])
	}
}

// readVerdicts reads what the guest wrote. A line that is cut off ends it: the
// machine died there.
func readVerdicts(file string) ([]verdict, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read verdicts: %w", err)
	}
	var out []verdict
	for line := range bytes.Lines(raw) {
		var v verdict
		if err := json.Unmarshal(bytes.TrimSpace(line), &v); err != nil {
			return out, fmt.Errorf("read verdict %q: %w", line, err)
		}
		out = append(out, v)
	}
	return out, nil
}

// judge prints one line for each suite and what stands out, and returns what
// is wrong.
func judge(w io.Writer, suites []suite, verdicts []verdict) error {
	find := func(name string) *verdict {
		i := slices.IndexFunc(verdicts, func(v verdict) bool { return v.Job == name })
		if i < 0 {
			return nil
		}
		return &verdicts[i]
	}
	var errs []error
	if v := find(bootJob); v == nil {
		return errors.New("the machine never got as far as its first process; its console says why")
	} else {
		fmt.Fprintf(w, "\n%-10s %s: first process after %.1f s\n", "boot", strings.Join(v.Notes, " "), v.Seconds)
	}
	for _, s := range suites {
		v := find(s.name)
		if v == nil {
			fmt.Fprintf(w, "%-10s DID NOT REPORT\n", s.name)
			errs = append(errs, fmt.Errorf("suite %s did not report: the machine died before its end", s.name))
			continue
		}
		problems := s.problems(v)
		word := "ok"
		if len(problems) > 0 {
			word = "FAILED"
		}
		fmt.Fprintf(w, "%-10s %-6s %6.1f s, %d passed, %d failed, %d skipped\n", s.name, word, v.Seconds, v.Passed, len(v.Failed), len(v.Skipped))
		for _, name := range v.Failed {
			fmt.Fprintf(w, "           failed:  %s\n", name)
		}
		for _, name := range v.Skipped {
			fmt.Fprintf(w, "           skipped: %s\n", name)
		}
		errs = append(errs, problems...)
	}
	if v := find(doneJob); v == nil {
		errs = append(errs, errors.New("the machine did not come to its end"))
	} else {
		for _, n := range v.Notes {
			fmt.Fprintf(w, "%-10s %s\n", "kernel", n)
		}
	}
	return errors.Join(errs...)
}

// problems is what keeps the suite from having passed.
func (s suite) problems(v *verdict) []error {
	var errs []error
	switch {
	case v.Error != "":
		errs = append(errs, fmt.Errorf("suite %s: %s", s.name, v.Error))
	case v.Status != 0:
		errs = append(errs, fmt.Errorf("suite %s: exit status %d, failed: %s", s.name, v.Status, strings.Join(v.Failed, " ")))
	}
	for _, name := range s.must {
		if !slices.Contains(v.Passes, name) {
			errs = append(errs, fmt.Errorf("suite %s: %s must pass here and has not", s.name, name))
		}
	}
	return errs
}
