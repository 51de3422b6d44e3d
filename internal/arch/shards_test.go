package arch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"pontoon/internal/roottest"
)

// shards are the targets that `make test` consists of.
var shards = []string{"test-unit", "test-bpf-1", "test-bpf-2", "test-routers", "test-e2e", "test-labs"}

// shard is one run of go test: the tests in packages that match run and do not match skip.
type shard struct {
	packages  []string
	run, skip *regexp.Regexp // nil: every test, no test
}

func (s shard) has(pkg, test string) bool {
	return slices.Contains(s.packages, pkg) && (s.run == nil || s.run.MatchString(test)) && (s.skip == nil || !s.skip.MatchString(test))
}

// parseShard reads the arguments of go test, of which the Makefile uses few.
func parseShard(args []string) (s shard, err error) {
	for i := 0; i < len(args) && err == nil; i++ {
		switch arg := args[i]; arg {
		case "-v":
		case "-timeout", "-p", "-run", "-skip":
			if i++; i == len(args) {
				return s, errors.New(arg + " without a value")
			}
			switch arg {
			case "-run":
				s.run, err = regexp.Compile(args[i])
			case "-skip":
				s.skip, err = regexp.Compile(args[i])
			}
		default:
			if strings.HasPrefix(arg, "-") {
				return s, fmt.Errorf("%s may choose tests: say here how", arg)
			}
			s.packages = append(s.packages, strings.Replace(arg, "./", "pontoon/", 1))
		}
	}
	return s, err
}

// inRoot runs a program in the module's root and returns what it says.
func inRoot(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = "../.."
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MAKE") }) // of the make that runs this test
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, complaint.String())
	}
	return string(out)
}

// readShards asks make for the recipes.
func readShards(t *testing.T) []shard {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		roottest.NeedProgram(t, "/usr/bin/make")
	}
	recipes := strings.ReplaceAll(inRoot(t, "make", append([]string{"-n", "GO=go"}, shards...)...), "\\\n", " ")
	var out []shard
	for line := range strings.Lines(recipes) {
		_, args, found := strings.Cut(strings.TrimSpace(line), "go test ")
		if !found {
			continue
		}
		s, err := parseShard(strings.Fields(inRoot(t, "sh", "-c", "echo "+args)))
		if err != nil {
			t.Fatalf("%s: %v", args, err)
		}
		out = append(out, s)
	}
	if len(out) != len(shards) {
		t.Fatalf("%d runs of go test in\n%s", len(out), recipes)
	}
	return out
}

// tests are the names of the tests of each package, as built without tags.
func tests(t *testing.T) map[string][]string {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Example)\w*)\(`)
	out := map[string][]string{}
	dec := json.NewDecoder(strings.NewReader(inRoot(t, "go", "list", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "./...")))
	for {
		var p struct {
			ImportPath, Dir           string
			TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return out
		} else if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(p.TestGoFiles, p.XTestGoFiles...) {
			raw, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range declared.FindAllStringSubmatch(string(raw), -1) {
				if m[1] != "TestMain" {
					out[p.ImportPath] = append(out[p.ImportPath], m[1])
				}
			}
		}
	}
}

// However the tests are spread over runs that are beside each other, `make test` runs each of them once.
func TestMakeTestRunsEveryTestOnce(t *testing.T) {
	all, runs := tests(t), readShards(t)
	if len(all["pontoon/node/e2e"]) < 50 || len(all["pontoon/bpf"]) < 50 {
		t.Fatalf("only %d packages with tests: is this test looking in the right place?", len(all))
	}
	busy := make([]int, len(runs))
	for pkg, names := range all {
		for _, name := range names {
			times := 0
			for i, s := range runs {
				if s.has(pkg, name) {
					busy[i]++
					times++
				}
			}
			if times != 1 {
				t.Errorf("%s.%s is run %d times", pkg, name, times)
			}
		}
	}
	for i, n := range busy {
		if n == 0 {
			t.Errorf("%s runs nothing", shards[i])
		}
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, recipe, _ := strings.Cut(string(makefile), "\ntest:\n")
	recipe, _, _ = strings.Cut(recipe, "\n\n")
	for _, target := range shards {
		if !slices.Contains(strings.FieldsFunc(recipe, func(r rune) bool { return strings.ContainsRune(" ;\t\n", r) }), target) {
			t.Errorf("make test leaves out %s:\n%s", target, recipe)
		}
	}
}
