package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// guestPackages are the programs that the tests call, besides what they bring
// themselves, and kmod for the kernel, which asks it for modules.
var guestPackages = []string{"busybox-static", "iperf3", "iproute2", "kmod", "netcat-openbsd", "socat"}

// packageSet is what one image is made of: files that apt names and fetches.
type packageSet struct {
	kernel  string   // the kernel's package
	release string   // what uname -r will say
	lines   []string // as apt prints them: 'address' file size checksum
}

// stamp changes when a package does, or the way an image is made of them.
func (p packageSet) stamp() string {
	sum := sha256.Sum256([]byte(imageForm + "\n" + strings.Join(p.lines, "\n")))
	return hex.EncodeToString(sum[:])
}

// files are the names under which apt stores the packages.
func (p packageSet) files() []string {
	var out []string
	for _, l := range p.lines {
		out = append(out, strings.Fields(l)[1])
	}
	return out
}

// resolve asks apt what the packages and their dependencies are now.
func resolve(ctx context.Context, a apt, series string) (packageSet, error) {
	kernel, err := findKernel(ctx, series)
	if err != nil {
		return packageSet{}, err
	}
	p := packageSet{kernel: kernel, release: strings.TrimPrefix(kernel, "linux-image-")}
	// The kernel without what it depends on: nothing is to be installed on it.
	for _, args := range [][]string{a.downloadKernel(kernel), a.downloadPrograms(a.void())} {
		out, err := output(ctx, a.void(), "apt-get", append(args, "--print-uris")...)
		if err != nil {
			return p, err
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) >= 3 && strings.HasPrefix(line, "'") && strings.HasSuffix(f[1], ".deb") {
				p.lines = append(p.lines, strings.TrimSpace(line))
			}
		}
	}
	if len(p.lines) <= len(guestPackages) {
		return p, fmt.Errorf("apt names only %d packages: run apt-get update", len(p.lines))
	}
	slices.Sort(p.lines)
	return p, nil
}

// fetch downloads what is not there already.
func (p packageSet) fetch(ctx context.Context, a apt) error {
	complete := func() error {
		var errs []error
		for _, f := range p.files() {
			if _, err := os.Stat(filepath.Join(a.dir, f)); err != nil {
				errs = append(errs, fmt.Errorf("package was not downloaded: %w", err))
			}
		}
		return errors.Join(errs...)
	}
	if complete() == nil {
		return nil
	}
	say("fetching %d packages for %s", len(p.lines), p.release)
	for _, args := range [][]string{a.downloadKernel(p.kernel), a.downloadPrograms(a.dir)} {
		if _, err := output(ctx, a.dir, "apt-get", args...); err != nil {
			return err
		}
	}
	return complete()
}

// apt is how the host's package manager is made to download for an empty
// machine instead of for the host, into a folder of ours.
type apt struct {
	dir string // where packages go; it also holds the empty machine's state
}

// void is a folder that stays empty. Of a package that it finds downloaded apt
// does not print the address.
func (a apt) void() string { return filepath.Join(a.dir, "void") }

func newAPT(dir string) (apt, error) {
	a := apt{dir: dir}
	for _, d := range []string{dir, a.void()} {
		if err := os.MkdirAll(filepath.Join(d, "partial"), 0o755); err != nil {
			return a, fmt.Errorf("make package folder: %w", err)
		}
	}
	if err := os.WriteFile(a.status(), nil, 0o644); err != nil {
		return a, fmt.Errorf("write empty package state: %w", err)
	}
	return a, nil
}

func (a apt) status() string { return filepath.Join(a.dir, "status") }

// unsandboxed keeps apt from changing to a user who may not write to dir.
var unsandboxed = []string{"-q", "-o", "APT::Sandbox::User=root"}

func (a apt) downloadKernel(pkg string) []string {
	return append(slices.Clone(unsandboxed), "download", pkg)
}

func (a apt) downloadPrograms(to string) []string {
	args := append(slices.Clone(unsandboxed), "install", "-y", "--download-only", "--no-install-recommends",
		"-o", "Dir::State::status="+a.status(), "-o", "Dir::Cache::archives="+to, "-o", "Debug::NoLocking=1")
	return append(args, guestPackages...)
}

// findKernel names the newest package of a kernel series, by the package that
// depends on the newest: the plain one for the release's own kernel, one with
// the series in its name for a newer kernel that the release carries too.
func findKernel(ctx context.Context, series string) (string, error) {
	metas := []string{"linux-image-" + series + "-cloud-amd64", "linux-image-cloud-amd64"}
	var seen []string
	for _, meta := range metas {
		out, err := output(ctx, "", "apt-cache", "depends", meta)
		if err != nil {
			continue // apt knows no such package
		}
		for word := range strings.FieldsSeq(string(out)) {
			release, ok := strings.CutPrefix(word, "linux-image-")
			if !ok || word == meta {
				continue
			}
			if strings.HasPrefix(release, series+".") {
				return word, nil
			}
			seen = append(seen, release)
		}
	}
	return "", noKernelError(ctx, series, seen)
}

// noKernelError says what there is instead.
func noKernelError(ctx context.Context, series string, seen []string) error {
	names, err := output(ctx, "", "apt-cache", "pkgnames", "linux-image-")
	if err != nil {
		return err
	}
	found := map[string]bool{}
	for name := range strings.FieldsSeq(string(names) + " " + strings.Join(seen, " ")) {
		parts := strings.SplitN(strings.TrimPrefix(name, "linux-image-"), ".", 3)
		if len(parts) == 3 && strings.HasSuffix(name, "-cloud-amd64") {
			found[parts[0]+"."+parts[1]] = true
		}
	}
	if len(found) == 0 {
		return errors.New("apt knows no kernel at all: run apt-get update")
	}
	var have []string
	for s := range found {
		have = append(have, s)
	}
	slices.Sort(have)
	return fmt.Errorf("the package sources of this machine have no kernel %s, only %s; "+
		"5.15 and 6.8 were never part of a Debian release", series, strings.Join(have, ", "))
}
