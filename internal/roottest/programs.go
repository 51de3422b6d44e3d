package roottest

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"testing"
)

// NeedProgram skips a test whose program of another project is not at path, or fails it where
// PONTOON_REQUIRE_PRIV=1 forbids to skip.
func NeedProgram(tb testing.TB, path string) {
	tb.Helper()
	if _, err := os.Stat(path); err == nil {
		return
	}
	if os.Getenv("PONTOON_REQUIRE_PRIV") == "1" {
		tb.Fatalf("%s is missing, and PONTOON_REQUIRE_PRIV=1 forbids to skip: make deps installs it", path)
	}
	tb.Skipf("%s is missing: make deps installs it", path)
}

// Own gives a directory and what is in it to a user, and lets everybody enter it.
func Own(tb testing.TB, dir, name string) {
	tb.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		tb.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid) // numbers on Linux
	gid, _ := strconv.Atoi(u.Gid)
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Chown(path, uid, gid)
	})
	if err != nil {
		tb.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		tb.Fatal(err)
	}
}
