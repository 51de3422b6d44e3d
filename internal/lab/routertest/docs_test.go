package routertest

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the pages show of a configuration is a part of the file that the tests run, word for word.
func TestPagesShowWhatIsTested(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	snippet := regexp.MustCompile("(?s)<!-- from (\\S+) -->\n```\n(.*?)\n```")
	for page, least := range map[string]int{"README.md": 2, "docs/operations/bgp.md": 1} {
		raw, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		found := snippet.FindAllStringSubmatch(string(raw), -1)
		if len(found) < least {
			t.Errorf("%s shows %d configurations, want %d", page, len(found), least)
		}
		for _, m := range found {
			file, err := os.ReadFile(filepath.Join(root, m[1]))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains("\n"+string(file), "\n"+m[2]) {
				t.Errorf("%s shows what is not in %s:\n%s", page, m[1], m[2])
			}
		}
	}
}

// Both pages name every file that is tested.
func TestPagesNameEveryConfiguration(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range []string{"README.md", "docs/operations/bgp.md"} {
		raw, err := os.ReadFile(filepath.Join(root, page))
		if err != nil {
			t.Fatal(err)
		}
		for _, kind := range Kinds() {
			for _, form := range Forms() {
				if name := string(kind) + "-" + string(form) + ".conf"; !strings.Contains(string(raw), "routers/"+name) {
					t.Errorf("%s does not name %s", page, name)
				}
			}
		}
	}
}
