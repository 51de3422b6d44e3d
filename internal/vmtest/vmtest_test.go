package main

import (
	"archive/tar"
	"bytes"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// cpioEntry is one entry as the kernel reads it.
type cpioEntry struct {
	name string
	mode int64
	data string
}

// readCPIO reads the newc form, and fails on anything misaligned.
func readCPIO(t *testing.T, b []byte) []cpioEntry {
	t.Helper()
	var out []cpioEntry
	align := func(n int) int { return (n + 3) &^ 3 }
	for at := 0; at < len(b); {
		head := string(b[at : at+110])
		if head[:6] != "070701" {
			t.Fatalf("no entry at %d but %q", at, head)
		}
		field := func(i int) int64 {
			var n int64
			for _, c := range head[6+8*i : 14+8*i] {
				n = n<<4 | int64(strings.IndexRune("0123456789abcdef", c))
			}
			return n
		}
		size, nameSize := int(field(6)), int(field(11))
		name := string(b[at+110 : at+110+nameSize-1])
		at = align(at + 110 + nameSize)
		out = append(out, cpioEntry{name, field(1), string(b[at : at+size])})
		at = align(at + size)
	}
	return out
}

func TestArchiveHoldsWhatTheKernelUnpacks(t *testing.T) {
	var buf bytes.Buffer
	c := newCPIO(&buf)
	for _, err := range []error{
		c.charDevice("dev/console", 0o600, 5, 1),
		c.dir("usr/bin", 0o755),
		c.symlink("bin", "usr/bin"),
		c.file("usr/bin/five", 0o755, 5, strings.NewReader("12345")),
		c.file("usr/bin/none", 0o644, 0, strings.NewReader("")),
		c.close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := []cpioEntry{
		{"dev", 0o040755, ""},
		{"dev/console", 0o020600, ""},
		{"usr", 0o040755, ""},
		{"usr/bin", 0o040755, ""},
		{"bin", 0o120777, "usr/bin"},
		{"usr/bin/five", 0o100755, "12345"},
		{"usr/bin/none", 0o100644, ""},
		{"TRAILER!!!", 0, ""},
	}
	if d := cmp.Diff(want, readCPIO(t, buf.Bytes()), cmp.AllowUnexported(cpioEntry{})); d != "" {
		t.Error(d)
	}
}

func TestArchiveRefusesAFileThatIsShorterThanSaid(t *testing.T) {
	var buf bytes.Buffer
	if err := newCPIO(&buf).file("x", 0o644, 5, strings.NewReader("123")); err == nil {
		t.Error("no error")
	}
}

func TestPackagesAreUnpackedIntoAMergedUsr(t *testing.T) {
	for name, want := range map[string]string{
		"./bin/kmod":            "usr/bin/kmod",
		"./lib/x86_64/libc.so":  "usr/lib/x86_64/libc.so",
		"./usr/bin/socat":       "usr/bin/socat",
		"./etc/services":        "etc/services",
		"./library/not-a-match": "library/not-a-match",
	} {
		if got := imagePath(name); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
	var buf bytes.Buffer
	c := newCPIO(&buf)
	for _, h := range []tar.Header{
		{Name: "./bin/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "./bin/a", Typeflag: tar.TypeLink, Linkname: "./bin/b"},
		{Name: "./usr/share/doc/x", Typeflag: tar.TypeReg, Mode: 0o644},
	} {
		if err := addPackaged(c, &h, strings.NewReader("")); err != nil {
			t.Fatal(err)
		}
	}
	want := []cpioEntry{{"usr", 0o040755, ""}, {"usr/bin", 0o040755, ""}, {"usr/bin/a", 0o120777, "/usr/bin/b"}}
	if d := cmp.Diff(want, readCPIO(t, buf.Bytes()), cmp.AllowUnexported(cpioEntry{})); d != "" {
		t.Error(d)
	}
}

func TestOnlyModulesWithoutHardwareAreTaken(t *testing.T) {
	for name, want := range map[string]bool{
		"net/sctp/sctp.ko":                  true,
		"drivers/net/veth.ko.xz":            true,
		"crypto/crc32c_generic.ko":          true,
		"drivers/net/ethernet/intel/ice.ko": false,
		"drivers/gpu/drm/drm.ko":            false,
	} {
		if got := wantedModule(name); got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestVerdictCountsTestsAndNamesWhatStandsOut(t *testing.T) {
	var v verdict
	l := &lineWriter{to: &bytes.Buffer{}, each: v.note}
	for _, part := range []string{
		"=== RUN   TestA\n--- PASS: TestA (0.1", "0s)\n--- FAIL: TestB (1.00s)\n    --- PASS: TestB/one (0.00s)\n",
		"    --- SKIP: TestB/two (0.00s)\nok\n    x_test.go:1: --- PASS: TestC (0.00s)\n",
	} {
		if _, err := l.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	want := verdict{Passed: 1, Passes: []string{"TestA"}, Failed: []string{"TestB"}, Skipped: []string{"TestB/two"}}
	if d := cmp.Diff(want, v); d != "" {
		t.Error(d)
	}
}

func TestSuccessNeedsEveryReport(t *testing.T) {
	booted, done := verdict{Job: bootJob}, verdict{Job: doneJob}
	good := verdict{Job: "a", Passes: []string{"TestX"}, Passed: 1}
	asked := []suite{{name: "a", must: []string{"TestX"}}}
	for _, tc := range []struct {
		name     string
		verdicts []verdict
		want     string // part of the error; empty: none
	}{
		{"all is well", []verdict{booted, good, done}, ""},
		{"never booted", nil, "first process"},
		{"died in the suite", []verdict{booted}, "did not report"},
		{"died at the end", []verdict{booted, good}, "come to its end"},
		{"a test failed", []verdict{booted, {Job: "a", Status: 1, Passes: []string{"TestX"}, Failed: []string{"TestY"}}, done}, "TestY"},
		{"a test that must pass was skipped", []verdict{booted, {Job: "a", Skipped: []string{"TestX"}}, done}, "TestX must pass"},
		{"the suite was killed", []verdict{booted, {Job: "a", Status: -1, Error: "was killed", Passes: []string{"TestX"}}, done}, "was killed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var out bytes.Buffer
			err := judge(&out, asked, tc.verdicts)
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

func TestEveryTestThatMustPassIsAskedFor(t *testing.T) {
	for _, s := range suites {
		for _, name := range s.must {
			if s.run != "" && !strings.Contains(s.run, name) && !strings.HasPrefix(name, strings.TrimPrefix(s.run, "^")) {
				t.Errorf("suite %s insists on %s and runs %s", s.name, name, s.run)
			}
		}
	}
	if _, err := chosen(options{suites: []string{"nonsense"}}); err == nil {
		t.Error("a suite that is not there was chosen")
	}
}

func TestHardwareIsUsedOnlyWhereTheProcessorHasIt(t *testing.T) {
	for info, want := range map[string]bool{
		"processor\t: 0\nflags\t\t: fpu vme svm sse\n": true,
		"flags\t\t: fpu vmx\n":                         true,
		"flags\t\t: fpu svm_lock\nbugs\t: svm vmx\n":   false,
		"": false,
	} {
		if got := hardwareVirtualisation([]byte(info)); got != want {
			t.Errorf("%q: %v", info, got)
		}
	}
}

func TestMachinesShareTheTerminalByWholeLines(t *testing.T) {
	var out bytes.Buffer
	var lock sync.Mutex
	a := &markedWriter{to: &out, lock: &lock, mark: "a| "}
	b := &markedWriter{to: &out, lock: &lock, mark: "b| "}
	for _, w := range []struct {
		w    *markedWriter
		text string
	}{{a, "one\ntw"}, {b, "other\n"}, {a, "o\nthree\n"}} {
		if n, err := w.w.Write([]byte(w.text)); n != len(w.text) || err != nil {
			t.Fatal(n, err)
		}
	}
	if want := "a| one\nb| other\na| two\na| three\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
