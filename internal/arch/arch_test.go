// Package arch holds the walls of the house: which package may import which,
// and behind which package each larger library stays.
package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rooms lists for each package the packages of ours it may import, outside
// tests. A room that is not here fails the test: decide where it belongs.
var rooms = map[string][]string{
	"cmd/pontoon":          {"node", "web", "fsm", "internal/lab", "internal/lab/router", "internal/logging", "internal/priority", "internal/sdnotify"},
	"node":                 {"web", "transport", "bpf", "fsm", "node/plan", "node/host", "node/announce", "node/detect", "node/health", "node/stable"},
	"node/plan":            {"fsm", "bpf"},
	"web":                  {"fsm"},
	"fsm":                  {},
	"bpf":                  {},
	"transport":            {},
	"node/host":            {},
	"node/announce":        {},
	"node/detect":          {},
	"node/health":          {},
	"node/stable":          {},
	"node/e2e":             {},
	"internal/lab":         {"internal/lab/backend", "internal/lab/traffic"},
	"internal/lab/router":  {"internal/lab", "node/announce", "node/detect"}, // a router made of the product's own BGP and BFD
	"internal/lab/backend": {"internal/lab/traffic"},
	"internal/lab/traffic": {},
	"internal/lab/impair":  {},
	"internal/lab/arping":  {},
	"internal/logging":     {},
	"internal/priority":    {},
	"internal/sdnotify":    {},
	"internal/arch":        {},
}

// fences lists who may import a library, itself or what is below it.
var fences = map[string][]string{
	"github.com/cilium/ebpf":              {"bpf", "internal/lab/impair"}, // the lab's bad cables are no part of the product
	"github.com/vishvananda/netlink":      {"bpf", "node/host", "internal/lab", "internal/lab/router"},
	"github.com/vishvananda/netns":        {"node/host", "internal/lab", "bpf"},
	"github.com/mdlayher/packet":          {"node/announce"},
	"github.com/osrg/gobgp":               {"node/announce"}, // and there only by some files: see below
	"github.com/hashicorp/raft":           {"node", "transport"},
	"github.com/hashicorp/raft-boltdb":    {"node"},
	"github.com/hashicorp/memberlist":     {"transport"},
	"github.com/danielgtaylor/huma":       {"web"},
	"github.com/spf13/cobra":              {"cmd/pontoon"},
	"github.com/goccy/go-yaml":            {"cmd/pontoon"},
	"github.com/prometheus/client_golang": {"web", "node"},
	"os/exec":                             {"internal/lab"},
	"testing":                             {},
	"C":                                   {},
}

// listed is what go list says of one package.
type listed struct {
	ImportPath string
	Imports    []string
}

func packages(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "pontoon/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var all []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		p.ImportPath = strings.TrimPrefix(p.ImportPath, "pontoon/")
		all = append(all, p)
	}
}

func TestImportsPointOneWay(t *testing.T) {
	all := packages(t)
	if len(all) < 10 {
		t.Fatalf("only %d packages found", len(all))
	}
	for _, p := range all {
		if strings.HasSuffix(p.ImportPath, "test") || strings.Contains(p.ImportPath, "/testdata/") {
			continue // helpers of tests only
		}
		may, known := rooms[p.ImportPath]
		if !known {
			t.Errorf("%s has no place in the house yet: give it one in this test and in the design", p.ImportPath)
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, "pontoon/"); ok && !slices.Contains(may, ours) {
				t.Errorf("%s must not import %s", p.ImportPath, ours)
			}
		}
	}
}

func TestLibrariesStayBehindTheirFences(t *testing.T) {
	for _, p := range packages(t) {
		if strings.HasSuffix(p.ImportPath, "test") || strings.Contains(p.ImportPath, "/testdata/") {
			continue
		}
		for _, imp := range p.Imports {
			for lib, may := range fences {
				if (imp == lib || strings.HasPrefix(imp, lib+"/")) && !slices.Contains(may, p.ImportPath) {
					t.Errorf("%s must not import %s (only %v may)", p.ImportPath, imp, may)
				}
			}
		}
	}
}

// GoBGP is to stay replaceable: only the files named after it may import it.
func TestGoBGPStaysInItsFiles(t *testing.T) {
	files, err := filepath.Glob("../../node/announce/*.go")
	if err != nil {
		t.Fatal(err)
	}
	importers := 0
	for _, file := range files {
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range f.Imports {
			if !strings.HasPrefix(strings.Trim(imp.Path.Value, `"`), "github.com/osrg/gobgp/") {
				continue
			}
			importers++
			if !strings.HasPrefix(filepath.Base(file), "bgp_gobgp") {
				t.Errorf("%s must not import %s: only bgp_gobgp*.go may", filepath.Base(file), imp.Path.Value)
			}
		}
	}
	if importers == 0 {
		t.Error("nobody imports GoBGP: is this test looking in the right place?")
	}
}
