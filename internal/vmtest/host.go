package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// tools are the host's programs that are needed and the packages they are in.
var tools = map[string]string{
	"qemu-system-x86_64": "qemu-system-x86",
	"depmod":             "kmod",
	"dpkg-deb":           "dpkg",
	"apt-get":            "apt",
}

// ensureTools installs what is missing where it may, and says so.
func ensureTools(ctx context.Context) error {
	var missing []string
	for tool, pkg := range tools {
		if _, err := lookPath(tool); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	slices.Sort(missing)
	install := "apt-get install --no-install-recommends " + strings.Join(missing, " ")
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("this needs Debian's package tools: run it on Debian 12")
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("programs are missing; as root: %s", install)
	}
	say("installing %s", strings.Join(missing, " "))
	if _, err := output(ctx, "", "apt-get", "update", "-qq"); err != nil {
		return err
	}
	_, err := output(ctx, "", "apt-get", append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)...)
	return err
}

// lookPath also looks where root's programs are, which are not on everybody's
// path.
func lookPath(name string) (string, error) {
	if p, err := exec.LookPath(name); err == nil {
		return p, nil
	}
	return exec.LookPath(filepath.Join("/usr/sbin", name))
}

// command prepares a program that dies with this one and is asked to end when
// ctx does.
func command(ctx context.Context, dir, name string, args ...string) (*exec.Cmd, error) {
	file, err := lookPath(name)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", name, err)
	}
	cmd := exec.CommandContext(ctx, file, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd, nil
}

// output runs a program in dir and returns what it prints; the error carries
// what it complained of.
func output(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd, err := command(ctx, dir, name, args...)
	if err != nil {
		return nil, err
	}
	var out, complaints bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaints
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, bytes.TrimSpace(complaints.Bytes()))
	}
	return out.Bytes(), nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
